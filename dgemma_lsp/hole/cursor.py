"""The hole at a cursor, and that of a selection.

What a hole covers follows from the cursor's line alone; syntax says what role it has, and whether
something more than the line is meant where the user asked for it.
"""

from __future__ import annotations

from dgemma_engine.types import HoleKind

from ..document import DocumentSnapshot
from .bodies import body_at, line_indentation
from .embedded import part_at
from .line import BLANKS, comment_above, is_comment, is_in_docstring, role_in_line
from .types import Hole, HoleRole
from .unfinished import fill_marker_at


def select_hole(snapshot: DocumentSnapshot, offset: int, *, cover_marker: bool = False) -> Hole:
    """The hole at a cursor; it stays on the cursor's line.

    A blank line is a BLOCK. At the end of a line the rest of the LINE is filled, and blanks behind
    the cursor are replaced; in the middle of a line the hole is empty and what follows is suffix.

    Args:
        snapshot: the document.
        offset: character offset of the cursor; past the end means the end.
        cover_marker: the user asked for this fill: a marker or a body that is not written yet is
            replaced if the cursor touches it, and behind a comment the code below it is filled in.
            Not while typing: an inline suggestion has to continue what stands before the cursor.
    """
    offset = min(max(0, offset), len(snapshot.text))
    line_start, line_end = snapshot.lines.bounds(snapshot.lines.line_at(offset))
    offset = min(offset, line_end)
    part = part_at(snapshot, offset)
    inner, at = part.snapshot, offset - part.start
    head, tail = snapshot.text[line_start:offset], snapshot.text[offset:line_end]
    if not head.strip(BLANKS) and not tail.strip(BLANKS):
        return Hole(offset, line_end, HoleKind.BLOCK, _role_of_blank_line(inner, at))
    asked = _hole_asked_for(inner, at) if cover_marker else None
    if asked is not None:
        return asked.moved(part.start)
    end = offset if tail.strip(BLANKS) else line_end
    return Hole(offset, end, HoleKind.LINE, role_in_line(inner, at))


def selection_hole(snapshot: DocumentSnapshot, start: int, end: int) -> Hole:
    """The hole of a selection.

    A last line separator stays outside, so that a fill of whole lines does not join what follows.

    Raises:
        ValueError: if the selection is empty; use `select_hole` for a cursor.
    """
    start, end = sorted((min(start, len(snapshot.text)), min(end, len(snapshot.text))))
    if start == end:
        raise ValueError(f"the selection is empty at offset {start}")
    last_line = snapshot.lines.line_at(end)
    if end == snapshot.lines.bounds(last_line)[0] and last_line > 0:
        end = max(start, snapshot.lines.bounds(last_line - 1)[1])
    return Hole(start, end, HoleKind.SELECTION)


def _role_of_blank_line(snapshot: DocumentSnapshot, offset: int) -> HoleRole:
    if is_in_docstring(snapshot, offset):
        return HoleRole.DOCSTRING
    if comment_above(snapshot, offset):
        return HoleRole.CODE_FROM_COMMENT
    body = body_at(snapshot, offset)
    return HoleRole.BODY if body is not None and body.is_empty else HoleRole.LINES


def _hole_asked_for(snapshot: DocumentSnapshot, offset: int) -> Hole | None:
    """What more than the rest of the line a cursor on a line that is not blank may mean."""
    if (marker := fill_marker_at(snapshot, offset)) is not None:
        return marker
    body = body_at(snapshot, offset)
    hole = body.hole(snapshot) if body is not None else None
    if hole is not None and hole.start <= offset <= hole.end:
        return hole
    lines = snapshot.lines
    start, end = lines.bounds(lines.line_at(offset))
    is_behind = not snapshot.text[offset:end].strip(BLANKS)
    if is_behind and is_comment(snapshot, snapshot.text[start:end]):
        before = snapshot.eol + line_indentation(snapshot, offset)
        return Hole(offset, end, HoleKind.BLOCK, HoleRole.CODE_FROM_COMMENT, before)
    return None
