"""What was offered lately: typing along a suggestion is answered from it, without the engine.

The newest suggestions of each document are kept, with the text they were made for. `shift.py` says
what is left of one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from .document import DocumentSnapshot
from .hole import Hole
from .postprocess import Rejection
from .shift import shift_suggestion

# Going back and forth over a few characters is typing; what is older is not asked for again.
_PER_DOCUMENT = 8
_DOCUMENTS = 32


@dataclass(frozen=True, slots=True)
class Offer:
    """A suggestion and the document it was made for."""

    snapshot: DocumentSnapshot
    hole: Hole
    text: str


class SuggestionMemory:
    """The last suggestions of the last documents."""

    def __init__(self) -> None:
        self._offers: OrderedDict[str, deque[Offer]] = OrderedDict()

    def remember(self, snapshot: DocumentSnapshot, hole: Hole, text: str) -> None:
        """Keep a suggestion that was offered."""
        offers = self._offers.setdefault(snapshot.uri, deque(maxlen=_PER_DOCUMENT))
        self._offers.move_to_end(snapshot.uri)
        offers.appendleft(Offer(snapshot, hole, text))
        if len(self._offers) > _DOCUMENTS:
            self._offers.popitem(last=False)

    def recall(self, now: DocumentSnapshot, hole: Hole) -> str | None:
        """What is left of the newest suggestion that the user has typed a part of, or nothing of.

        Args:
            now: the document at this moment.
            hole: of the cursor; a suggestion for another place does not count.
        """
        for offer in self._offers.get(now.uri, ()):
            shifted = shift_suggestion(offer.snapshot, offer.hole, offer.text, now)
            if not isinstance(shifted, Rejection) and shifted[0].start == hole.start:
                return shifted[1] if shifted[0].end == hole.end else None
        return None

    def forget(self, uri: str | None = None) -> None:
        """Drop what was offered in a document, or everywhere."""
        if uri is None:
            self._offers.clear()
        else:
            self._offers.pop(uri, None)
