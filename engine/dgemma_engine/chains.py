"""How likely a text is, read from left to right by the encoder.

Encoder and canvas share their weights, so that every checkpoint of ours can also read and write
from left to right with the suffix in its prompt. Its chain of probabilities says how likely a text
is to be exactly right, which the canvas, all of whose slots lean on each other, cannot say.
Knows ids and tensors, not text. `left_to_right.py` writes by the same rules.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import KVCache
from .model import DiffusionGemma
from .passes import InPasses
from .types import CancellationToken

# From a hole's tokens so far, and the log probabilities (V,) of going on and () of ending there, to
# other ones.
Mix = Callable[[Sequence[int], Tensor, Tensor], tuple[Tensor, Tensor]]

_EVEN = math.log(0.5)  # as likely as all else


@dataclass(frozen=True, slots=True)
class CausalRules:
    """What may follow what in a hole that is read from left to right.

    Attributes:
        banned: (V,) bool, tokens that no place may take.
        ends: (V,) bool, tokens before which the fill ends; not banned, at least one.
        first_allowed: (V,) bool, the only tokens that the first place may take, be they `banned` or
            `ends`; at least one. None treats the first place like the others.
        empty: the tokens of a fill without text, those that healing took back. Such a fill has to
            be likelier than all others together; None asks that of none.
    """

    banned: Tensor
    ends: Tensor
    first_allowed: Tensor | None = None
    empty: tuple[int, ...] | None = None

    def log_probabilities(self, logits: Tensor, *, is_first: bool) -> tuple[Tensor, Tensor]:
        """What is allowed, made to sum to one.

        Args:
            logits: (N, V) float32, all of the same place. Not modified.
            is_first: the place is the hole's first.
        Returns:
            of tokens that go on, (N, V) float32, and of ending here, (N,): the sum over `ends`.
        """
        if is_first and self.first_allowed is not None:
            allowed = logits.masked_fill(~self.first_allowed, -math.inf).log_softmax(dim=-1)
            return allowed, allowed.new_full(allowed.shape[:1], -math.inf)
        allowed = logits.masked_fill(self.banned, -math.inf).log_softmax(dim=-1)
        end = allowed.masked_fill(~self.ends, -math.inf).logsumexp(dim=-1)
        return allowed.masked_fill(self.ends, -math.inf), end


@dataclass(frozen=True, slots=True)
class Chain:
    """A fill's tokens, read from left to right.

    Attributes:
        token_ids: of the fill, without its end.
        log_probabilities: of each token, given those before it; nats.
        end_log_probability: of ending there.
    """

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    end_log_probability: float

    def longer(self, token_id: int, log_probability: float) -> Chain:
        """With a token more, behind which more is to come."""
        return Chain(
            (*self.token_ids, token_id), (*self.log_probabilities, log_probability), -math.inf
        )

    @property
    def start_log_probability(self) -> float:
        """That the fill begins with these tokens."""
        return sum(self.log_probabilities)

    @property
    def log_probability(self) -> float:
        """That the fill is these tokens and no more."""
        return self.start_log_probability + self.end_log_probability

    @property
    def is_likely(self) -> bool:
        """Whether that is likelier than all other fills together."""
        return self.log_probability >= _EVEN

    def is_over(self, rules: CausalRules, best: float) -> bool:
        """Whether the fill ends here: that is likelier than any token, or without text than all.

        Args:
            best: log probability of the likeliest token.
        """
        if rules.empty is not None and self.token_ids == rules.empty[: len(self.token_ids)]:
            return self.is_likely
        return self.end_log_probability >= best


@torch.no_grad()
def read_left_to_right(
    model: DiffusionGemma,
    cache: KVCache,
    prompt_ids: Sequence[int],
    drafts: Sequence[Sequence[int]],
    rules: CausalRules,
    mix: Mix | None = None,
) -> list[Chain]:
    """Judge drafts in one pass: the chain of each.

    Args:
        model: the model.
        cache: of `prompt_ids`, one row. Only read.
        prompt_ids: S >= 1.
        drafts: token ids without end marks; may be empty ones.
        rules: of the hole.
        mix: changes the chances of what comes next.
    """
    width = 1 + max(map(len, drafts))
    rows = [[prompt_ids[-1], *draft] for draft in drafts]
    padded = [row + [0] * (width - len(row)) for row in rows]
    token_ids = torch.tensor(padded, device=model.device)
    logits = model.continuation_logits(token_ids, cache, len(prompt_ids) - 1)  # (N, width, V)
    chains = []
    for row, draft in enumerate(drafts):
        first, first_end = rules.log_probabilities(logits[row, :1], is_first=True)
        later, later_end = rules.log_probabilities(logits[row, 1:], is_first=False)
        going_on, end = torch.cat((first, later)), torch.cat((first_end, later_end))
        if mix is not None:
            for size in range(len(draft) + 1):
                going_on[size], end[size] = mix(draft[:size], going_on[size], end[size])
        own = going_on[range(len(draft)), list(draft)].tolist() if draft else []
        chains.append(Chain(tuple(draft), tuple(own), float(end[len(draft)])))
    return chains


@torch.no_grad()
def likely_fills(
    model: DiffusionGemma,
    cache: KVCache,
    prompt_ids: Sequence[int],
    rules: CausalRules,
    max_tokens: int,
    width: int,
    mix: Mix | None = None,
    cancel: CancellationToken | None = None,
    deadline: float | None = None,
) -> InPasses[list[Chain]]:
    """The likeliest fills that a search by so many starts at a time finds, the best first.

    Others have a turn after every pass.

    Args:
        cache: of `prompt_ids`, one row. Only read.
        prompt_ids: S >= 1.
        max_tokens: of a fill.
        width: of the search, and of fills at most.
        mix: changes the chances of what comes next.
        cancel: looked at before every pass.
        deadline: `time.monotonic()` seconds after which what was found so far is returned.
    Raises:
        Cancelled: within one pass of the token being set.
    """
    starts, found = [Chain((), (), -math.inf)], list[Chain]()
    for size in range(max_tokens + 1):
        if cancel is not None:
            cancel.raise_if_cancelled()
        if deadline is not None and time.monotonic() >= deadline:
            break
        rows = [[prompt_ids[-1], *start.token_ids] for start in starts]
        token_ids = torch.tensor(rows, device=model.device)
        logits = model.continuation_logits(token_ids, cache, len(prompt_ids) - 1)[:, -1]  # (N, V)
        going_on, ends = rules.log_probabilities(logits, is_first=size == 0)
        longer = []
        for start, chances, end in zip(starts, going_on, ends, strict=True):
            if mix is not None:
                chances, end = mix(start.token_ids, chances, end)
            found.append(dataclasses.replace(start, end_log_probability=float(end)))
            best = chances.topk(width)
            for value, token_id in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                longer.append(start.longer(token_id, value))
        found = sorted(found, key=lambda fill: -fill.log_probability)[:width]
        longer.sort(key=lambda start: -start.start_log_probability)
        least = found[-1].log_probability if len(found) == width else -math.inf
        starts = [start for start in longer[:width] if start.start_log_probability > least]
        if not starts:
            break
        yield None
    return found
