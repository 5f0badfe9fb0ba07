"""What the model reads: budgets keep to line edges, separators become one."""

from __future__ import annotations

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.context import ContextBudget, build_request
from dgemma_lsp.hole import Hole

from .drawn import read_span, snapshot


def request(drawn: str, budget: ContextBudget):  # type: ignore[no-untyped-def]
    text, start, end = read_span(drawn)
    return build_request(snapshot(text), Hole(start, end, HoleKind.LINE), budget)


def test_within_budget_everything_is_read() -> None:
    """Both sides as they are, without what the hole covers."""
    made = request("a = 1\nb = «old»\nc = 3\n", ContextBudget())
    assert (made.prefix, made.suffix) == ("a = 1\nb = ", "\nc = 3\n")
    assert made.language_id == "python"


@pytest.mark.parametrize("separator", ["\r\n", "\r"])
def test_the_model_sees_one_separator(separator: str) -> None:
    """Both sides have line feeds only, over the budget or within it."""
    lines = separator.join(f"line {number}" for number in range(50))
    made = request(f"{lines}«»{lines}", ContextBudget(100, 100))
    assert "\r" not in made.prefix + made.suffix
    assert 0 < made.prefix.count("\n") < 50
    assert len(made.prefix) <= 100
    assert len(made.suffix) <= 100


def test_a_cut_prefix_begins_at_a_line() -> None:
    """And ends where the hole is; a cut suffix ends at a line."""
    made = request("one\ntwo\nthree «» four\nfive\nsix\n", ContextBudget(9, 8))
    assert (made.prefix, made.suffix) == ("three ", " four\n")


def test_a_line_longer_than_the_budget_is_cut_inside() -> None:
    """A file of one line still has context."""
    made = request("a" * 50 + "«»" + "b" * 50, ContextBudget(10, 5))
    assert (made.prefix, made.suffix) == ("a" * 10, "b" * 5)


def test_a_budget_of_nothing() -> None:
    """Nothing is read; a negative budget is refused."""
    made = request("a\nb«»c\nd", ContextBudget(0, 0))
    assert (made.prefix, made.suffix) == ("", "")
    with pytest.raises(ValueError, match="prefix_chars must not be negative, got -1"):
        ContextBudget(prefix_chars=-1)


def test_what_is_put_around_the_fill_is_read() -> None:
    """As if it stood there, with line feeds."""
    hole = Hole(8, 8, HoleKind.BLOCK, before="\r\n    ", after="\r\n")
    made = build_request(snapshot("def f():\r\nx = 1"), hole, ContextBudget())
    assert (made.prefix, made.suffix) == ("def f():\n    ", "\n\nx = 1")


def test_a_long_prefix_begins_with_a_statement() -> None:
    """Of the outermost level, if there is one in its first half; else with a line."""
    body = "".join(f"    x{number} = {number}\n" for number in range(6))
    text = "".join(f"def f{number}():\n{body}" for number in range(4)) + "y = "
    hole = Hole(len(text), len(text), HoleKind.LINE)
    length = len(f"def f0():\n{body}")

    def prefix(budget: int) -> str:
        request = build_request(snapshot(text), hole, ContextBudget(prefix_chars=budget))
        return request.prefix

    assert prefix(2 * length + 30).startswith("def f2():\n")
    assert prefix(length - 10).startswith("    x")
    assert prefix(10_000) == text
