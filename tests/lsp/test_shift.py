"""A suggestion that comes late: what is left of it, or why nothing is."""

from __future__ import annotations

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.hole import Hole
from dgemma_lsp.postprocess import Rejection, RejectReason
from dgemma_lsp.shift import shift_suggestion

from .drawn import draw_span, read_span, snapshot

# asked, suggestion, document now -> hole now and rest, or None where nothing can be offered
CASES = {
    "nothing was typed": ("x = «»\ny", "f(1)", "x = \ny", ("x = «»\ny", "f(1)")),
    "its beginning was typed": ("x = «»\ny", "f(1)", "x = f(\ny", ("x = f(«»\ny", "1)")),
    "a hole over blanks": ("x = «  »\ny", "f(1)", "x = f  \ny", ("x = f«  »\ny", "(1)")),
    "a line break of Windows was typed": ("«»", "a\nb", "a\r\n", ("a\r\n«»", "b")),
    "all of it was typed": ("x = «»\ny", "f(1)", "x = f(1)\ny", None),
    "something else was typed": ("x = «»\ny", "f(1)", "x = g\ny", None),
    "a character was deleted": ("x = «»\ny", "f(1)", "x =\ny", None),
    "an edit before it": ("x = «»\ny", "f(1)", "z\nx = \ny", None),
    "an edit behind it": ("x = «»\ny", "f(1)", "x = \nyy", None),
}


@pytest.mark.parametrize("name", CASES)
def test_late_suggestion(name: str) -> None:
    """It is carried over only if what was typed is its beginning."""
    drawn, suggestion, now, expected = CASES[name]
    text, start, end = read_span(drawn)
    hole = Hole(start, end, HoleKind.LINE)
    outcome = shift_suggestion(snapshot(text), hole, suggestion, snapshot(now))
    if isinstance(outcome, Rejection):
        assert expected is None
        assert outcome.reason is RejectReason.STALE
    else:
        shifted, rest = outcome
        assert expected == (draw_span(now, shifted.start, shifted.end), rest)
