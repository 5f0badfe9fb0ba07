"""The encoder as a decoder of its own: a token a pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from .cache import PrefixCache
from .chains import CausalRules, Chain
from .types import CancellationToken


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
