"""Positions and character offsets, in three encodings, against a plain walk over the text."""

from __future__ import annotations

import statistics
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lsprotocol import types

from dgemma_lsp.document import ExactPositionCodec, ExactTextDocument, LineIndex

from .json_rpc import position

ENCODINGS = [encoding.value for encoding in types.PositionEncodingKind]
TEXTS = st.text(
    alphabet=st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x85\u2028é\u0301漢😋👩"), max_size=40
)


@given(text=TEXTS, encoding=st.sampled_from(ENCODINGS))
@example(text="a\r\nb\rc\nd", encoding="utf-16")
def test_offset_to_position_and_back(text: str, encoding: str) -> None:
    """Every offset becomes the position a plain walk gives, and comes back from it."""
    lines = LineIndex(text)
    for offset in range(len(text) + 1):
        expected = position(text, offset, encoding)
        actual = lines.position_at(offset, encoding)
        assert (expected["line"], expected["character"]) == (actual.line, actual.character)
        between = text[max(0, offset - 1) : offset + 1] == "\r\n"
        assert offset - between == lines.offset_at(actual, encoding)


@given(text=TEXTS)
def test_lines_make_the_text(text: str) -> None:
    """The lines with their ends are the text; only \\n, \\r\\n and \\r end one."""
    lines = LineIndex(text)
    assert text == "".join(lines.lines_with_ends())
    assert len(lines) == 1 + text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    for number in range(len(lines)):
        assert not set(lines.line_text(number)) & {"\n", "\r"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_positions_past_the_end_are_clamped(encoding: str) -> None:
    """Past a line's end is its end, past the last line the end of the text."""
    lines = LineIndex("é😋\nab")
    at = types.Position
    assert lines.offset_at(at(0, 99), encoding) == 2
    assert lines.offset_at(at(1, 99), encoding) == 5
    assert lines.offset_at(at(9, 0), encoding) == 5


@pytest.mark.parametrize(("encoding", "inside"), [("utf-8", (1, 2, 3)), ("utf-16", (1,))])
def test_positions_inside_a_character_go_before_it(encoding: str, inside: tuple[int, ...]) -> None:
    """Half a surrogate pair or a part of a byte sequence is no place to insert."""
    for units in inside:
        assert LineIndex("😋x").offset_at(types.Position(0, units), encoding) == 0


def test_a_change_of_a_large_document_is_quick() -> None:
    """10,000 lines: a keystroke costs milliseconds, far below what would be felt."""
    text = "    value = compute(left, right)  # a comment\n" * 10_000
    codec = ExactPositionCodec(types.PositionEncodingKind.Utf16)
    document = ExactTextDocument("file:///a.py", source=text, version=1, position_codec=codec)
    seconds = []
    for number in range(20):
        place = types.Position(5_000, number)
        change = types.TextDocumentContentChangePartial(types.Range(place, place), "x")
        start = time.perf_counter()
        document.apply_change(change)
        assert document.offset_at_position(types.Position(9_999, 0)) > 400_000
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.05  # measured: 2 ms


@given(data=st.data())
def test_an_index_is_edited_as_it_would_be_built(data: st.DataObject) -> None:
    """Edit upon edit, also between the halves of a separator; no older index changes."""
    lines = LineIndex(data.draw(TEXTS))
    for _ in range(data.draw(st.integers(1, 5))):
        before, text = lines, lines.text
        starts = [before.bounds(number) for number in range(len(before))]
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        new = data.draw(TEXTS)
        lines = before.edited(start, end, new)
        built = LineIndex(text[:start] + new + text[end:])
        assert built.text == lines.text
        assert built.lines_with_ends() == lines.lines_with_ends()
        for offset in range(-1, len(built.text) + 2):
            assert built.line_at(offset) == lines.line_at(offset)
        assert starts == [before.bounds(number) for number in range(len(before))]
