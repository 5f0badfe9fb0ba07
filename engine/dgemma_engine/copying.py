"""Guesses without a model: the text goes on as it did where it looked like this.

Code repeats itself more than a small model knows; the judge decides whether it does so here, and
from where, for `infill.py`. Imports no torch: `dgemma_lsp/evaluation` measures the guess alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
# A fill that the encoder finds likelier than this to be exactly right is seldom beaten by a guess,
# and does not wait for the judge: of 500 holes in unseen packages 141 were right instead of 142.
_SURE = 0.2


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
    """Puts a guess in the place of a fill, where it fits better."""

    def __init__(self, texts: Texts, judge: Judge, left_to_right: LeftToRight) -> None:
        self._texts = texts
        self._judge = judge
        self._left_to_right = left_to_right

    def instead_of(self, fill: Fill, plan: InfillPlan, request: InfillRequest) -> Fill:
        """The fill, or which of the guesses at a line fits best before the suffix."""
        is_line = request.kind is HoleKind.LINE and request.num_tokens is None
        if plan.rules is None or plan.judge is None or not is_line:
            return fill
        if fill.chain is not None and math.exp(fill.chain.log_probability) > _SURE:
            return fill
        text = self._texts.text_of(fill.draft.token_ids, plan, request)
        texts = {text: fill.draft.token_ids}
        for token_ids in self._guesses(plan, request):
            guess = self._texts.text_of(token_ids, plan, request)
            if guess and (plan.scope is None or plan.scope.first_unknown(guess) is None):
                texts.setdefault(guess, token_ids)
        if len(texts) == 1:
            return fill
        scores = dict(zip(texts, self._judge.scores(plan.judge, list(texts)), strict=True))
        best, *rest = sorted(texts, key=lambda guess: -scores[guess])
        others = list(fill.others)
        if best != text:
            others[:0] = [] if fill.chain is None else [fill.chain]
            draft, chain = self._left_to_right.read(plan, plan.rules, texts[best])
            fill = fill._replace(draft=draft, chain=chain)
        guesses = [guess for guess in rest if guess != text]
        if request.num_alternatives and guesses:
            # Of 380 holes in unseen packages 155 were right, 170 with two of the likeliest others,
            # 177 with one of them and the best guess.
            _, chain = self._left_to_right.read(plan, plan.rules, texts[guesses[0]])
            others.insert(1, chain)
        return fill._replace(others=tuple(others))

    def _guesses(self, plan: InfillPlan, request: InfillRequest) -> Iterator[list[int]]:
        copied = self._texts.draft_ids(copy_from_context(request), plan.healed)
        if len(copied) <= plan.most_tokens:
            yield copied
        if plan.guesses is not None:
            yield from plan.guesses(plan.most_tokens)
