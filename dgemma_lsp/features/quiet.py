"""Places in which nobody wants to be interrupted: comments, strings, languages nobody taught."""

from __future__ import annotations

from collections.abc import Collection

from ..document import DocumentSnapshot
from ..hole import Hole, HoleRole
from ..postprocess import Rejection, RejectReason
from ..settings import Settings


def why_quiet(
    snapshot: DocumentSnapshot, hole: Hole, settings: Settings, learned: Collection[str] = ()
) -> Rejection | None:
    """Why nothing is suggested while typing at a hole; None if something may be.

    Documentation is wanted where it is missing, comment and string though it is.

    Args:
        learned: languages that the model was trained on; empty where nobody knows.
    """
    if learned and snapshot.language_id not in learned:
        detail = f"the model was not trained on {snapshot.language_id}; what is asked for is filled"
        return Rejection(RejectReason.OFF, detail)
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
