"""Scores of single fills, means with their intervals, and the choice of a threshold."""

from __future__ import annotations

import dataclasses

import pytest

from dgemma_engine import HoleKind, InfillRequest
from dgemma_engine.copying import copy_from_context
from dgemma_engine.fake import FakeEngine
from dgemma_lsp.evaluation.coverage import choose_threshold, examine, point, shown_text
from dgemma_lsp.evaluation.holes import EvalHole
from dgemma_lsp.evaluation.methods import METHODS, Answer, Question, answer
from dgemma_lsp.evaluation.metrics import Share, lexical_tokens, score_fill, summarise


def hole(before: str, middle: str, after: str) -> EvalHole:
    kind = HoleKind.BLOCK if "\n" in middle else HoleKind.LINE
    return EvalHole("a.py", "rest of line", before, middle, after, kind)


def given(text: str, confidence: float = 1.0) -> Answer:
    engine = FakeEngine(lambda _: text, confidence=confidence)
    return Answer(text, text, 4, 10.0, engine.fill(InfillRequest("", "")))


CALL = hole("x = f(", "a, b", ")\n")


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("a, b", "exact", True),
        (" a, b ", "exact", True),
        ("a, c", "exact", False),
        ("a, c", "first", True),
        ("c", "first", False),
        ("a, c", "similarity", 0.75),
        ("a", "length_error", -2),
        ("a, b, c", "length_error", 2),
        ("a, b", "parses", True),
        ("a, (b", "parses", False),
        ("a, b)", "repeats", True),
        ("a, (b)", "repeats", False),
        ("a, b", "shown_exact", True),
    ],
)
def test_a_fill_is_scored(text: str, field: str, expected: object) -> None:
    """Each score sees what it is there for."""
    assert getattr(score_fill(CALL, given(text)), field) == expected


def test_a_repeated_line_is_seen() -> None:
    """A fill that ends in the next line of the file says it twice."""
    place = hole("def f():\n    ", "a = 1", "\n    return a\n")
    assert score_fill(place, given("a = 1\n    return a")).repeats
    assert not score_fill(place, given("a = 2")).repeats


def test_lexical_tokens_are_words_and_signs() -> None:
    """Line breaks count, other white space does not."""
    assert lexical_tokens("x.y = (1,\n  é2)") == [*list("x.y=(1,\n"), "é2", ")"]


def test_shares_say_how_sure_they_are() -> None:
    """The interval holds the share, stays in 0 .. 100 and narrows with the count."""
    few, many = Share.of([True, False] * 5), Share.of([True, False] * 500)
    assert few.percent == many.percent == 50.0
    assert few.low < many.low < 50.0 < many.high < few.high
    # Wilson's interval of 0 of 10, from the literature: 0 to 27.8 %.
    nothing = Share.of([False] * 10)
    assert (nothing.percent, nothing.low, nothing.high) == (0.0, 0.0, 27.8)
    with pytest.raises(ValueError, match="nothing"):
        Share.of([])


def test_a_row_sums_up_its_fills() -> None:
    """Percentages over all holes, times as median and 95th percentile."""
    answers = [dataclasses.replace(given("a, b"), milliseconds=float(ms)) for ms in range(1, 20)]
    answers.append(dataclasses.replace(given("a, x)"), milliseconds=1000.0))
    row = summarise([CALL] * 20, answers)
    assert row["exact_match"] == 95.0
    assert row["repeats"] == 5.0
    assert (row["median_ms"], row["p95_ms"]) == (10.5, 19.0)
    assert row["mean_length_error"] == 0.05


@pytest.mark.parametrize("method", METHODS)
def test_every_method_asks_as_it_says(method: str) -> None:
    """What the engine is told differs by method, and only where it should."""
    engine = FakeEngine(lambda _: "a, b")
    question = Question(CALL.request(), CALL.snapshot, CALL.hole, CALL.middle)
    own = answer(method, engine, question)
    if method == "copy":
        assert not engine.requests
        return
    (asked,) = engine.requests
    assert own.text == "a, b"
    assert asked.prefix == CALL.before
    assert (asked.suffix == "") == (method == "left to right, no suffix")
    assert (asked.num_tokens == 2) == (method == "diffusion, length known")
    assert asked.decoder.value == {"auto": "auto", "diffusion": "diffusion"}.get(
        method.partition(",")[0], "left_to_right"
    )


def test_copying_continues_as_the_text_did_before() -> None:
    """The longest match decides, the latest of equal ones; the suffix ends the copy."""
    prefix = "self.left = left\nself.top = top\nself.le"
    assert copy_from_context(InfillRequest(prefix, "\n")) == "ft = left"
    assert copy_from_context(InfillRequest("f(abc, def)\nf(abc", ")\n")) == ", def"
    assert copy_from_context(InfillRequest("nothing like it 12", "")) == ""


def test_only_the_confident_are_shown() -> None:
    """Coverage counts what is shown, precision what of it the true text begins with."""
    holes = [CALL] * 4
    answers = [given("a, b", 0.9), given("a,", 0.8), given("wrong", 0.6), given("also", 0.1)]
    all_shown, half_shown = point(holes, answers, 0.0), point(holes, answers, 0.7)
    assert (all_shown.coverage, all_shown.precision, all_shown.whole) == (100.0, 50.0, 25.0)
    assert (half_shown.coverage, half_shown.precision) == (50.0, 100.0)
    assert half_shown.mean_characters == 3.0
    assert shown_text(CALL, given("a, b", 0.5), 0.6) is None


def test_the_threshold_is_judged_on_other_holes() -> None:
    """Fitted on the even holes, judged on the odd ones; none where nothing is right."""
    holes = [CALL] * 200
    answers = [
        given("a, b", 0.9) if index % 4 < 2 else given("wrong", 0.3 if index % 8 < 4 else 0.5)
        for index in range(200)
    ]
    found = examine(holes, answers)
    assert found["threshold"] == 0.2, "half are right above the lowest threshold"
    answers = [given("a, b", 0.9) if i % 8 < 2 else given("wrong", 0.4) for i in range(200)]
    found = examine(holes, answers)
    assert found["threshold"] == 0.41
    assert found["judged"]["precision"] == 100.0
    assert found["judged"]["coverage"] == 25.0
    wrong = [point(holes[:9], [given("wrong", 0.9)] * 9, threshold) for threshold in (0.1, 0.5)]
    assert choose_threshold(wrong) is None
