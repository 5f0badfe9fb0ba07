"""An empty fill, or one that changes nothing, is not an offer."""

from __future__ import annotations

from ..context import to_lf
from ..document import DocumentSnapshot
from ..hole import Hole
from .rejection import Rejection, RejectReason


def reject_empty(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Reject a fill of blanks, and one equal to what the hole covers."""
    if not text.strip():
        return Rejection(RejectReason.EMPTY, "the model has nothing to insert here")
    if text == to_lf(snapshot.text[hole.start : hole.end]):
        return Rejection(RejectReason.EMPTY, "the model would write what is there already")
    return text
