"""A guess without a model: the text goes on as it did the last time it looked like this.

Code repeats itself more than a small model knows; the judge decides whether it does so here, for
`infill.py`. Imports no torch: `dgemma_lsp/evaluation` measures the guess alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .types import HoleKind, InfillRequest

if TYPE_CHECKING:
    from .drafts import Fill
    from .judge import Judge
    from .left_to_right import LeftToRight
    from .strategies import InfillPlan
    from .texts import Texts

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


class Copying:
    """Puts the guess in the place of a fill, where it fits better."""

    def __init__(self, texts: Texts, judge: Judge, left_to_right: LeftToRight) -> None:
        self._texts = texts
        self._judge = judge
        self._left_to_right = left_to_right

    def instead_of(self, fill: Fill, plan: InfillPlan, request: InfillRequest) -> Fill:
        """The fill, or what the text did before if that fits better before the suffix."""
        if plan.rules is None or plan.judge is None or request.kind is not HoleKind.LINE:
            return fill
        copied = copy_from_context(request)
        text = self._texts.text_of(fill.draft.token_ids, plan, request)
        if copied in ("", text) or request.num_tokens:
            return fill
        token_ids = self._texts.draft_ids(copied, plan.healed)
        if len(token_ids) > request.max_tokens:
            return fill
        scores = self._judge.scores(plan.judge, [text, copied])
        if scores[0] >= scores[1]:
            return fill
        draft, chain = self._left_to_right.read(plan, plan.rules, token_ids)
        return fill._replace(draft=draft, chain=chain)
