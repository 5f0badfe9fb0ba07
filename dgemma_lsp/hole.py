"""Where to fill: a cursor or a selection becomes a Hole in character offsets.

Looks at the cursor's line, and at syntax only to see whether a body is a mere marker. It knows no
engine and no LSP; `context.py` turns the hole into a request.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgemma_engine.types import HoleKind

from .document import DocumentSnapshot
from .syntax import SyntaxNode

_BLANKS = " \t\f\v\u00a0"
_PYTHON_MARKERS = frozenset({"...", "pass"})


@dataclass(frozen=True, slots=True)
class Hole:
    """What is to be replaced: `text[start:end]`, half open; `start == end` inserts.

    Raises:
        ValueError: at construction, if the offsets are not 0 <= start <= end.
    """

    start: int
    end: int
    kind: HoleKind

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a hole needs 0 <= start <= end, got {self.start}, {self.end}")


def select_hole(snapshot: DocumentSnapshot, offset: int, *, cover_marker: bool = False) -> Hole:
    """The hole at a cursor; it stays on the cursor's line.

    A blank line is a BLOCK. At the end of a line the rest of the LINE is filled, and blanks behind
    the cursor are replaced; in the middle of a line the hole is empty and what follows is suffix.

    Args:
        snapshot: the document.
        offset: character offset of the cursor; past the end means the end.
        cover_marker: let a body that is only `...` or `pass` under the cursor be replaced. Not
            while typing: an inline suggestion has to continue what stands before the cursor.
    """
    offset = min(max(0, offset), len(snapshot.text))
    line_start, line_end = snapshot.lines.bounds(snapshot.lines.line_at(offset))
    offset = min(offset, line_end)
    if cover_marker and (marker := _marker_at(snapshot, offset)) is not None:
        return marker
    head, tail = snapshot.text[line_start:offset], snapshot.text[offset:line_end]
    if tail.strip(_BLANKS):
        return Hole(offset, offset, HoleKind.LINE)
    return Hole(offset, line_end, HoleKind.LINE if head.strip(_BLANKS) else HoleKind.BLOCK)


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


def _marker_at(snapshot: DocumentSnapshot, offset: int) -> Hole | None:
    """A body that is only `...` or `pass`, if the cursor touches it."""
    line = snapshot.lines.line_at(offset)
    line_start, line_end = snapshot.lines.bounds(line)
    # Cheap first look: a line without a marker in it is not worth a parse.
    if not any(marker in snapshot.text[line_start:line_end] for marker in _PYTHON_MARKERS):
        return None
    tree = snapshot.syntax.now()
    if tree is None:
        return None
    for probe in (offset, max(line_start, offset - 1)):
        for node in tree.ancestors(probe):
            is_marker = node.text in _PYTHON_MARKERS
            if is_marker and _is_only_statement(node) and node.start <= offset <= node.end:
                is_alone = not snapshot.text[line_start : node.start].strip(_BLANKS)
                return Hole(node.start, node.end, HoleKind.BLOCK if is_alone else HoleKind.LINE)
    return None


def _is_only_statement(node: SyntaxNode) -> bool:
    block = node.parent
    if block is None or block.kind != "block":
        return False
    return sum(child.is_named and child.kind != "comment" for child in block.children) == 1
