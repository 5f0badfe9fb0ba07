"""The encoder as a decoder of its own: a token a pass, and the judge of what diffusion drafted.

Both modes of the model share their weights, so that every checkpoint of ours can also write from
left to right with the suffix in its prompt. Its chain of probabilities says how likely a text is to
be exactly right, which the canvas, all of whose slots lean on each other, cannot say.
Knows ids and tensors, not text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import KVCache, PrefixCache
from .model import DiffusionGemma
from .types import CancellationToken


@dataclass(frozen=True, slots=True)
class CausalRules:
    """What may follow what in a hole that is read from left to right.

    Attributes:
        banned: (V,) bool, tokens that no place may take.
        ends: (V,) bool, tokens before which the fill ends; not banned, at least one.
        first_allowed: (V,) bool, the only tokens that the first place may take, be they `banned` or
            `ends`; at least one. None treats the first place like the others.
    """

    banned: Tensor
    ends: Tensor
    first_allowed: Tensor | None = None

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

    @property
    def log_probability(self) -> float:
        """That the fill is these tokens and no more."""
        return sum(self.log_probabilities) + self.end_log_probability


@torch.no_grad()
def decode_left_to_right(
    prefix_cache: PrefixCache,
    prompt_ids: Sequence[int],
    rules: CausalRules,
    max_tokens: int,
    num_tokens: int | None = None,
    cancel: CancellationToken | None = None,
) -> Iterator[Chain]:
    """Write the most likely token at each place, until the end is likelier than any.

    Args:
        prefix_cache: of the model; holds the prompt and the fill afterwards, so that accepting the
            fill costs no encoding.
        prompt_ids: S >= 1.
        rules: of the hole.
        max_tokens: where to stop at the latest.
        num_tokens: write exactly so many; None to end where the model ends.
        cancel: looked at before every pass.
    Yields:
        the fill so far, after every pass. The last one is the fill; the same as the one before, if
        the end came.
    Raises:
        Cancelled: within one pass of the token being set.
    """
    chain = Chain((), (), -math.inf)
    last = max_tokens if num_tokens is None else num_tokens
    while True:
        if cancel is not None:
            cancel.raise_if_cancelled()
        logits = prefix_cache.next_token_logits([*prompt_ids, *chain.token_ids])
        going_on, end = rules.log_probabilities(logits[None], is_first=not chain.token_ids)
        best, token_id = going_on[0].max(dim=-1)
        if num_tokens is None and float(end) >= float(best):
            yield Chain(chain.token_ids, chain.log_probabilities, float(end))
            return
        if len(chain.token_ids) == last:  # full: only the chance of ending here was still to know
            yield Chain(chain.token_ids, chain.log_probabilities, float(end))
            return
        chain = Chain(
            (*chain.token_ids, int(token_id)),
            (*chain.log_probabilities, float(best)),
            -math.inf,
        )
        yield chain


@torch.no_grad()
def read_left_to_right(
    model: DiffusionGemma,
    cache: KVCache,
    prompt_ids: Sequence[int],
    drafts: Sequence[Sequence[int]],
    rules: CausalRules,
) -> list[Chain]:
    """Judge drafts in one pass: the chain of each.

    Args:
        model: the model.
        cache: of `prompt_ids`, one row. Only read.
        prompt_ids: S >= 1.
        drafts: token ids without end marks; may be empty ones.
        rules: of the hole.
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
        own = going_on[range(len(draft)), list(draft)].tolist() if draft else []
        chains.append(Chain(tuple(draft), tuple(own), float(end[len(draft)])))
    return chains
