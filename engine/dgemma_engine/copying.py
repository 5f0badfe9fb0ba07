"""A guess without a model: the text goes on as it did the last time it looked like this.

Code repeats itself more than a small model knows; the judge decides whether it does so here.
"""

from __future__ import annotations

from .types import HoleKind, InfillRequest

# Fewer characters in common than this say nothing about what comes next.
_LEAST_MATCH = 3
_LONGEST_MATCH = 60


def copy_from_context(request: InfillRequest) -> str:
    """What followed the latest of the places in the prefix that end most as the prefix does.

    To the end of its line, or of its paragraph for a block; up to what follows the hole, if that
    comes first. Empty if there is no such place.
    """
    prefix = request.prefix
    for length in range(min(_LONGEST_MATCH, len(prefix) - 1), _LEAST_MATCH - 1, -1):
        place = prefix.rfind(prefix[-length:], 0, len(prefix) - 1)
        if place >= 0:
            break
    else:
        return ""
    text = prefix[place + length :]
    text = text.partition("\n\n" if request.kind is HoleKind.BLOCK else "\n")[0]
    following = request.suffix.partition("\n")[0]
    if following.strip() and following in text:
        text = text.partition(following)[0]
    return text
