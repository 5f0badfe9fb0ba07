"""Requests to fills: determinism, cancellation, deadlines, the shapes of holes, every strategy."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    ContextTooLong,
    Decoder,
    DraftStep,
    HoleKind,
    RequestError,
    StopReason,
)
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.special_tokens import SPECIAL_TOKENS
from dgemma_engine.strategies import ChatStrategy
from dgemma_engine.types import ChatRequest, Role

from .tiny import CHAT_TOKENS, SAMPLE, save_checkpoint
from .tiny import sample_request as request

PLAIN_TOKENS = ("<pad>", "<eos>", "<bos>")
STRATEGIES = {
    "markers": SPECIAL_TOKENS,
    "chat": CHAT_TOKENS,
    "lengths": PLAIN_TOKENS,
    "lengths_of_chat": CHAT_TOKENS,
}


@pytest.fixture(scope="module", params=STRATEGIES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusionEngine:
    folder = save_checkpoint(tmp_path_factory.mktemp("tiny"), STRATEGIES[request.param])
    name = "lengths" if request.param == "lengths_of_chat" else "auto"
    return build_engine(str(folder), strategy=name)


@pytest.fixture(scope="module")
def marker_engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("tiny"))))


def test_a_seed_fixes_the_fill(engine: DiffusionEngine) -> None:
    """The same request gives the same fill, on a warm cache as on a cold one."""
    first = engine.fill(request(kind=HoleKind.BLOCK, seed=1))
    engine.fill(request(prefix="def other():\n    ", seed=2))
    again = engine.fill(request(kind=HoleKind.BLOCK, seed=1))
    other = engine.fill(request(kind=HoleKind.BLOCK, seed=5))
    assert first.text == again.text
    assert first.token_ids == again.token_ids
    assert (first.text, first.token_confidences) != (other.text, other.token_confidences)


def test_result_is_consistent(engine: DiffusionEngine) -> None:
    """Lengths, confidences, passes and times of a result agree with each other."""
    result = engine.fill(request())
    assert len(result.token_ids) == len(result.token_confidences) <= 20
    assert all(0.0 <= confidence <= 1.0 for confidence in result.token_confidences)
    assert result.num_passes >= 1
    assert result.mean_entropy >= 0.0
    assert result.timings.total_ms > 0
    assert result.timings.encode_ms <= result.timings.total_ms
    assert 0 <= result.num_cached_tokens <= result.num_context_tokens


def test_a_line_holds_no_line_break(engine: DiffusionEngine) -> None:
    """Whatever the model drafts, a line fill ends where the line does."""
    for seed in range(6):
        assert "\n" not in engine.fill(request(kind=HoleKind.LINE, seed=seed)).text


def test_specials_never_reach_the_text(engine: DiffusionEngine) -> None:
    """No special token's name is in a fill."""
    for seed in range(4):
        text = engine.fill(request(kind=HoleKind.BLOCK, seed=seed)).text
        assert not any(token in text for token in (*SPECIAL_TOKENS, *CHAT_TOKENS))


def test_steps_are_reported(engine: DiffusionEngine) -> None:
    """Each pass is told once, the last draft is the fill."""
    steps = []
    result = engine.fill(request(kind=HoleKind.BLOCK, max_tokens=500), on_step=steps.append)
    assert steps[0].step == 0
    assert steps[0].max_steps == 6
    assert len(steps) <= result.num_passes
    assert steps[-1].text == result.text


def test_cancelled_fill_leaves_the_cache_usable(engine: DiffusionEngine) -> None:
    """Cancelling after one pass raises, and the next fill is what it would have been."""
    expected = engine.fill(request(seed=3))
    cancel = CancellationToken()
    with pytest.raises(Cancelled):
        engine.fill(
            request(prefix=SAMPLE[:60], seed=9), on_step=lambda _: cancel.cancel(), cancel=cancel
        )
    again = engine.fill(request(seed=3))
    assert expected.text == again.text
    assert expected.token_ids == again.token_ids


def test_cancelled_before_it_starts(engine: DiffusionEngine) -> None:
    """A request withdrawn while it waited costs nothing."""
    cancel = CancellationToken()
    cancel.cancel()
    steps: list[object] = []
    with pytest.raises(Cancelled):
        engine.fill(request(), on_step=steps.append, cancel=cancel)
    assert steps == []


def test_deadline_returns_the_draft_at_hand(engine: DiffusionEngine) -> None:
    """A deadline that has passed still gives one pass and its draft."""
    result = engine.fill(request(deadline=time.monotonic()))
    assert result.stop_reason is StopReason.DEADLINE
    assert result.num_passes <= 2, "one pass, and one that ranks lengths"


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("", "x"), ("x", ""), ("é😋", "\r\n")])
def test_empty_sides(engine: DiffusionEngine, prefix: str, suffix: str) -> None:
    """A hole at either end of a text, or in an empty one, is filled like any other."""
    result = engine.fill(request(prefix=prefix, suffix=suffix))
    assert result.num_passes >= 1


def test_typing_encodes_only_what_was_typed(marker_engine: DiffusionEngine) -> None:
    """One more character re-encodes a token or two, not the prefix."""
    marker_engine.fill(request())
    typed = request().prefix + "f"
    result = marker_engine.fill(request(prefix=typed))
    assert result.num_context_tokens - result.num_cached_tokens <= 2
    assert result.num_cached_tokens > 20


def test_cut_token_is_healed(marker_engine: DiffusionEngine) -> None:
    """The first token goes on from the one that the cursor cut; the text holds only the rest."""
    tokenizer = marker_engine.tokenizer
    for prefix in ("return lef", "    de", "x = prin", "for index in ran"):
        last = tokenizer.token_bytes(tokenizer.encode(prefix)[-1])
        for seed in range(5):
            result = marker_engine.fill(request(prefix=prefix, seed=seed))
            if result.token_ids:
                assert tokenizer.token_bytes(result.token_ids[0]).startswith(last)
                spelled = tokenizer.decode_bytes(result.token_ids).removeprefix(last)
                assert spelled.decode("utf-8", errors="ignore").startswith(result.text)


def test_max_tokens_is_kept(engine: DiffusionEngine) -> None:
    """A fill has no more tokens than were asked for."""
    for max_tokens in (1, 3):
        result = engine.fill(request(kind=HoleKind.SELECTION, max_tokens=max_tokens))
        assert len(result.token_ids) <= max_tokens


def test_chat_goes_on_over_several_canvases(tmp_path: Path) -> None:
    """A reply longer than one canvas is continued on the next."""
    folder = save_checkpoint(tmp_path, CHAT_TOKENS, canvas_length=16)
    engine = build_engine(str(folder))
    # A random model seldom ends a turn; forbid it, so that only max_tokens ends the reply.
    engine.strategy.end_token_ids = ()
    engine.strategy._banned[torch.tensor([0, 1, 4])] = True  # type: ignore[attr-defined]
    engine._diffusion._read = _never_ended(engine)  # type: ignore[method-assign]
    result = engine.fill(request(kind=HoleKind.SELECTION, max_tokens=40))
    assert len(result.token_ids) == 40
    assert result.num_passes > 6


def _never_ended(engine: DiffusionEngine):  # type: ignore[no-untyped-def]
    read = engine._diffusion._read
    return lambda *arguments: read(*arguments)._replace(has_ended=False)


def test_strategy_is_chosen_by_the_tokenizer(tmp_path: Path) -> None:
    """Markers, turns or neither; a strategy that does not suit is refused by name."""
    for tokens, expected in (
        (SPECIAL_TOKENS, "markers"),
        (CHAT_TOKENS, "chat"),
        (PLAIN_TOKENS, "lengths"),
    ):
        folder = save_checkpoint(tmp_path / expected, tokens)
        assert build_engine(str(folder)).info.strategy == expected
    with pytest.raises(CheckpointError, match="'chat' does not suit"):
        build_engine(str(folder), strategy="chat")


def test_too_long_a_context_is_refused(tmp_path: Path) -> None:
    """A strategy that cannot cut says by how much it is too long."""
    engine = build_engine(str(save_checkpoint(tmp_path, CHAT_TOKENS)))
    with pytest.raises(ContextTooLong, match="exceed the model's 1024"):
        engine.fill(request(prefix="x = 1\n" * 1000))


def test_long_context_is_cut_by_markers(marker_engine: DiffusionEngine) -> None:
    """Our own models read the nearest part of any length of text."""
    result = marker_engine.fill(request(prefix="x = 1\n" * 5000, suffix="y = 2\n" * 5000))
    assert result.num_context_tokens < 420


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_bad_requests_are_refused(changes: dict[str, object], message: str) -> None:
    """At construction, with the value."""
    with pytest.raises(RequestError, match=message):
        request(**changes)


def test_layout_of_the_checkpoint_is_read(tmp_path: Path) -> None:
    """`infill_config.json` sets the layout and the sampler; an unknown key is refused."""
    folder = save_checkpoint(tmp_path)
    config = {"layout": {"prefix_tokens": 40}, "sampler": {"max_denoising_steps": 2}}
    (folder / "infill_config.json").write_text(json.dumps(config))
    result = build_engine(str(folder)).fill(request(prefix="x = 1\n" * 100, suffix=""))
    assert result.num_context_tokens <= 44
    assert result.num_passes <= 2
    (folder / "infill_config.json").write_text(json.dumps({"layout": {"depth": 3}}))
    with pytest.raises(CheckpointError, match="depth"):
        build_engine(str(folder))


def test_a_draft_is_revised(engine: DiffusionEngine) -> None:
    """Half of its schedule is run, the seed fixes what comes, and a fill after it is as ever."""
    plain = engine.fill(request(seed=1)).text
    draft = "x + y * z"
    revised = request(draft=draft, strength=0.5, seed=3)
    steps: list[DraftStep] = []
    first, again = engine.fill(revised, steps.append), engine.fill(revised)
    assert first.text == again.text
    assert first.decoder is Decoder.DIFFUSION
    assert steps[0].step == steps[0].max_steps // 2
    assert plain == engine.fill(request(seed=1)).text


@pytest.mark.parametrize(("strength", "prefers_draft"), [(0.5, True), (0.5, False), (1.0, True)])
def test_the_judge_decides_between_draft_and_revision(
    marker_engine: DiffusionEngine,
    monkeypatch: pytest.MonkeyPatch,
    strength: float,
    prefers_draft: bool,
) -> None:
    """Unless all of it was to be new; the confidences are of the text that was taken."""
    draft, judged = "x + y * z", []

    def scores(prompt: object, texts: list[str]) -> list[float]:
        judged.append(texts)
        return [1.0, 0.0] if prefers_draft else [0.0, 1.0]

    monkeypatch.setattr(marker_engine._judge, "scores", scores)
    result = marker_engine.fill(request(draft=draft, strength=strength))
    assert bool(judged) == (strength < 1.0)
    assert (result.text == draft) == (strength < 1.0 and prefers_draft)
    assert len(result.token_ids) == len(result.prefix_confidences)


def test_a_draft_that_does_not_fit_is_refused(marker_engine: DiffusionEngine) -> None:
    """With its length and the limit."""
    with pytest.raises(RequestError, match=r"has \d+ tokens, the canvas holds \d+"):
        marker_engine.fill(request(draft="x + " * 500))


def test_a_draft_needs_diffusion_and_a_strength() -> None:
    """Refused at construction, with the value."""
    with pytest.raises(RequestError, match="by diffusion only"):
        request(draft="x", decoder=Decoder.LEFT_TO_RIGHT)
    with pytest.raises(RequestError, match=r"at most 1, got 1\.5"):
        request(draft="x", strength=1.5)


def test_what_is_rendered_is_what_is_read(engine: DiffusionEngine) -> None:
    """Prompt and canvas, with the text on both sides and the slots counted."""
    shown = engine.render(request())
    prompt, _, canvas = shown.partition("canvas:\n")
    assert prompt.startswith("prompt (")
    assert "slots to fill⟩" in canvas
    assert request().suffix.split()[0] in shown


def test_a_conversation_is_gone_on_with(tmp_path: Path) -> None:
    """Canvas by canvas until it is long enough; what was shown before a step 0 stays."""
    engine = build_engine(str(save_checkpoint(tmp_path / "chat", CHAT_TOKENS)), "cpu", "float32")
    assert isinstance(engine.strategy, ChatStrategy)
    turns = ((Role.SYSTEM, "Be brief."), (Role.USER, "def add(left,"), (Role.ASSISTANT, "x"))
    request = ChatRequest((*turns, (Role.USER, "print(index)")), max_tokens=100)
    steps: list[DraftStep] = []
    result = engine.chat(request, steps.append)
    assert result.text == engine.chat(request).text
    assert result.text != engine.chat(dataclasses.replace(request, seed=1)).text
    begins = [index for index, step in enumerate(steps) if step.step == 0 and index > 0]
    for index in begins:
        assert all(step.text.startswith(steps[index - 1].text) for step in steps[index:])
    prompt = engine.tokenizer.render(engine.strategy.plan_reply(request).prompt_ids)
    assert prompt.startswith("<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\ndef add(left,")
    assert "<|turn>model\nx<turn|>\n" in prompt
    assert prompt.endswith("<|turn>model\n<|channel>thought\n<channel|>")


def test_a_model_that_fills_holes_does_not_chat() -> None:
    """It says so, and what it can do."""
    with pytest.raises(RequestError, match="fills holes and does not chat"):
        build_engine().chat(ChatRequest(((Role.USER, "hello"),)))
    with pytest.raises(RequestError, match="must be the user's"):
        ChatRequest(((Role.ASSISTANT, "hello"),))
