"""The loop that stays on the device, run here by the twins: the plain loop, token for token."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma_engine import CancellationToken, Cancelled, Decoder, HoleKind, JointRequest
from dgemma_engine import attention as attention_module
from dgemma_engine import device_loop as device_loop_module
from dgemma_engine import layers as layers_module
from dgemma_engine import loops as loops_module
from dgemma_engine.cache import KVCache
from dgemma_engine.canvas import Canvas
from dgemma_engine.config import SamplerConfig
from dgemma_engine.denoise import DenoisingStep, denoise
from dgemma_engine.device_loop import DeviceLoop
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.loops import Denoiser
from dgemma_engine.model import DiffusionGemma, NewTokens
from dgemma_engine.sampler import Randoms
from dgemma_engine.special_tokens import SPECIAL_TOKENS
from dgemma_engine.stopping import StableAndConfident, StableText, StoppingCriterion
from dgemma_kernels import canvas_attention, moe_experts

from .recorded import capture
from .tiny import CHAT_TOKENS, SAMPLE, build_model, sample_request, save_checkpoint

MODEL = build_model()
LOOP = DeviceLoop(MODEL)
CACHE = MODEL.prefill(torch.arange(70)[None])
ENDS = (5, 6)


def randoms_for(canvas: Canvas, num_steps: int, seed: int) -> Randoms:
    shape = (canvas.token_ids.shape[0], canvas.token_ids.shape[1])
    return Randoms.of(
        torch.Generator().manual_seed(seed),
        num_steps=num_steps,
        shape=shape,
        num_slots=canvas.hole_slots().shape[1],
        vocab_size=400,
    )


def criteria(config: SamplerConfig) -> list[StoppingCriterion]:
    first = StableAndConfident(config.stability_threshold, config.confidence_threshold)
    return [first, StableText(config.stable_text_passes, ENDS)]


def assert_same(expected: DenoisingStep, actual: DenoisingStep) -> None:
    for name in ("step", "noise_proportion", "stop_reason"):
        assert getattr(expected, name) == getattr(actual, name), name
    for name in ("canvas", "argmax_canvas", "accepted", "is_finished"):
        assert torch.equal(getattr(expected, name), getattr(actual, name)), name
    for name in ("confidence", "entropy"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), atol=2e-5, rtol=2e-5
        )


def holes_in(*rows: str) -> torch.Tensor:
    """Canvases drawn: a hole slot is an underscore."""
    return torch.tensor([[letter == "_" for letter in row] for row in rows])


def random_canvas(hole_mask: torch.Tensor, seed: int = 0, **rules: torch.Tensor) -> Canvas:
    generator = torch.Generator().manual_seed(seed)
    return Canvas(torch.randint(0, 400, hole_mask.shape, generator=generator), hole_mask, **rules)


sampler_configs = st.builds(
    SamplerConfig,
    max_denoising_steps=st.integers(1, 6),
    t_min=st.floats(0.4, 0.5),
    t_max=st.floats(0.6, 2.0),
    entropy_bound=st.sampled_from([0.1, 3.0, 20.0]),
    confidence_threshold=st.sampled_from([1e-6, 3.0, 100.0]),
    stability_threshold=st.integers(0, 2),
    candidates=st.sampled_from(["sample", "argmax"]),
    min_accept=st.booleans(),
    stable_text_passes=st.integers(1, 2),
)
CANVASES = {
    "open": random_canvas(holes_in("_" * 12)),
    "clamped": random_canvas(holes_in(".__..___.", ".______..", "..._....."), seed=1),
    "restricted": random_canvas(
        holes_in(".____..__"), banned=torch.arange(400) < 300, first_allowed=torch.arange(400) > 390
    ),
    "several holes": random_canvas(
        holes_in(".__...___."),
        banned=torch.arange(400) % 2 == 0,
        first_allowed=torch.stack([torch.arange(400) < 9, torch.arange(400) > 350]),
        starts=torch.tensor([[0, 1, 0, 0, 0, 0, 2, 0, 0, 0]]),
    ),
    "large": random_canvas(holes_in("." + "_" * 36 + "." * 3), seed=2),
}


@settings(
    deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
@given(config=sampler_configs, name=st.sampled_from(sorted(CANVASES)), seed=st.integers(0, 999))
def test_it_is_the_plain_loop(config: SamplerConfig, name: str, seed: int) -> None:
    """The same steps under any setting, in buffers that fills before have used."""
    assert_is_plain(LOOP, CACHE, CANVASES[name], config, seed)


def assert_is_plain(
    loop: DeviceLoop,
    cache: KVCache,
    canvas: Canvas,
    config: SamplerConfig,
    seed: int = 0,
    rows: Tensor | None = None,
) -> None:
    """Both loops, of which the second step is of some rows alone."""
    randoms = randoms_for(canvas, config.max_denoising_steps, seed)
    assert loop.why_not(canvas, config, criteria(config)) is None
    given_ = (cache, canvas, config, torch.Generator())
    plain = denoise(MODEL, *given_, criteria(config), randoms=randoms)
    steps = loop.denoise(*given_, criteria(config), randoms=randoms)
    asked: Tensor | None = None
    while True:
        expected, actual = (_next(loop_steps, asked) for loop_steps in (plain, steps))
        if expected is None or actual is None:
            assert expected is actual
            return
        if is_close_call(expected):
            return
        assert_same(expected, actual)
        asked = rows if expected.step == 0 else None


def _next(
    steps: Generator[DenoisingStep, Tensor | None, None], rows: Tensor | None
) -> DenoisingStep | None:
    try:
        return next(steps) if rows is None else steps.send(rows)
    except StopIteration:
        return None


def is_close_call(step: DenoisingStep) -> bool:
    """Whether rounding may decide which of two slots was accepted: what follows is another text."""
    for entropy, accepted in zip(step.entropy, step.accepted, strict=True):
        distance = entropy[accepted][:, None] - entropy[~accepted][None, :]
        if bool((distance.abs() < 2e-5).any()):
            return True
    return False


UNFINISHED = SamplerConfig(
    max_denoising_steps=6, entropy_bound=3.0, confidence_threshold=1e-6, stable_text_passes=5
)


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 1, 2]], ids=str)
def test_rows_can_be_left_behind(rows: list[int]) -> None:
    """They move to buffers of their own size, or to the first places of the same."""
    assert_is_plain(LOOP, CACHE, CANVASES["clamped"], UNFINISHED, rows=torch.tensor(rows))


def test_a_row_that_has_finished_stays_as_it_is() -> None:
    """The others go on, and the step shows what it had come to."""
    config = dataclasses.replace(UNFINISHED, confidence_threshold=4.5, stability_threshold=0)
    canvas = CANVASES["clamped"]
    plain = denoise(
        *(MODEL, CACHE, canvas, config, torch.Generator(), criteria(config)),
        randoms=randoms_for(canvas, 6, 0),
    )
    finished = [int(step.is_finished.sum()) for step in plain]
    assert finished == [0, 1, 1, 1, 2, 3]
    assert_is_plain(LOOP, CACHE, canvas, config)


def test_ends_of_another_fill_are_no_ends() -> None:
    """A text that is all ends is stable at once; the same text, were there none in it, is not."""
    canvas, config = random_canvas(holes_in("_" * 4)), UNFINISHED
    for ends, expected in ((range(400), 2), ((0,), 6)):
        stop = [StableText(1, list(ends))]
        steps = list(LOOP.denoise(CACHE, canvas, config, torch.Generator(), stop))
        assert len(steps) == expected


def test_rows_that_had_finished_end_it() -> None:
    """There is no further step to say so."""
    config = SamplerConfig(confidence_threshold=1e9, stability_threshold=0)
    canvas = CANVASES["clamped"]
    steps = LOOP.denoise(CACHE, canvas, config, torch.Generator(), criteria(config))
    assert next(steps).stop_reason is not None
    assert list(steps) == []


@pytest.mark.parametrize("length", [0, 10, 23, 24, 60, 300])
def test_any_prefix_is_read_from_the_caches_own_memory(length: int) -> None:
    """Empty, within the window, at its edge, and beyond; a row for each canvas too."""
    canvas = CANVASES["clamped"]
    shared = MODEL.new_cache(1)
    own = MODEL.new_cache(3)
    if length:
        prompt = torch.arange(3 * length).view(3, length) % 400
        MODEL.prefill(prompt[:1], shared)
        MODEL.prefill(prompt, own)
    for cache in (shared, own):
        assert_is_plain(LOOP, cache, canvas, UNFINISHED)


@pytest.mark.parametrize("num_new", [1, 16, 17, 50])
@pytest.mark.parametrize("num_cached", [0, 12, 24, 70, 250])
def test_new_tokens_of_the_prefix_are_encoded_on_the_way(num_cached: int, num_new: int) -> None:
    """The steps are those after a prefill, and the cache is as it would be; before, it was not."""
    canvas = CANVASES["clamped"]
    randoms = randoms_for(canvas, 6, 1)
    prompt = torch.arange(num_cached + num_new) * 7 % 400
    whole, folded = MODEL.prefill(prompt[None]), MODEL.new_cache(1)
    if num_cached:
        MODEL.prefill(prompt[None, :num_cached], folded)
    plain = denoise(MODEL, whole, canvas, UNFINISHED, torch.Generator(), [], randoms=randoms)
    cancel = CancellationToken()
    given_ = (folded, canvas, UNFINISHED, torch.Generator(), [], cancel)
    new_ids = prompt[num_cached:].tolist()
    cancelled = LOOP.denoise(*given_, new_ids=new_ids)
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(cancelled)
    assert folded.length == num_cached
    steps = LOOP.denoise(*given_[:-1], randoms=randoms, new_ids=new_ids)
    for expected, actual in itertools.zip_longest(plain, steps):
        assert_same(expected, actual)
    assert folded.length == whole.length
    for index in range(3):
        for left, right in zip(
            whole.prefix(index, whole.length, 1), folded.prefix(index, whole.length, 1), strict=True
        ):
            torch.testing.assert_close(right, left, atol=2e-5, rtol=2e-5)


def test_it_begins_where_it_is_told() -> None:
    """With a draft instead of noise, half way down the schedule."""
    canvas, config = CANVASES["clamped"], UNFINISHED
    randoms = randoms_for(canvas, 6, 3)
    initial = torch.arange(27).view(3, 9)
    given_ = (CACHE, canvas, config, torch.Generator())
    plain = denoise(MODEL, *given_, [], initial=initial, first_step=3, randoms=randoms)
    steps = LOOP.denoise(*given_, [], initial=initial, first_step=3, randoms=randoms)
    for expected, actual in itertools.zip_longest(plain, steps):
        assert_same(expected, actual)


def test_a_seed_fixes_the_outcome() -> None:
    """All is drawn from the generator."""
    drafts = []
    for seed in (3, 3, 4):
        generator = torch.Generator().manual_seed(seed)
        steps = LOOP.denoise(CACHE, CANVASES["open"], UNFINISHED, generator, [])
        drafts.append([step.canvas.tolist() for step in steps])
    assert drafts[0] == drafts[1] != drafts[2]


def test_cancelling_ends_within_one_pass() -> None:
    """The token is looked at before every pass, the first included."""
    cancel = CancellationToken()
    steps = LOOP.denoise(CACHE, CANVASES["open"], UNFINISHED, torch.Generator(), [], cancel)
    assert [next(steps).step, next(steps).step] == [0, 1]
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(steps)
    with pytest.raises(Cancelled):
        next(LOOP.denoise(CACHE, CANVASES["open"], UNFINISHED, torch.Generator(), [], cancel))


def test_it_says_what_it_does_not_do() -> None:
    """Another criterion, or a temperature whose masses would overflow."""

    class Another(StableText):
        pass

    canvas = CANVASES["open"]
    assert LOOP.why_not(canvas, UNFINISHED, [Another(1, ENDS)]) is not None
    assert LOOP.why_not(canvas, SamplerConfig(t_min=0.1, max_denoising_steps=99), []) is not None


def test_which_loop_runs_is_told() -> None:
    """The plain one on a CPU, and where the other does not do what is asked for."""
    given_ = (CACHE, CANVASES["open"], UNFINISHED, torch.Generator())
    plain = Denoiser(MODEL)
    expected = list(denoise(MODEL, *given_, []))
    given_[3].manual_seed(0)
    assert len(list(plain(*given_, []))) == len(expected)
    assert plain.describe() == "plain: no kernels on cpu"
    chosen = Denoiser(MODEL, LOOP)
    list(chosen(*given_, criteria(UNFINISHED)))
    assert chosen.describe() == "on the device, 0 CUDA graphs"
    list(chosen(*given_[:2], SamplerConfig(t_min=0.0, max_denoising_steps=99), given_[3], [], None))
    assert chosen.describe() == "plain: a temperature of 0.00808"


@pytest.fixture(scope="module", params=["markers", "chat"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that draft one hole, or rank lengths."""
    special = SPECIAL_TOKENS if request.param == "markers" else CHAT_TOKENS
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), special)


def test_typing_on_is_the_same_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are encoded on the way, or taken back: a fill is that of an engine that saw none."""
    plain = build_engine(str(folder))
    loop = DeviceLoop(plain.model)
    parts = ("tiny", plain.model, plain.tokenizer, plain.strategy)
    typing = DiffusionEngine(*parts, denoiser=Denoiser(plain.model, loop))

    class Late(CancellationToken):
        """Set when the first pass is about to begin."""

        times = 0

        def raise_if_cancelled(self) -> None:
            self.times += 1
            if self.times == 2:
                raise Cancelled

    folded: list[int] = []
    forward = DiffusionGemma.folded_hidden

    def count(model: DiffusionGemma, hidden: Tensor, new: NewTokens, *rest: Any) -> Tensor:
        folded.append(new.token_ids.shape[1])
        return forward(model, hidden, new, *rest)

    monkeypatch.setattr(DiffusionGemma, "folded_hidden", count)
    for added in ("", "a", "a + b", "a + ", "a + b\n    c = x" * 3, "a"):
        request = sample_request()
        request = dataclasses.replace(
            request, prefix=request.prefix + added, decoder=Decoder.DIFFUSION, max_steps=3
        )
        fresh = DiffusionEngine(*parts, denoiser=Denoiser(plain.model, loop))
        expected = fresh.fill(request)
        with pytest.raises(Cancelled):
            typing.fill(request, cancel=Late())
        actual = typing.fill(request)
        assert actual.text == expected.text
        assert actual.token_ids == expected.token_ids
        assert actual.confidence == pytest.approx(expected.confidence, abs=1e-4)
    assert actual.num_cached_tokens > 0
    assert len(folded) >= 3


def test_several_holes_are_filled_with_it(tmp_path: Path) -> None:
    """Together, with new tokens before them, as the engine does that saw none."""
    plain = build_engine(str(save_checkpoint(tmp_path)))
    parts = ("tiny", plain.model, plain.tokenizer, plain.strategy)
    loop = DeviceLoop(plain.model)
    typing, fresh = (DiffusionEngine(*parts, denoiser=Denoiser(plain.model, loop)) for _ in "ab")
    cursor = SAMPLE.index("left + right")
    texts = (SAMPLE[:cursor], SAMPLE[cursor + 4 : cursor + 7], SAMPLE[cursor + 12 :])
    kinds = (HoleKind.LINE, HoleKind.LINE)
    typing.fill_together(JointRequest((texts[0][:-3], *texts[1:]), kinds, max_tokens=8))
    request = JointRequest(texts, kinds, max_tokens=8)
    assert typing.fill_together(request).texts == fresh.fill_together(request).texts


def test_an_engine_says_how_it_runs(tmp_path: Path) -> None:
    """For `dgemma-lsp doctor`; warming up leaves nothing behind."""
    engine = build_engine(str(save_checkpoint(tmp_path)))
    engine.warm_up()
    assert engine.caches.clients == ("",)
    assert engine.info.loop == "plain: no kernels on cpu"


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ({}, "PyTorch reference"),
        ({"route": "reference: none is asked for"}, "PyTorch reference"),
        ({"route": "triton", "linear": "triton"}, "Triton for 2 of 2 ops"),
        (
            {"route": "triton", "linear": "reference: plain weights"},
            "Triton for 1 of 2 ops; linear by reference: plain weights",
        ),
    ],
)
def test_ops_without_a_kernel_are_named(
    taken: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason."""
    monkeypatch.setattr(loops_module, "report", lambda: taken)
    assert loops_module.describe_kernels() == expected


# --- graphs ---


def _canvas_attention(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prefix_length: Tensor,
    window: int | None,
    canvas_length: Tensor | None,
    causal: bool,
) -> Tensor:
    """The op without asking the host how long anything is, as its kernel does not."""
    place = torch.arange(prefix_key.shape[2])
    own_place = torch.arange(key.shape[2])
    held = place < prefix_length
    mask = torch.cat((held, own_place < (key.shape[2] if canvas_length is None else canvas_length)))
    keys, values = (
        torch.cat((prefix.expand(len(query), -1, -1, -1), own), dim=2).masked_fill(
            ~mask[:, None], 0.0
        )
        for prefix, own in ((prefix_key, key), (prefix_value, value))
    )
    asking = torch.arange(query.shape[2])[:, None] if causal else torch.zeros((1, 1))
    distance = asking - torch.cat((place - prefix_length, own_place if causal else 0 * own_place))
    mask = mask & (distance >= 0)
    if window is not None:
        mask = mask & (distance <= window)
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=1.0, enable_gqa=True
    )


def _moe_experts(
    hidden: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The op over all experts, whatever was chosen."""
    gate, up = torch.einsum("td,efd->tef", hidden, gate_up).chunk(2, dim=-1)
    outputs = torch.einsum("tef,edf->ted", F.gelu(gate, approximate="tanh") * up, down)
    shares = torch.zeros(outputs.shape[:2]).scatter(1, index, weight)
    return (shares[..., None] * outputs).sum(dim=1)


def test_a_pass_that_was_recorded_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that differs from fill to fill is left in it: prompts, canvases, rules, schedules.

    Operations are recorded on tensors, which is what a CUDA graph holds; asking one for its value
    is refused.
    """
    monkeypatch.setattr(attention_module, "canvas_attention", _canvas_attention)
    monkeypatch.setattr(layers_module, "moe_experts", _moe_experts)
    loop = DeviceLoop(MODEL, capture)
    cache = MODEL.prefill(torch.arange(20)[None])
    names = ["clamped", "open", "restricted", "clamped"]
    for seed, name in enumerate(names):
        assert_replayed_is_plain(monkeypatch, loop, cache, CANVASES[name], seed)
        cache.truncate(10 + seed)
        MODEL.prefill(torch.arange(30 + 7 * seed)[None] + seed, cache)
    assert loop.num_graphs == 4  # the first pass, a later one; of one row, of four
    for num_new in (3, 16, 5, 9):  # and one in which new tokens of the prefix are encoded
        assert_replayed_is_plain(monkeypatch, loop, cache, CANVASES["open"], 0, num_new)
        cache.truncate(cache.length - 6)
    assert loop.num_graphs == 5
    MODEL.prefill(torch.arange(300)[None], cache)  # beyond its room: it lies elsewhere now
    for seed in (4, 5):
        assert_replayed_is_plain(monkeypatch, loop, cache, CANVASES["open"], seed)
    assert loop.num_graphs == 5
    del cache
    other = MODEL.prefill(torch.arange(5)[None])
    list(loop.denoise(other, CANVASES["open"], UNFINISHED, torch.Generator(), []))
    assert loop.num_graphs == 1, "what read the memory of a cache that is gone is gone"


def assert_replayed_is_plain(
    monkeypatch: pytest.MonkeyPatch,
    loop: DeviceLoop,
    cache: KVCache,
    canvas: Canvas,
    seed: int,
    num_new: int = 0,
) -> None:
    """Both loops one after the other: the plain one knows no lengths on the device."""
    randoms = randoms_for(canvas, 6, seed)
    config, length = UNFINISHED, cache.length
    new_ids = list(range(40, 40 + num_new))
    given_ = (cache, canvas, config, torch.Generator())
    with monkeypatch.context() as plain:
        plain.setattr(attention_module, "canvas_attention", canvas_attention)
        plain.setattr(layers_module, "moe_experts", moe_experts)
        if num_new:
            MODEL.prefill(torch.tensor([new_ids]), cache)
        expected = list(denoise(MODEL, *given_, criteria(config), randoms=randoms))
    cache.truncate(length)
    actual = list(loop.denoise(*given_, criteria(config), randoms=randoms, new_ids=new_ids))
    for left, right in zip(expected, actual, strict=True):
        assert_same(left, right)


def test_buffers_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sizes that were not used for longest the memory goes, and the graphs on it with it."""
    monkeypatch.setattr(attention_module, "canvas_attention", _canvas_attention)
    monkeypatch.setattr(layers_module, "moe_experts", _moe_experts)
    loop = DeviceLoop(MODEL, capture)
    for name in ("open", "clamped", "large"):
        list(loop.denoise(CACHE, CANVASES[name], UNFINISHED, torch.Generator(), []))
    most, graphs = loop.num_bytes, loop.num_graphs
    assert (most > 0, graphs) == (True, 3)
    monkeypatch.setattr(device_loop_module, "_MOST_BYTES", most - 1)
    list(loop.denoise(CACHE, CANVASES["large"], UNFINISHED, torch.Generator(), []))
    assert 0 < loop.num_bytes < most
    assert loop.num_graphs == 3  # one less, and the first pass of this size


def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """The twins ask the host; that is told once for each pass, and the steps are the same."""
    loop = DeviceLoop(MODEL, capture)
    with caplog.at_level(logging.WARNING):
        for seed in (0, 1, 2):
            assert_is_plain(loop, CACHE, CANVASES["open"], UNFINISHED, seed)
    assert loop.num_graphs == 0
    assert len(caplog.records) == 2
    assert "runs without a CUDA graph: RuntimeError: " in caplog.records[0].message
