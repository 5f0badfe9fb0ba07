"""What the model wrote becomes what is offered, or a Rejection that says why nothing is.

`confident_starts` comes before the chain, and only while typing: what was asked for is shown whole.
One filter a file, each (snapshot, hole, text) -> text or Rejection; the chain is the tuple below.
Texts here have \\n only. Nothing in this package knows LSP, or of the engine more than its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..document import DocumentSnapshot
from ..hole import Hole
from .brackets import close_brackets, is_balanced, opens_quote
from .confident_start import confident_starts, sound_starts
from .empty import reject_empty
from .in_place import broken_part, num_errors_in_place, parse_in_place
from .one_line import keep_one_line
from .rejection import Rejection, RejectReason
from .repetition import trim_repetition
from .suffix_overlap import trim_suffix_overlap
from .trailing_blank import trim_trailing_blank

__all__ = [
    "FILTERS",
    "Filter",
    "RejectReason",
    "Rejection",
    "broken_part",
    "confident_starts",
    "first_that_fits",
    "num_errors_in_place",
    "postprocess",
    "sound_starts",
]

Filter = Callable[[DocumentSnapshot, Hole, str], str | Rejection]

FILTERS: tuple[Filter, ...] = (
    keep_one_line,
    trim_repetition,
    trim_trailing_blank,
    reject_empty,  # before the next one, which would blame the suffix for an empty fill
    trim_suffix_overlap,
    trim_trailing_blank,  # trimming an overlap lays bare the blanks before it
    reject_empty,
    close_brackets,
    parse_in_place,
)


def postprocess(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Send a fill through the chain; the first rejection ends it."""
    for apply in FILTERS:
        outcome = apply(snapshot, hole, text)
        if isinstance(outcome, Rejection):
            return outcome
        text = outcome
    return text


def first_that_fits(
    snapshot: DocumentSnapshot, hole: Hole, texts: Sequence[str], whole: str
) -> str | Rejection:
    """The first of some texts that passes the chain; if none does, the first one's rejection.

    Args:
        whole: the fill that they are starts of. What only a start leaves open is not closed: the
            arguments of a call are still to come.
    Raises:
        ValueError: if there are no texts.
    """
    rejections: list[Rejection] = []
    for text in texts:
        outcome: str | Rejection
        if text == whole or (
            is_balanced(snapshot, hole, text) and not opens_quote(snapshot, hole, text)
        ):
            outcome = postprocess(snapshot, hole, text)
        else:
            detail = "the likely part leaves a bracket or a quote open"
            outcome = Rejection(RejectReason.UNBALANCED, detail)
        if isinstance(outcome, str):
            return outcome
        rejections.append(outcome)
    if not rejections:
        raise ValueError("there is no text to choose from")
    return rejections[0]
