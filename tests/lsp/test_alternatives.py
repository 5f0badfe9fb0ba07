"""What else the engine knows takes the place of what is broken, where a text was asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dgemma_engine import HoleKind, InfillRequest
from dgemma_engine.fake import FakeEngine
from dgemma_lsp.attempts import Outcome, attempts_at, make_attempts_at_once
from dgemma_lsp.context import ContextBudget, build_request
from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.fill import Filler
from dgemma_lsp.hole import Hole
from dgemma_lsp.postprocess import Rejection
from dgemma_lsp.scheduler import FillScheduler
from dgemma_lsp.settings import Settings

SNAPSHOT = DocumentSnapshot("file:///a.py", 1, "python", "x = \ny = 1\n")
HOLE = Hole(4, 4, HoleKind.LINE)
# What the engine says, what else it knows, what is offered, and how many alternatives each of the
# requests asks for.
CASES = {
    "sound": ("first", ["other"], "first", [0]),
    "broken": ("first second", ["a!", "other"], "other", [0, 7]),
    "closed": ("first second", ["f(x"], "f(x)", [0, 7]),
    "nothing else that is sound": ("first second", ["a!", "b!"], "first", [0, 7, 0]),
    "nothing else": ("first second", [], "first", [0, 0]),
}


async def fill(engine: FakeEngine, repairs: int, *, while_typing: bool) -> str | Rejection:
    scheduler = FillScheduler(lambda on_death: engine)
    try:
        return await Filler(scheduler).fill(
            SNAPSHOT, HOLE, Settings(repairs=repairs), while_typing=while_typing
        )
    finally:
        scheduler.close()


@pytest.mark.parametrize("name", CASES)
async def test_what_is_broken_gives_way(name: str) -> None:
    """Before it is repaired, or cut."""
    answer, others, expected, asked = CASES[name]
    engine = FakeEngine(lambda _: answer, alternatives=others)
    assert await fill(engine, 1, while_typing=False) == expected
    assert [request.num_alternatives for request in engine.requests] == asked


async def test_nothing_else_is_asked_for_while_typing() -> None:
    engine = FakeEngine(lambda _: "first second", alternatives=["other"])
    assert isinstance(await fill(engine, 0, while_typing=True), Rejection)
    assert [request.num_alternatives for request in engine.requests] == [0]


def make_all(
    engine: FakeEngine,
    request: InfillRequest,
    snapshot: DocumentSnapshot = SNAPSHOT,
    hole: Hole = HOLE,
) -> Outcome:
    attempts = attempts_at(snapshot, hole, request, repairs=0)
    return make_attempts_at_once(attempts, lambda attempt: engine.fill(attempt.request))


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("x = f(║)\n", ")", "other"),  # it only repeats what follows
        ("def ║\ny = 1\n", "g", "g(): pass"),  # no worse than any name is, but there is better
        ("def ║\ny = 1\n", "other", "g(): pass"),
        ("x = ║\n", "other", "other"),
        ("x = y║\n", "", None),  # nothing is to be said
    ],
)
def test_another_text_takes_the_place_of(text: str, answer: str, expected: str | None) -> None:
    """The first that leaves fewer errors; of what is as good as it can be nothing does."""
    before, after = text.split("║")
    snapshot = DocumentSnapshot("file:///a.py", 1, "python", before + after)
    hole = Hole(len(before), len(before), HoleKind.LINE)
    engine = FakeEngine(lambda _: answer, alternatives=["other", "g(): pass", "h(): pass"])
    request = build_request(snapshot, hole, ContextBudget())
    offer, _ = make_all(engine, request, snapshot, hole)
    assert expected == (None if isinstance(offer, Rejection) else offer[0])


@pytest.mark.parametrize("change", [{"kind": HoleKind.BLOCK}, {"num_tokens": 2}])
def test_only_a_line_of_unknown_length_has_others(change: dict[str, Any]) -> None:
    """The result tells of the text that is offered, and of the work for all."""
    engine = FakeEngine(lambda _: "first second", alternatives=["other"])
    request = build_request(SNAPSHOT, HOLE, ContextBudget())
    offer, result = make_all(engine, request)
    assert offer == ["other"]
    assert (result.text, result.confidence, result.num_passes) == ("other", 0.5, 8)
    offer, result = make_all(engine, dataclasses.replace(request, **change))
    assert offer == ["first"]
    assert (result.text, result.num_passes) == ("first second", 4)


def test_a_decoder_that_knows_no_others_is_not_asked() -> None:
    engine = FakeEngine(lambda _: "first second")
    make_all(engine, build_request(SNAPSHOT, HOLE, ContextBudget()))
    assert len(engine.requests) == 1
