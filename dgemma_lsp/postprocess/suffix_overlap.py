"""A fill does not repeat what follows the hole: not the rest of the line, not the next lines.

Brackets and quotes are counted, for `g(x)` before a `)` ends in the same character without
repeating it.
"""

from __future__ import annotations

from dgemma_engine.nesting import Nesting

from ..context import to_lf
from ..document import DocumentSnapshot
from ..hole import Hole
from .brackets import num_unmatched
from .rejection import Rejection, RejectReason
from .surroundings import around

# Enough lines to see a repeated tail; a fill is rarely longer.
_MAX_LINES = 64


def trim_suffix_overlap(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Cut the end of the fill that the document repeats right after the hole."""
    _, line_end = snapshot.lines.bounds(snapshot.lines.line_at(hole.end))
    rest_of_line = to_lf(hole.after + snapshot.text[hole.end : line_end])
    if rest_of_line.strip():
        trimmed = _trim_rest_of_line(snapshot, hole, text, rest_of_line)
    else:
        head_start = snapshot.lines.bounds(snapshot.lines.line_at(hole.start))[0]
        head = to_lf(snapshot.text[head_start : hole.start] + hole.before).rpartition("\n")[2]
        trimmed = _trim_next_lines(head, text, _lines_after(snapshot, line_end))
    if not trimmed.strip():
        return Rejection(RejectReason.DUPLICATES_SUFFIX, "the fill repeats what follows")
    return trimmed


def _trim_rest_of_line(snapshot: DocumentSnapshot, hole: Hole, text: str, rest: str) -> str:
    """Drop the end of the fill that begins the rest of the line, but no part of a word.

    Nor a bracket that it opened itself, unless the one behind is there to close that.
    """
    before = (snapshot.text[max(0, hole.start - 1) : hole.start] + hole.before)[-1:]
    for length in range(min(len(text), len(rest)), 0, -1):
        if not text.endswith(rest[:length]):
            continue
        kept = text[:-length]
        splits_a_word = _is_word((before + kept)[-1:]) and _is_word(rest[0])
        is_own = num_unmatched(kept) > num_unmatched(text)
        if not splits_a_word and not (is_own and not _fits_only(snapshot, hole, kept, text)):
            return kept
    return text


def _fits_only(snapshot: DocumentSnapshot, hole: Hole, kept: str, text: str) -> bool:
    """Whether one text leaves open what the text behind the hole closes, and another does not."""
    before, after = map(to_lf, around(snapshot, hole))
    nesting = Nesting.between(before, after, snapshot.language_id)
    return nesting is not None and nesting.fits(kept) and not nesting.fits(text)


def _trim_next_lines(head: str, text: str, following: list[str]) -> str:
    """Drop the fill's last lines that are, indentation included, the next lines of the text."""
    lines = (head + text).split("\n")
    for count in range(min(len(lines), len(following)), 0, -1):
        if [line.rstrip() for line in lines[-count:]] == following[:count]:
            return "\n".join(lines[:-count])[len(head) :]
    return text


def _lines_after(snapshot: DocumentSnapshot, line_end: int) -> list[str]:
    """The lines after the hole's, blank ones at the front left out."""
    after = to_lf(snapshot.text[line_end : line_end + 80 * _MAX_LINES])
    lines = [line.rstrip() for line in after.split("\n")[1:]][:_MAX_LINES]
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
