"""What followed the last times that the text went like this: a memory beside a small model.

Code repeats itself, and the files beside it, more than few weights can hold. Wherever the tokens
before the next one stand again, in the same document or a neighbour, the token behind them has a
vote, the more of them agree the more; the model's own chances and the votes are mixed. Nothing of
it is trained but the six numbers of `RecallWeights`.

`left_to_right.py` asks it for every token. What stood between places that are like both ends of the
hole is a guess at the whole text, and so is what `analogies.py` finds; `copying.py` lets the judge
choose. Knows ids and chances, and of text only which pieces were tokenized before.
Source: cache language models (Kuhn and De Mori, 1990), for code with neighbouring files Hellendoorn
and Devanbu (2017); kNN-LM (Khandelwal et al., 2020) weighs the two sides alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .analogies import Analogies
from .chains import CausalRules
from .errors import CheckpointError
from .places import num_shared, pairs, pieces
from .strategies import InfillPlan
from .tokenizer import Tokenizer
from .types import CancellationToken, InfillRequest

Ids = npt.NDArray[np.int32]

# Tokens compared before a place at most, and how many fewer than the best a place may share with
# the text to have a vote: each one more counts about six times as much.
_LONGEST_MATCH = 24
_FEWER = 4
_MOST_PLACES = 256
# How far away another text is, in tokens.
_ELSEWHERE = 20_000
_BETWEEN = -1  # stands between two texts; no token
END = -1  # the vote that nothing follows
_GAP = np.array([_BETWEEN], dtype=np.int32)
# Of the texts of `InfillRequest.nearby`, so many tokens at most, the first ones.
_MOST_TOKENS = 400_000
_ROOM = 256  # for what is written; grows

# Tokens compared on each side of a join at most, how many places with the longest starts are looked
# at, how many ends are tried behind each, and how many joins and analogies are kept.
_JOIN_TOKENS = 8
_MOST_STARTS = 4000
_MOST_ENDS = 6
_MOST_JOINS = 2
_MOST_ANALOGIES = 2


@dataclass(frozen=True, slots=True)
class RecallWeights:
    """How places are weighed, and against the model; the "recall" part of `infill_config.json`.

    Attributes:
        length: of a place, by tokens that it shares with the text; log weight.
        distance: of a place, by the log of its distance in tokens; log weight, negative.
        bias, match, agreement, certainty: of the memory against the model, as a logit: plain, by
            the log of the tokens that the best place shares, by the share of the votes that agree,
            by the chance that the model gives its own choice.
    """

    length: float
    distance: float
    bias: float
    match: float
    agreement: float
    certainty: float

    @classmethod
    def from_json(cls, infill_config: Mapping[str, Any]) -> RecallWeights | None:
        """Read the "recall" part; None where there is none.

        Raises:
            CheckpointError: it lacks a number, or has others.
        """
        part = infill_config.get("recall")
        if part is None:
            return None
        try:
            return cls(**{name: float(value) for name, value in part.items()})
        except (AttributeError, TypeError, ValueError) as error:
            wanted = ", ".join(item.name for item in fields(cls))
            raise CheckpointError(
                f"infill_config.json: recall: {error}; it has the numbers {wanted}"
            ) from error

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in dataclasses.asdict(self).items()}


class Votes(NamedTuple):
    """What stands behind the places that are like the text's end.

    Attributes:
        token_ids: (N,) of each place, or `END`; may repeat.
        lengths: (N,) tokens that each place shares with the text, >= 1.
        distances: (N,) in tokens.
    """

    token_ids: Ids
    lengths: npt.NDArray[np.int64]
    distances: npt.NDArray[np.int64]

    def select(self, which: npt.NDArray[np.bool_]) -> Votes:
        return Votes(self.token_ids[which], self.lengths[which], self.distances[which])


class Recall:
    """Makes a `Recollection` for a hole; keeps the tokens of texts that it saw before."""

    def __init__(self, tokenizer: Tokenizer, weights: RecallWeights) -> None:
        self._weights = weights

        @lru_cache(maxsize=16384)
        def ids_of_piece(piece: str) -> Ids:
            return np.array(tokenizer.encode(piece), dtype=np.int32)

        @lru_cache(maxsize=256)
        def ids_of_text(text: str) -> Ids:
            """Tokenized by pieces, so that a text that changed costs what changed of it."""
            return np.concatenate([*map(ids_of_piece, pieces(text)), _GAP])

        self._ids_of_text = ids_of_text
        self._tokenizer = tokenizer
        self._analogies = Analogies()

    def read(self, texts: Sequence[str], cancel: CancellationToken | None = None) -> None:
        """Tokenize texts ahead of the fill that recalls from them.

        Raises:
            Cancelled: within one text of `cancel.cancel()`.
        """
        for text in texts:
            if cancel is not None:
                cancel.raise_if_cancelled()
            self._ids_of_text(text)
            self._analogies.read(text)

    def recollection(
        self, plan: InfillPlan, request: InfillRequest, *, behind: bool = True
    ) -> Recollection:
        """What there is to recall for a plan's hole; the plan has rules.

        Args:
            behind: from the text after the hole too.
        """
        assert plan.rules is not None
        return Recollection(
            self._weights,
            [self._ids_of_text(text) for text in request.nearby],
            plan.after_ids if behind else (),
            plan.before_ids,
            plan.rules,
        )

    def into(self, plan: InfillPlan, request: InfillRequest) -> InfillPlan:
        """The plan, with what there is to recall for its hole; as it is if it has no rules."""
        if plan.rules is None:
            return plan
        judge = plan.judge
        if judge is not None:
            # Of what stands behind the hole, every candidate would recall the same. Most fills are
            # not judged at all while somebody types.
            before = cache(lambda: self.recollection(plan, request, behind=False))
            judge = dataclasses.replace(judge, mix=lambda *place: before().mixed(*place))
        whole = self.recollection(plan, request)

        def guesses(most_tokens: int) -> Iterator[list[int]]:
            yield from whole.joins(most_tokens)
            healed = plan.healed.decode("utf-8", errors="ignore")
            for text in self._analogies.guesses(request, _MOST_ANALOGIES):
                token_ids = self._tokenizer.encode(healed + text)
                if len(token_ids) <= most_tokens:
                    yield token_ids

        return dataclasses.replace(plan, mix=whole.mixed, guesses=guesses, judge=judge)


class Recollection:
    """A hole's memory: the texts around it, and how to mix what they say with the model."""

    def __init__(
        self,
        weights: RecallWeights,
        elsewhere: Sequence[Ids],
        after: Sequence[int],
        before: Sequence[int],
        rules: CausalRules,
    ) -> None:
        self._weights = weights
        far = np.concatenate([_GAP, *elsewhere])[:_MOST_TOKENS]
        here = np.array([_BETWEEN, *after, _BETWEEN, *before], dtype=np.int32)
        self._after_start = len(far) + 1
        self._before_start = self._after_start + len(after) + 1
        self._size = len(far) + len(here)
        self._ids = np.concatenate([far, here, np.zeros(_ROOM, dtype=np.int32)])
        self._head = after[0] if after else _BETWEEN
        self._rules = rules
        self._ends = rules.ends.cpu().numpy()

    def votes(self, written: Sequence[int], going_on: Tensor, end: Tensor) -> Votes | None:
        """What followed where the text was like this before; None if it never was.

        Args:
            written: of the hole, so far.
            going_on, end: (V,) and (), log probabilities, as `CausalRules` gives them: what is
                forbidden there has no vote.
        """
        votes = self._alike(written)
        if votes is None:
            return None
        token_ids = votes.token_ids
        is_allowed = np.isfinite(going_on.cpu().numpy()[token_ids])
        if math.isfinite(float(end)):
            # Where another place goes on as the text behind the hole does, the fill is at its end.
            is_end = self._ends[token_ids] | (token_ids == self._head)
            votes = votes._replace(token_ids=np.where(is_end, np.int32(END), token_ids))
            is_allowed |= is_end
        is_allowed &= token_ids != _BETWEEN
        return votes.select(is_allowed) if is_allowed.any() else None

    def mixed(self, written: Sequence[int], going_on: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """The model's chances of what comes next, mixed with what is recalled.

        Args:
            written, going_on, end: as of `votes`.
        Returns:
            `going_on` and `end` again; what is forbidden still is.
        """
        votes = self.votes(written, going_on, end)
        if votes is None:
            return going_on, end
        weights = self._weights
        heights = weights.length * votes.lengths - weights.distance * np.log1p(votes.distances)
        voted, index = np.unique(votes.token_ids, return_inverse=True)
        shares = np.bincount(index, np.exp(heights - heights.max()))
        shares = shares / shares.sum()
        trust = _chance(
            weights.bias
            + weights.match * math.log(int(votes.lengths.max()))
            + weights.agreement * float(shares.max())
            + weights.certainty * math.exp(max(float(going_on.max()), float(end)))
        )
        recalled = torch.from_numpy(np.log(trust * shares)).to(going_on)
        going_on, end = going_on + math.log1p(-trust), end + math.log1p(-trust)
        if voted[0] == END:
            end, voted, recalled = torch.logaddexp(end, recalled[0]), voted[1:], recalled[1:]
        places = torch.from_numpy(voted.astype(np.int64)).to(going_on.device)
        going_on[places] = torch.logaddexp(going_on[places], recalled)
        return going_on, end

    def joins(self, most_tokens: int) -> list[list[int]]:
        """What stood between places that are like the hole's two ends, the likest first.

        Args:
            most_tokens: of each.
        Returns:
            token ids of a few different texts that the rules allow; none of them is empty.
        """
        ids, size = self._ids[: self._size], self._size
        num_before = size - self._before_start
        num_after = self._before_start - 1 - self._after_start
        if not num_before or not num_after:
            return []
        starts = np.flatnonzero(ids[:-1] == ids[-1]) + 1
        ends = np.flatnonzero(ids == self._head)
        head, tail = ids[self._after_start :][:num_after], ids[::-1][:num_before]
        before = num_shared(ids, starts - 1, tail[:_JOIN_TOKENS], -1)
        likest = np.argsort(-before, kind="stable")[:_MOST_STARTS]
        starts, before = starts[likest], before[likest]
        after = num_shared(ids, ends, head[:_JOIN_TOKENS], 1)
        # Of each start the first ends behind it.
        start, end = pairs(starts, ends, most_tokens, _MOST_ENDS)
        # Texts from elsewhere lie in front, the nearest first.
        distances = np.where(starts < self._after_start, size + starts, size - starts)
        rules = self._rules
        allowed = ~(rules.banned | rules.ends).cpu().numpy()
        first_allowed = (
            allowed if rules.first_allowed is None else rules.first_allowed.cpu().numpy()
        )
        found: dict[bytes, list[int]] = {}
        for pair in np.lexsort((distances[start], -(before[start] + after[end]))):
            between = ids[starts[start[pair]] : ends[end[pair]]]
            if not len(between) or between.min() == _BETWEEN:
                continue
            if first_allowed[between[0]] and allowed[between[1:]].all():
                found.setdefault(between.tobytes(), between.tolist())
                if len(found) == _MOST_JOINS:
                    break
        return list(found.values())

    def _alike(self, written: Sequence[int]) -> Votes | None:
        """What stands behind every place that ends nearly as much like the text as the best.

        No place lies in what was written: a fill that recalls itself goes round in circles.
        """
        size = self._size + len(written)
        if size > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(size, dtype=np.int32)])
        self._ids[self._size : size] = written
        ids = self._ids[:size]
        places = np.flatnonzero(ids[: self._size - 1] == ids[-1]) + 1
        if size == self._before_start or not len(places):
            return None
        text = ids[self._before_start :][::-1]
        lengths = num_shared(ids, places - 1, text[:_LONGEST_MATCH], -1)
        best = np.flatnonzero(lengths > lengths.max() - _FEWER)[-_MOST_PLACES:]
        places, lengths = places[best], lengths[best]
        distances = np.full(len(places), _ELSEWHERE)
        is_after = places >= self._after_start
        distances[is_after] = places[is_after] - self._after_start
        is_before = places >= self._before_start
        distances[is_before] = size - places[is_before]
        return Votes(ids[places], lengths, distances)


def _chance(logit: float) -> float:
    """Never 1: what the model says keeps a chance."""
    return min(1.0 / (1.0 + math.exp(-logit)), 1.0 - 1e-6)
