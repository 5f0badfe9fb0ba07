"""Fills of several clients at once: each is the one that it would be alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    Decoder,
    DraftStep,
    HoleKind,
    InfillRequest,
    InfillResult,
    OutOfMemory,
    RequestError,
    StopReason,
)
from dgemma_engine import passes as passes_module
from dgemma_engine.batching import rows_that_gain
from dgemma_engine.device_loop import DeviceLoop
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.loops import Denoiser
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.passes import Pass, together
from dgemma_engine.special_tokens import SPECIAL_TOKENS
from dgemma_engine.types import ClientFill

from .tiny import CHAT_TOKENS, SAMPLE, build_model, sample_request, save_checkpoint

TOKENS = {"markers": SPECIAL_TOKENS, "chat": CHAT_TOKENS, "lengths": ()}
# Prompts from shorter than the sliding window of 24 tokens to many times as long; the last one has
# a shorter canvas, where the strategy can be told a length.
REQUESTS = (
    sample_request(),
    InfillRequest("x = ", "", language_id="python", max_tokens=20, seed=7),
    sample_request(prefix=SAMPLE * 3 + "def mul(a, b):\n    return ", kind=HoleKind.BLOCK),
    sample_request(kind=HoleKind.SELECTION, max_tokens=9, num_tokens=9, seed=3),
)


@pytest.fixture(scope="module", params=TOKENS)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusionEngine:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return build_engine(str(save_checkpoint(folder, TOKENS[request.param])), "cpu", "float32")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("marked"))), "cpu", "float32")


def diffused(*requests: InfillRequest) -> list[InfillRequest]:
    return [dataclasses.replace(request, decoder=Decoder.DIFFUSION) for request in requests]


def fill_many(
    engine: DiffusionEngine, calls: list[ClientFill]
) -> dict[int, InfillResult | Exception]:
    """The outcomes, in the order in which they came."""
    outcomes: dict[int, InfillResult | Exception] = {}
    engine.fill_many(calls, outcomes.__setitem__)
    assert sorted(outcomes) == list(range(len(calls)))
    return outcomes


def calls_of(requests: list[InfillRequest]) -> list[ClientFill]:
    return [ClientFill(f"client {index}", request) for index, request in enumerate(requests)]


def assert_same(expected: InfillResult, actual: InfillResult | Exception) -> None:
    """Equal but for rounding and for what the clock and the cache say."""
    assert isinstance(actual, InfillResult), actual
    for name in ("token_confidences", "prefix_confidences"):
        wanted = getattr(expected, name)
        assert getattr(actual, name) == pytest.approx(wanted, rel=1e-3, abs=1e-6), name
    for name in ("text", "token_ids", "token_ends", "decoder", "num_passes", "stop_reason"):
        assert getattr(actual, name) == getattr(expected, name), name
    assert actual.confidence == pytest.approx(expected.confidence, rel=1e-3, abs=1e-6)
    assert actual.mean_entropy == pytest.approx(expected.mean_entropy, rel=1e-3)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many canvases each decoder pass had."""
    rows: list[int] = []
    plain = DiffusionGemma.canvas_hidden

    def counted(model: DiffusionGemma, hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(hidden))
        return plain(model, hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusionGemma, "canvas_hidden", counted)
    return rows


# --- passes ---


def some_passes(model: DiffusionGemma, *, is_first: bool) -> list[Pass]:
    """Canvases of 16 over prefixes of 5 to 400 tokens, with 1 to 16 slots, one of two rows."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for length, num_slots, rows in ((5, 9, 1), (23, 16, 1), (24, 1, 2), (25, 4, 1), (400, 7, 1)):
        ids = torch.randint(0, 400, (1, length), generator=generator)
        canvas = torch.randint(0, 400, (rows, 16), generator=generator)
        slots = torch.arange(num_slots).expand(rows, -1) + 16 - num_slots
        logits = 3 * torch.randn((rows, num_slots, 400), generator=generator)
        found.append(Pass(canvas, model.prefill(ids), None if is_first else logits, slots))
    return found


@pytest.mark.parametrize("is_first", [True, False])
def test_a_row_in_a_batch_is_the_row_alone(is_first: bool, passes: list[int]) -> None:
    """Whatever the prefixes, the slots and the rows of the others are."""
    model = build_model(sliding_window=24)
    wanted = some_passes(model, is_first=is_first)
    expected = [one.alone(model) for one in wanted]
    passes.clear()
    actual = together(model, wanted)
    assert passes == [6]
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_one_pass_is_several(passes: list[int]) -> None:
    """First passes and later ones, canvases of other lengths, more logits than fit."""
    model = build_model()
    first, later = some_passes(model, is_first=True), some_passes(model, is_first=False)
    other = Pass(first[0].canvas[:, :8], first[0].cache, None, first[0].slots[:, :1] * 0)
    mixed = [first[0], later[1], other, later[0], first[3]]
    expected = [one.alone(model) for one in mixed]
    passes.clear()
    actual = together(model, mixed)
    assert sorted(passes) == [1, 2, 2]
    for one, found in zip(expected, actual, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-4)
    passes.clear()
    together(model, first, most_bytes=4 * 400 * 32)
    assert passes == [2, 4]  # 2 x 16 slots, 4 x 7


def test_without_memory_for_all_they_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    """A batch that does not fit costs time, no fill."""
    model = build_model()
    wanted = some_passes(model, is_first=False)
    expected = [one.alone(model) for one in wanted]

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(passes_module, "_joint", fail)
    for one, other in zip(expected, together(model, wanted), strict=True):
        assert torch.equal(one, other)


# --- fills ---


def test_a_fill_in_a_batch_is_the_fill_alone(engine: DiffusionEngine, passes: list[int]) -> None:
    """Text, tokens, passes and reasons are equal; the passes are shared."""
    requests = diffused(*REQUESTS)
    if engine.strategy.name == "chat":
        requests[3] = dataclasses.replace(requests[3], num_tokens=None)
    expected = [engine.fill(request) for request in requests]
    alone = len(passes)
    passes.clear()
    outcomes = fill_many(engine, calls_of(requests))
    for index, result in enumerate(expected):
        assert_same(result, outcomes[index])
    assert len(passes) <= alone / 2
    if engine.strategy.name == "chat":
        assert len(passes) == max(result.num_passes for result in expected)


def test_other_fills_go_beside(marked: DiffusionEngine) -> None:
    """Left to right, revised and by the strategy's choice: all the same as alone."""
    requests = [
        sample_request(decoder=Decoder.LEFT_TO_RIGHT),
        sample_request(draft="left + right", strength=0.5, seed=4),
        *REQUESTS,
    ]
    expected = [marked.fill(request) for request in requests]
    outcomes = fill_many(marked, calls_of(requests))
    for index, result in enumerate(expected):
        assert_same(result, outcomes[index])


def test_each_client_keeps_its_own_prompt(marked: DiffusionEngine) -> None:
    """The second batch encodes nothing again."""
    calls = calls_of(diffused(*REQUESTS))
    fill_many(marked, calls)
    for outcome in fill_many(marked, calls).values():
        assert isinstance(outcome, InfillResult)
        assert outcome.num_cached_tokens == outcome.num_context_tokens


def test_a_withdrawn_one_leaves_within_a_pass(marked: DiffusionEngine, passes: list[int]) -> None:
    """The others go on as if it had never been there."""
    requests = diffused(*REQUESTS[:3])
    expected = [marked.fill(request) for request in requests]
    token, steps = CancellationToken(), list[int]()

    def withdraw(step: DraftStep) -> None:
        steps.append(step.step)
        if step.step == 1:
            token.cancel()

    calls = calls_of(requests)
    calls[1] = dataclasses.replace(calls[1], on_step=withdraw, cancel=token)
    passes.clear()
    outcomes = fill_many(marked, calls)
    assert steps == [0, 1]
    assert isinstance(outcomes[1], Cancelled)
    assert passes[:3] == [3, 3, 2]
    assert next(iter(outcomes)) == 1
    assert_same(expected[0], outcomes[0])
    assert_same(expected[2], outcomes[2])


def test_a_deadline_is_one_fills_own(marked: DiffusionEngine) -> None:
    """It gets its draft after one pass, the others theirs after all."""
    late, on_time = diffused(sample_request(deadline=time.monotonic() - 1), REQUESTS[1])
    expected = marked.fill(on_time)
    outcomes = fill_many(marked, calls_of([late, on_time]))
    found = outcomes[0]
    assert isinstance(found, InfillResult)
    assert (found.stop_reason, found.num_passes) == (StopReason.DEADLINE, 1)
    assert list(outcomes) == [0, 1]
    assert_same(expected, outcomes[1])


def test_steps_go_to_whose_fill_it_is(marked: DiffusionEngine) -> None:
    """The drafts shown are those that are shown alone."""
    requests = diffused(*REQUESTS[:2])
    expected, actual = ([[], []], [[], []])  # type: tuple[list[list[str]], list[list[str]]]

    def into(texts: list[str]) -> Callable[[DraftStep], None]:
        return lambda step: texts.append(step.text)

    for request, texts in zip(requests, expected, strict=True):
        marked.fill(request, into(texts))
    calls = [
        dataclasses.replace(call, on_step=into(texts))
        for call, texts in zip(calls_of(requests), actual, strict=True)
    ]
    fill_many(marked, calls)
    assert actual == expected


def test_an_error_is_one_fills_own(marked: DiffusionEngine) -> None:
    """One that cannot be served, and one that fails in the middle."""

    def fail(step: DraftStep) -> None:
        raise ValueError(step.step)

    too_long = sample_request(draft=SAMPLE * 4)
    requests = [*diffused(*REQUESTS[:2]), too_long]
    expected = marked.fill(requests[0])
    calls = calls_of(requests)
    calls[1] = dataclasses.replace(calls[1], on_step=fail)
    outcomes = fill_many(marked, calls)
    assert isinstance(outcomes[2], RequestError)
    assert isinstance(outcomes[1], ValueError)
    assert_same(expected, outcomes[0])
    assert_same(expected, fill_many(marked, calls)[0])


def test_memory_that_one_lacks_is_its_own(
    marked: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client held is freed, and it is told; the other is filled."""
    requests = diffused(*REQUESTS[:2])
    expected = marked.fill(requests[1])
    plain = marked._diffusion.fill

    def fail(*arguments: object) -> object:
        if requests[0] in arguments:
            raise torch.OutOfMemoryError("no room")
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(marked._diffusion, "fill", fail)
    outcomes = fill_many(marked, calls_of(requests))
    assert isinstance(outcomes[0], OutOfMemory)
    assert "client 0" not in marked.caches.clients
    assert_same(expected, outcomes[1])


def test_prompts_beyond_the_plan_of_memory_wait(
    marked: DiffusionEngine, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one prompt the fills are done one after the other, all of them."""
    requests = diffused(*REQUESTS)
    expected = [marked.fill(request) for request in requests]
    monkeypatch.setattr(marked.caches, "max_bytes", 1)
    passes.clear()
    outcomes = fill_many(marked, calls_of(requests))
    assert set(passes) == {1}
    for index, result in enumerate(expected):
        assert_same(result, outcomes[index])


def held(engine: DiffusionEngine, client: str, token_ids: list[int]) -> int:
    """How many of the tokens a client's cache has."""
    return engine.caches.of(client).prompt.encode(token_ids)[1]


def test_what_is_written_is_in_the_own_cache(marked: DiffusionEngine) -> None:
    """Token by token, in step: accepting the fill costs no encoding."""
    exact = {"decoder": Decoder.LEFT_TO_RIGHT, "kind": HoleKind.LINE, "num_tokens": 5}
    requests = [dataclasses.replace(request, **exact) for request in REQUESTS[:2]]  # type: ignore[arg-type]
    outcomes = fill_many(marked, calls_of(requests))
    for index, request in enumerate(requests):
        outcome = outcomes[index]
        assert isinstance(outcome, InfillResult), outcome
        written = marked.strategy.plan(request).prompt_ids + list(outcome.token_ids)
        assert held(marked, f"client {index}", written) == len(written)


def test_what_goes_on_over_canvases_is_in_the_own_cache(tmp_path: Path) -> None:
    """All that the last of them goes on from."""
    folder = save_checkpoint(tmp_path / "chat", CHAT_TOKENS, canvas_length=16)
    engine = build_engine(str(folder), "cpu", "float32")
    engine.strategy._banned[list(engine.strategy.end_token_ids)] = True  # type: ignore[attr-defined]
    requests = [
        sample_request(kind=HoleKind.SELECTION, max_tokens=40),
        InfillRequest("x = ", "", HoleKind.SELECTION, max_tokens=40, seed=7),
    ]
    outcomes = fill_many(engine, calls_of(requests))
    for index, request in enumerate(requests):
        outcome = outcomes[index]
        assert isinstance(outcome, InfillResult), outcome
        assert len(outcome.token_ids) == 40
        before_last = engine.strategy.plan(request).prompt_ids + list(outcome.token_ids[:32])
        assert held(engine, f"client {index}", before_last) == len(before_last)


def test_two_of_one_client_are_refused(marked: DiffusionEngine) -> None:
    """Its cache holds one prompt."""
    call = ClientFill("a", REQUESTS[0])
    with pytest.raises(ValueError, match="one client"):
        marked.fill_many([call, call], lambda *_: None)


def test_it_draws_what_the_loop_on_the_device_draws(tmp_path: Path) -> None:
    """Where that loop fills alone, a batch begins with its noise and has its draws."""
    engine = build_engine(str(save_checkpoint(tmp_path / "model")), "cpu", "float32")
    engine._denoise = Denoiser(engine.model, DeviceLoop(engine.model))
    requests = diffused(*REQUESTS)
    expected = [engine.fill(request) for request in requests]
    assert "on the device" in engine._denoise.describe()
    outcomes = fill_many(engine, calls_of(requests))
    for index, result in enumerate(expected):
        assert_same(result, outcomes[index])


@pytest.mark.parametrize(
    ("device", "parameters", "expected"),
    [("cpu", 26_000_000_000, 1), ("cuda", 4_000_000, 1), ("cuda", 26_000_000_000, 4)],
)
def test_where_it_gains(device: str, parameters: int, expected: int) -> None:
    """Not on a CPU, and not for a model whose pass is its launches."""
    model = SimpleNamespace(device=torch.device(device), num_parameters=parameters)
    assert rows_that_gain(model) == expected  # type: ignore[arg-type]


def test_by_default_it_is_what_gains(marked: DiffusionEngine) -> None:
    """On a CPU one by one."""
    assert marked.most_at_once == 1
