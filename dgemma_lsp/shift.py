"""A suggestion that comes late: still right if the user typed its beginning, else stale."""

from __future__ import annotations

from .context import to_lf
from .document import DocumentSnapshot
from .hole import Hole
from .postprocess import Rejection, RejectReason


def shift_suggestion(
    asked: DocumentSnapshot, hole: Hole, text: str, now: DocumentSnapshot
) -> tuple[Hole, str] | Rejection:
    """Carry a suggestion over to the text as it is now.

    Args:
        asked: the document when the suggestion was asked for.
        hole: in `asked`.
        text: the suggestion for it.
        now: the document at this moment.
    Returns:
        the hole in `now` and what is left of the suggestion, or why it cannot be offered.
    """
    if asked.text == now.text:
        return hole, text
    num_typed = len(now.text) - len(asked.text)
    before, after = asked.text[: hole.start], asked.text[hole.start :]
    is_insertion = (
        num_typed > 0
        and now.text.startswith(before)
        and now.text.startswith(after, hole.start + num_typed)
    )
    if not is_insertion:
        return Rejection(RejectReason.STALE, "the document changed elsewhere")
    typed = to_lf(now.text[hole.start : hole.start + num_typed])
    if not text.startswith(typed):
        return Rejection(RejectReason.STALE, "something else was typed")
    if text == typed:
        return Rejection(RejectReason.STALE, "all of it was typed already")
    return hole.moved(num_typed), text[len(typed) :]
