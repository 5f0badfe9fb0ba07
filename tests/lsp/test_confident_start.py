"""How much of an unasked-for fill is offered."""

from __future__ import annotations

import dataclasses

import pytest

from dgemma_engine import HoleKind, InfillRequest, InfillResult
from dgemma_engine.fake import FakeEngine
from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.fill import Filler
from dgemma_lsp.hole import Hole
from dgemma_lsp.postprocess import Rejection, RejectReason, confident_starts, first_that_fits
from dgemma_lsp.scheduler import FillScheduler
from dgemma_lsp.settings import Settings

BLANK = FakeEngine(lambda _: "").fill(InfillRequest("", ""))


def result_of(*tokens: tuple[str, float]) -> InfillResult:
    """A fill of tokens, each with the chance of the text up to its end."""
    ends, text = [], ""
    for token, _ in tokens:
        text += token
        ends.append(len(text))
    return dataclasses.replace(
        BLANK,
        text=text,
        token_ends=tuple(ends),
        prefix_confidences=tuple(chance for _, chance in tokens),
        confidence=tokens[-1][1] / 2,
    )


FILL = result_of(("self", 0.9), (".na", 0.8), ("me", 0.75), (" +", 0.4), (" other", 0.1))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, "self.name + other"),  # everything, whatever its chances
        (0.05, "self.name + other"),
        (0.3, "self.name +"),
        (0.5, "self.name"),
        (0.77, "self"),  # not "self.na": a name is offered whole
        (0.9, "self"),
        (0.95, RejectReason.LOW_CONFIDENCE),
    ],
)
def test_the_start_that_is_likely_enough(threshold: float, expected: str | RejectReason) -> None:
    """The longest start above the threshold, no word cut in two."""
    outcome = confident_starts(FILL, threshold)
    assert expected == (outcome.reason if isinstance(outcome, Rejection) else outcome[0])


@pytest.mark.parametrize("above", ["# It can't be.\n", "# It can.\n", '"""Nor this.\n'])
def test_no_start_ends_within_a_string(above: str) -> None:
    """Whatever odd quotes stand on other lines."""
    before = above + "if x in ('GET'"  # does not parse as it is
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", before + ":\n    pass\n")
    hole = Hole(len(before), len(before), HoleKind.LINE)
    starts = [", 'HEAD", ", b"]
    assert first_that_fits(snapshot, hole, starts, ", 'HEAD'") == ", b"
    assert first_that_fits(snapshot, hole, [", 'HEAD'"], ", 'HEAD'") == ", 'HEAD'"


def test_a_lone_bracket_is_no_suggestion() -> None:
    """Unless it is all there is to say."""
    start = confident_starts(result_of(("(", 0.9), ("other", 0.1)), 0.5)
    assert isinstance(start, Rejection)
    assert "other" not in start.detail, "a rejection's detail goes to the log and holds no code"
    assert confident_starts(result_of((")", 0.9)), 0.5) == [")"]


@pytest.mark.parametrize(
    ("min_confidence", "while_typing", "expected"),
    [(None, True, "right"), (90, True, None), (90, False, "right"), (0, True, "right")],
)
async def test_only_what_nobody_asked_for_is_gated(
    min_confidence: int | None, while_typing: bool, expected: str | None
) -> None:
    """The user's own threshold, else the checkpoint's; a fill that was asked for comes whole."""
    scheduler = FillScheduler(lambda on_death: FakeEngine(lambda _: "right", confidence=0.6))
    filler = Filler(scheduler)
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", "x = ")
    try:
        outcome = await filler.fill(
            snapshot,
            Hole(4, 4, HoleKind.LINE),
            Settings(min_confidence=min_confidence),
            while_typing=while_typing,
        )
    finally:
        scheduler.close()
    assert expected == (None if isinstance(outcome, Rejection) else outcome)
    assert filler.rejections[RejectReason.LOW_CONFIDENCE] == (expected is None)


async def test_the_checkpoints_threshold_is_the_default() -> None:
    """It comes with the engine, and goes with it."""

    class Choosy(FakeEngine):
        @property
        def info(self):  # type: ignore[no-untyped-def]
            return dataclasses.replace(super().info, confidence_threshold=0.7)

    scheduler = FillScheduler(lambda on_death: Choosy(lambda _: "right", confidence=0.6))
    filler = Filler(scheduler)
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", "x = ")
    hole = Hole(4, 4, HoleKind.LINE)
    try:
        first = await filler.fill(snapshot, hole, Settings(), while_typing=True)
        scheduler.use(lambda on_death: FakeEngine(lambda _: "right", confidence=0.6))
        second = await filler.fill(snapshot, hole, Settings(), while_typing=True)
    finally:
        scheduler.close()
    assert isinstance(first, Rejection)
    assert second == "right"


@pytest.mark.parametrize(("while_typing", "expected"), [(True, 0.3), (False, 0.0)])
async def test_the_engine_need_not_write_what_is_not_shown(
    while_typing: bool, expected: float
) -> None:
    """It is told what is of use while typing; what is asked for is wanted whole."""
    engine = FakeEngine(lambda _: "right")
    scheduler = FillScheduler(lambda on_death: engine)
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", "x = ")
    settings = Settings(min_confidence=30)
    try:
        await Filler(scheduler).fill(
            snapshot, Hole(4, 4, HoleKind.LINE), settings, while_typing=while_typing
        )
    finally:
        scheduler.close()
    assert [request.least_confidence for request in engine.requests] == [expected]


async def test_the_decoder_is_the_users_choice() -> None:
    """What the settings say reaches the engine."""
    engine = FakeEngine(lambda _: "right")
    scheduler = FillScheduler(lambda on_death: engine)
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", "x = ")
    hole = Hole(4, 4, HoleKind.LINE)
    try:
        for decoder in ("auto", "left_to_right"):
            settings = Settings(decoder=decoder)
            await Filler(scheduler).fill(snapshot, hole, settings, while_typing=False)
    finally:
        scheduler.close()
    assert [request.decoder.value for request in engine.requests] == ["auto", "left_to_right"]
