"""The text around a fill, as several filters look at it."""

from __future__ import annotations

from ..document import DocumentSnapshot
from ..hole import Hole

# What is looked at on each side: enough for a call over some lines.
_CHARS_BEFORE, _CHARS_AFTER = 4000, 2000


def around(snapshot: DocumentSnapshot, hole: Hole) -> tuple[str, str]:
    """The text before and behind a fill."""
    before = snapshot.text[max(0, hole.start - _CHARS_BEFORE) : hole.start] + hole.before
    after = hole.after + snapshot.text[hole.end : hole.end + _CHARS_AFTER]
    return before, after


def ends_line(snapshot: DocumentSnapshot, hole: Hole) -> bool:
    """Whether nothing but a line break, or the document's end, follows a fill."""
    following = (hole.after + snapshot.text[hole.end : hole.end + 1])[:1]
    return following in ("", "\n", "\r")
