"""The sampler and the loop: what is clamped stays, what is seeded repeats, what stops stops."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgemma_engine import CancellationToken, Cancelled, ConfigError, StopReason
from dgemma_engine.canvas import Canvas
from dgemma_engine.config import SamplerConfig
from dgemma_engine.denoise import DenoisingStep, denoise
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.sampler import accept
from dgemma_engine.schedule import min_accepted, temperature
from dgemma_engine.stopping import StableAndConfident, StableText

from .tiny import build_model

MODEL = build_model()
CACHE = MODEL.prefill(torch.arange(30)[None])


def run(
    canvas: Canvas, config: SamplerConfig, seed: int = 0, model: DiffusionGemma = MODEL
) -> list[DenoisingStep]:
    criteria = [StableAndConfident(config.stability_threshold, config.confidence_threshold)]
    generator = torch.Generator().manual_seed(seed)
    return list(denoise(model, CACHE, canvas, config, generator, criteria))


sampler_configs = st.builds(
    SamplerConfig,
    max_denoising_steps=st.integers(1, 7),
    t_min=st.floats(0.0, 0.5),
    t_max=st.floats(0.51, 2.0),
    entropy_bound=st.sampled_from([1e-6, 0.1, 3.0, 1e6]),
    confidence_threshold=st.sampled_from([1e-6, 0.5, 100.0]),
    stability_threshold=st.integers(0, 2),
    candidates=st.sampled_from(["sample", "argmax"]),
    min_accept=st.booleans(),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=sampler_configs,
    holes=st.lists(st.booleans(), min_size=12, max_size=12).filter(any),
    seed=st.integers(0, 2**31),
    ban=st.booleans(),
)
def test_clamped_positions_never_change(
    config: SamplerConfig, holes: list[bool], seed: int, ban: bool
) -> None:
    """At no step, under no setting, does a clamped position hold or propose another token."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(0, 400, (2, 12), generator=generator)
    hole_mask = torch.tensor([holes, [True, *holes[1:]]])
    banned = torch.arange(400) % 3 == 0 if ban else None
    steps = run(Canvas(token_ids, hole_mask, banned=banned), config, seed)
    assert steps
    for step in steps:
        for proposed in (step.canvas, step.argmax_canvas):
            assert torch.equal(token_ids[~hole_mask], proposed[~hole_mask])
        assert torch.all(step.entropy[~hole_mask] == 0)
        assert torch.all(step.confidence[~hole_mask] == 1)
        assert torch.all(step.accepted[~hole_mask])
        if ban:
            assert not (step.argmax_canvas[hole_mask] % 3 == 0).any()
    assert steps[-1].stop_reason is not None
    assert all(step.stop_reason is None for step in steps[:-1])


def test_first_slot_takes_only_what_it_may() -> None:
    """A token cut by the cursor is continued by tokens that begin as it does."""
    allowed = torch.zeros(400, dtype=torch.bool)
    allowed[[17, 230]] = True
    hole_mask = torch.tensor([[False, True, True, True]])
    banned = torch.arange(400) >= 200
    canvas = Canvas(torch.zeros(1, 4, dtype=torch.int64), hole_mask, banned, allowed)
    for seed in range(20):
        argmax = run(canvas, SamplerConfig(max_denoising_steps=3), seed)[-1].argmax_canvas[0]
        assert int(argmax[1]) in (17, 230)
        assert all(int(token) < 200 for token in argmax[2:])


def test_a_seed_fixes_the_outcome() -> None:
    """The same seed gives the same canvases at every step, another seed other ones."""
    config = SamplerConfig(max_denoising_steps=5)
    canvas = Canvas.open(1, 16, torch.device("cpu"))
    first, again, other = (run(canvas, config, seed) for seed in (3, 3, 4))
    assert [s.canvas.tolist() for s in first] == [s.canvas.tolist() for s in again]
    assert [s.canvas.tolist() for s in first] != [s.canvas.tolist() for s in other]


def test_cancelling_ends_within_one_pass() -> None:
    """The token is looked at before every pass, the first included."""
    config = SamplerConfig(max_denoising_steps=50)
    canvas = Canvas.open(1, 16, torch.device("cpu"))
    cancel = CancellationToken()
    steps = denoise(MODEL, CACHE, canvas, config, torch.Generator(), [], cancel)
    assert [next(steps).step, next(steps).step] == [0, 1]
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(steps)
    with pytest.raises(Cancelled):
        next(denoise(MODEL, CACHE, canvas, config, torch.Generator(), [], cancel))


def test_accept_takes_the_certain_within_the_bound() -> None:
    """Positions are taken in order of entropy while the sum without the largest stays in bound."""

    # Two equally likely tokens are ln 2 nats, four are ln 4.
    def position(num_likely: int) -> list[float]:
        return [0.0] * num_likely + [-math.inf] * (4 - num_likely)

    logits = torch.tensor([[position(4), position(1), position(2), position(2)]])
    entropy = [math.log(4), 0.0, math.log(2), math.log(2)]
    small = accept(logits, entropy_bound=0.1)
    assert entropy == pytest.approx(small.entropy[0].tolist())
    # Sums without the largest: 0, 0, ln 2, 2 ln 2. The sort may put either ln 2 first.
    assert small.mask[0].sum() == 2
    assert small.mask[0, 1]
    assert accept(logits, entropy_bound=0.8).mask[0].tolist() == [False, True, True, True]
    assert accept(logits, entropy_bound=1.5).mask[0].all()
    floored = accept(logits, entropy_bound=0.1, min_accepted=torch.tensor([3]))
    assert floored.mask[0].tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="entropy_bound must be above 0, got 0"):
        accept(logits, entropy_bound=0.0)


def test_minimum_acceptance_reaches_the_whole_hole() -> None:
    """With the floor on, the last step accepts every slot, clamped positions not counted."""
    config = SamplerConfig(max_denoising_steps=4, entropy_bound=1e-6, min_accept=True)
    hole_mask = torch.tensor([[False] * 6 + [True] * 10])
    steps = run(Canvas(torch.ones(1, 16, dtype=torch.int64), hole_mask), config)
    accepted = [int((step.accepted & hole_mask).sum()) for step in steps]
    assert accepted == [3, 5, 8, 10]
    assert [min_accepted(step, 10, config) for step in range(4)] == [3, 5, 8, 10]


def test_temperature_falls_from_t_max_towards_t_min() -> None:
    """The published schedule: 0.8 at the first of 48 steps, 0.40833 at the last."""
    config = SamplerConfig()
    assert float(temperature(0, config)) == pytest.approx(0.8)
    assert float(temperature(47, config)) == pytest.approx(0.4 + 0.4 / 48)


def test_stable_and_confident_needs_both() -> None:
    """Unchanged for the threshold's steps and below the entropy, per row, over the hole only."""
    hole = torch.tensor([[True, True, False]]).expand(3, 3)
    criterion = StableAndConfident(stability_threshold=1, confidence_threshold=0.5)
    argmax = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    entropy = torch.tensor([[0.1, 0.2, 0.0], [2.0, 2.0, 0.0], [0.1, 0.1, 9.0]])
    assert criterion(argmax, entropy, hole).tolist() == [False, False, False]
    changed = torch.tensor([[1, 2, 3], [1, 2, 3], [9, 2, 3]])
    assert criterion(changed, entropy, hole).tolist() == [True, False, False]
    assert criterion(changed, entropy, hole).tolist() == [True, False, True]


def test_stable_text_ignores_what_follows_the_end() -> None:
    """Noise behind the end mark does not keep the loop going; a change before it does."""
    end = 7
    hole = torch.tensor([[False, True, True, True, False]])
    entropy = torch.zeros(1, 5)
    criterion = StableText(2, [end])
    canvases = [[0, 4, end, 1, 7], [0, 4, end, 2, 7], [0, 4, end, 3, 7], [0, 5, end, 3, 7]]
    met = [criterion(torch.tensor([row]), entropy, hole).item() for row in canvases]
    assert met == [False, False, True, False]


def test_loop_equals_a_plain_one() -> None:
    """The loop equals one written straight from the description, token for token."""
    config = SamplerConfig(max_denoising_steps=5, entropy_bound=2.0)
    hole_mask = torch.tensor([[True] * 10 + [False] * 6])
    token_ids = torch.full((1, 16), 33)
    generator = torch.Generator().manual_seed(8)
    current = torch.randint(0, 400, (1, 16), generator=generator)
    conditioning = None
    for step, actual in enumerate(run(Canvas(token_ids, hole_mask), config, seed=8)):
        current[~hole_mask] = 33
        logits = MODEL.denoise_logits(current, CACHE, conditioning) / (
            0.4 + 0.4 * torch.tensor((5 - step) / 5)
        )
        for position in range(10, 16):
            logits[0, position] = -math.inf
            logits[0, position, 33] = 0.0
        # A clamped position is certain: nothing is drawn for it.
        drawn = torch.multinomial(logits[0, :10].softmax(-1), 1, generator=generator)[:, 0]
        noise = torch.randint(0, 400, (1, 16), generator=generator)
        probabilities = logits[0].softmax(-1)
        entropy = -(probabilities * probabilities.clamp_min(1e-45).log()).sum(-1)
        accepted, total = set(), 0.0
        for position in entropy.argsort().tolist():
            if total > 2.0:
                break
            accepted.add(position)
            total += float(entropy[position])
        for position in range(10):
            source = drawn[position] if position in accepted else noise[0, position]
            current[0, position] = source
        assert current[0, :10].tolist() == actual.canvas[0, :10].tolist()
        assert logits[0, :10].argmax(-1).tolist() == actual.argmax_canvas[0, :10].tolist()
        conditioning = logits


def test_asking_about_some_positions_is_asking_about_all() -> None:
    """Logits at slots equal those of the whole canvas, rows with fewer slots filled up."""
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(0, 400, (2, 16), generator=generator)
    hole_mask = torch.zeros(2, 16, dtype=torch.bool)
    hole_mask[0, 2:9] = True
    hole_mask[1, [1, 12, 15]] = True
    canvas = Canvas(token_ids, hole_mask)
    slots = canvas.hole_slots()
    assert slots.shape == (2, 7)
    assert slots[0].tolist() == list(range(2, 9))
    assert {1, 12, 15} <= set(slots[1].tolist())
    noisy = torch.where(hole_mask, 17, token_ids)
    conditioning = canvas.restrict(torch.randn(2, 16, 400, generator=generator))
    index = slots[..., None].expand(-1, -1, 400)
    for belief, part in ((None, None), (conditioning, conditioning.gather(1, index))):
        expected = MODEL.denoise_logits(noisy, CACHE, belief).gather(1, index)
        actual = MODEL.denoise_logits(noisy, CACHE, part, slots)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_rows_can_be_left_behind() -> None:
    """What goes on does so from where it was, and the steps count on."""
    config = SamplerConfig(max_denoising_steps=4)
    hole_mask = torch.zeros(3, 16, dtype=torch.bool)
    for row, size in enumerate((3, 9, 6)):
        hole_mask[row, 2 : 2 + size] = True
    token_ids = torch.arange(48).view(3, 16)
    criteria = [StableText(2, [5])]
    generator = torch.Generator().manual_seed(1)
    steps = denoise(MODEL, CACHE, Canvas(token_ids, hole_mask), config, generator, criteria)
    first = next(steps)
    second = steps.send(torch.tensor([2, 0]))
    assert (first.step, second.step) == (0, 1)
    assert second.argmax_canvas.shape == (2, 16)
    clamped = ~hole_mask[[2, 0]]
    assert torch.equal(second.argmax_canvas[clamped], token_ids[[2, 0]][clamped])
    last = second
    for last in steps:
        assert last.argmax_canvas.shape == (2, 16)
    assert last.stop_reason is not None


def test_steps_run_out() -> None:
    """Without a criterion that is met, the last step says so."""
    config = SamplerConfig(max_denoising_steps=3, confidence_threshold=1e-9)
    steps = run(Canvas.open(1, 16, torch.device("cpu")), config)
    assert len(steps) == 3
    assert steps[-1].stop_reason is StopReason.MAX_STEPS
    assert [step.noise_proportion for step in steps] == pytest.approx([1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_denoising_steps", 0),
        ("t_min", 0.9),
        ("entropy_bound", 0.0),
        ("confidence_threshold", -1.0),
        ("stability_threshold", -1),
        ("stable_text_passes", -1),
        ("candidates", "best"),
    ],
)
def test_bad_sampler_settings_are_refused(field: str, value: object) -> None:
    """The message shows the value."""
    with pytest.raises(ConfigError, match=str(value)):
        dataclasses.replace(SamplerConfig(), **{field: value})
