"""Where a cursor or a selection makes a hole, drawn."""

from __future__ import annotations

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.hole import Hole, HoleRole, find_holes, select_hole, selection_hole

from .drawn import draw_span, read_cursor, read_span, snapshot

LINE, BLOCK, SELECTION = HoleKind.LINE, HoleKind.BLOCK, HoleKind.SELECTION

CURSORS = {
    "end of a line": ("x = ║\ny = 1\n", "x = «»\ny = 1\n", LINE),
    "blanks behind the cursor are replaced": ("x = ║  \ny\n", "x = «  »\ny\n", LINE),
    "middle of a line": ("f(║, b)\n", "f(«», b)\n", LINE),
    "middle of a word": ("pri║nt(x)\n", "pri«»nt(x)\n", LINE),
    "blank line of a body": ("def f(x):\n    ║\n", "def f(x):\n    «»\n", BLOCK),
    "indentation behind the cursor": ("def f(x):\n  ║  \n", "def f(x):\n  «  »\n", BLOCK),
    "empty document": ("║", "«»", BLOCK),
    "end of the document": ("x = 1\n║", "x = 1\n«»", BLOCK),
    "line of a file from Windows": ("x = ║\r\ny = 1\r\n", "x = «»\r\ny = 1\r\n", LINE),
    "line behind an old Mac's separator": ("x\r  ║\ry", "x\r  «»\ry", BLOCK),
    "form feed is no separator": ("\x0cx = ║\n", "\x0cx = «»\n", LINE),
    "emoji before the cursor": ("s = '😋' + ║\n", "s = '😋' + «»\n", LINE),
}

MARKERS = {
    "dots as a body": ("def f():\n    ..║.\n", "def f():\n    «...»\n", BLOCK),
    "pass as a body, cursor behind": ("def f():\n    pass║\n", "def f():\n    «pass»\n", BLOCK),
    "body on the line of its head": ("def f(): ║...\n", "def f():« ...»\n", BLOCK),
    "emoji before the marker": ("def f(a='😋'): ...║\n", "def f(a='😋'):« ...»\n", BLOCK),
    "one of two statements stays": (
        "def f():\n    pass║\n    x = 1\n",
        "def f():\n    pass«»\n    x = 1\n",
        LINE,
    ),
    "dots in an expression stay": ("x[..║.]\n", "x[..«».]\n", LINE),
    "the word in a string stays": ("s = 'pass║'\n", "s = 'pass«»'\n", LINE),
}

SELECTIONS = {
    "part of a line": ("x = «a + b»\n", "x = «a + b»\n"),
    "whole lines leave the last separator": ("«a\nb\n»c\n", "«a\nb»\nc\n"),
    "whole lines of a file from Windows": ("«a\r\n»c\r\n", "«a»\r\nc\r\n"),
}


@pytest.mark.parametrize("name", CURSORS)
def test_cursor(name: str) -> None:
    """While typing: what follows the cursor on its line decides."""
    drawn, expected, kind = CURSORS[name]
    text, offset = read_cursor(drawn)
    hole = select_hole(snapshot(text), offset)
    assert (expected, kind) == (draw_span(text, hole.start, hole.end), hole.kind)


@pytest.mark.parametrize("name", MARKERS)
def test_marker_is_covered_on_request(name: str) -> None:
    """A body that is only `...` or `pass` is replaced if asked for, and never while typing."""
    drawn, expected, kind = MARKERS[name]
    text, offset = read_cursor(drawn)
    hole = select_hole(snapshot(text), offset, cover_marker=True)
    assert (expected, kind) == (draw_span(text, hole.start, hole.end), hole.kind)
    assert select_hole(snapshot(text), offset).start == offset


def test_language_without_a_grammar() -> None:
    """Lines are enough: markers are not looked for."""
    text, offset = read_cursor("begin\n  pass║\nend\n")
    hole = select_hole(snapshot(text, "cobol"), offset, cover_marker=True)
    assert hole == Hole(offset, offset, LINE)


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection(name: str) -> None:
    """What is selected is replaced, without the separator behind whole lines."""
    text, start, end = read_span(SELECTIONS[name][0])
    hole = selection_hole(snapshot(text), start, end)
    assert SELECTIONS[name][1] == draw_span(text, hole.start, hole.end)
    assert hole.kind is SELECTION
    assert hole == selection_hole(snapshot(text), end, start), "either way round"


def test_impossible_holes_are_refused() -> None:
    """An empty selection, and an end before its start."""
    with pytest.raises(ValueError, match="the selection is empty at offset 1"):
        selection_hole(snapshot("abc"), 1, 1)
    with pytest.raises(ValueError, match="got 2, 1"):
        Hole(2, 1, LINE)


def test_a_long_string_is_one_to_its_end() -> None:
    """Also where it begins further above than is looked at."""
    text, offset = read_cursor('"""\n' + "words, of (prose\n" * 300 + 'x = ║\n"""\n')
    assert select_hole(snapshot(text), offset).role is HoleRole.REST_OF_LINE


def test_holes_of_a_selection() -> None:
    """Those that the span holds or cuts, and no others."""
    text, start, end = read_span(
        "def f(): ...\n\ndef g():\n    p«ass\n\nx = <FILL>\n»\ndef h():\n    pass\n"
    )
    holes = find_holes(snapshot(text), start, end)
    assert [(hole.role, text[hole.start : hole.end]) for hole in holes] == [
        (HoleRole.BODY, "pass"),
        (HoleRole.EXPRESSION, "<FILL>"),
    ]
