"""Places in which nobody wants to be interrupted: comments and strings, as the settings say."""

from __future__ import annotations

from ..document import DocumentSnapshot
from ..hole import Hole, HoleRole
from ..postprocess import Rejection, RejectReason
from ..settings import Settings


def why_quiet(snapshot: DocumentSnapshot, hole: Hole, settings: Settings) -> Rejection | None:
    """Why nothing is suggested while typing at a hole; None if something may be.

    Documentation is wanted where it is missing, comment and string though it is.
    """
    if not settings.disabled_in or hole.role is HoleRole.DOCSTRING:
        return None
    tree = snapshot.syntax.now()
    if tree is None or hole.start == 0:
        return None
    language = tree.language
    for node in tree.ancestors(hole.start - 1):
        # At the very end of a string the cursor is outside; a comment goes on to its line's end.
        is_inside_string = node.kind in language.strings and hole.start < node.end
        is_comment = node.kind in language.comments and hole.start <= node.end
        if is_comment and "comments" in settings.disabled_in:
            return Rejection(RejectReason.OFF, "quiet in comments (setting disabledIn)")
        if is_inside_string and "strings" in settings.disabled_in:
            return Rejection(RejectReason.OFF, "quiet in strings (setting disabledIn)")
    return None
