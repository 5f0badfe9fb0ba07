"""No blanks at the end of a line, no blank line before the line break that is there already."""

from __future__ import annotations

from ..document import DocumentSnapshot
from ..hole import Hole
from .surroundings import ends_line


def trim_trailing_blank(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str:
    """Strip the end of a fill that a line break or the document's end follows.

    In the middle of a line a last blank may be wanted, as before the `b` of `a + ║b`.
    """
    return text.rstrip() if ends_line(snapshot, hole) else text
