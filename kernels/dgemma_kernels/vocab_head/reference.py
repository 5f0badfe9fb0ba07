"""The vocabulary head in plain PyTorch: logits first, then everything that is asked of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import QuantizedWeight

# Draws go by tiles of the vocabulary: one uniform number chooses the tile, one the token in it. The
# kernel's tiles are these, so that both forms draw the same token from the same numbers.
TILE = 128
# The largest softcap / temperature of which the kernel keeps masses in float32.
LARGEST_LOGIT = 77.0


class TokenRules(NamedTuple):
    """What a row may say. A clamped row is certain of its token, whatever else is ruled.

    Attributes:
        banned: (V,) bool, tokens that no row may say but first ones; None bans nothing.
        first_allowed: (V,) bool, all that a first row may say, `banned` or not; None treats first
            rows like the others.
        clamped_ids: (N,) int64, the token of a clamped row, -1 for the others; None clamps none.
        is_first: (N,) bool, rows of which `first_allowed` speaks; None for no such row.
        holes: (N,) int64, for each first row the row of `first_allowed` that speaks of it, which is
            then (H, V); -1 or 0 elsewhere. None: it is (V,), and speaks of all.
    """

    banned: Tensor | None = None
    first_allowed: Tensor | None = None
    clamped_ids: Tensor | None = None
    is_first: Tensor | None = None
    holes: Tensor | None = None

    def restrict(self, logits: Tensor) -> Tensor:
        """Rule tokens out: (N, V) float32 to (N, V) float32 with -inf, and 0 at clamped tokens."""
        restricted = logits
        is_first = self.is_first if self.first_allowed is not None else None
        if self.banned is not None:
            is_banned = self.banned.expand_as(logits)
            if is_first is not None:
                is_banned = is_banned & ~is_first[:, None]
            restricted = restricted.masked_fill(is_banned, -math.inf)
        if is_first is not None and self.first_allowed is not None:
            allowed = self.first_allowed
            if self.holes is not None:
                allowed = allowed[self.holes.clamp(min=0)]  # (N, V)
            is_wrong = is_first[:, None] & ~allowed
            restricted = restricted.masked_fill(is_wrong, -math.inf)
        if self.clamped_ids is not None:
            is_clamped = (self.clamped_ids >= 0)[:, None]
            certain = torch.full_like(logits, -math.inf)
            certain.scatter_(-1, self.clamped_ids.clamp(min=0)[:, None], 0.0)
            restricted = torch.where(is_clamped, certain, restricted)
        return restricted


class HeadOutput(NamedTuple):
    """What the rows believe, N rows.

    Attributes:
        argmax: (N,) int64, the first of the most likely tokens.
        maximum: (N,) float32, its logit.
        log_normalizer: (N,) float32, log of the sum of exp(logits).
        entropy: (N,) float32, nats, >= 0.
        sample: (N,) int64, one token drawn; None without draws.
        masses: (N, V) in the dtype of the hidden states, proportional to the probabilities; None
            unless asked for.
        mass_scale: (N,) float32: masses times this are the probabilities; None as `masses`.
        logits: (N, V) float32, restricted and divided by the temperature; None unless asked for.
    """

    argmax: Tensor
    maximum: Tensor
    log_normalizer: Tensor
    entropy: Tensor
    sample: Tensor | None
    masses: Tensor | None
    mass_scale: Tensor | None
    logits: Tensor | None


def vocab_head_reference(
    hidden: Tensor,
    weight: Tensor | QuantizedWeight,
    *,
    softcap: float | None,
    temperature: float | Tensor,
    draws: Tensor | None = None,
    rows: Tensor | None = None,
    rules: TokenRules | None = None,
    round_logits: bool = True,
    keep_masses: bool = False,
    keep_logits: bool = False,
    masses_into: Tensor | None = None,
) -> HeadOutput:
    """See `dgemma_kernels.vocab_head`."""
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize(hidden.dtype)
    if rows is not None:
        hidden = hidden[rows]
    kept_dtype = hidden.dtype
    dtype = hidden.dtype if round_logits else torch.float32
    logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()  # (N, V)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits / temperature
    if rules is not None:
        logits = rules.restrict(logits)
    log_normalizer = logits.logsumexp(dim=-1)
    log_probability = logits - log_normalizer[:, None]
    probability = log_probability.exp()
    entropy = -torch.where(probability > 0, probability * log_probability, 0.0).sum(dim=-1)
    masses = mass_scale = None
    if keep_masses:
        rounded = logits.to(dtype).float()
        rounded = (rounded - rounded.amax(dim=-1, keepdim=True)).exp()
        masses, mass_scale = rounded.to(kept_dtype), 1.0 / rounded.sum(dim=-1)
        if masses_into is not None:
            masses = masses_into.copy_(masses)
    return HeadOutput(
        argmax=logits.argmax(dim=-1),
        maximum=logits.amax(dim=-1),
        log_normalizer=log_normalizer,
        entropy=entropy.clamp(min=0.0),
        sample=None if draws is None else draw_reference(probability, draws),
        masses=masses,
        mass_scale=mass_scale,
        logits=logits if keep_logits else None,
    )


def draw_reference(probability: Tensor, draws: Tensor) -> Tensor:
    """Draw one token a row by inverting the distribution twice: the tile, then the token in it.

    Args:
        probability: (N, V) float32, rows that sum to about 1.
        draws: (N, 2) float32 in [0, 1): what chooses the tile, and the token.
    Returns:
        (N,) int64. Never a token of probability 0.
    """
    padding = -probability.shape[-1] % TILE
    tiles = F.pad(probability, (0, padding)).view(len(draws), -1, TILE)  # (N, V / TILE, TILE)
    tile = _invert(tiles.sum(dim=-1), draws[:, 0])
    inside = tiles[torch.arange(len(tiles), device=tiles.device), tile]  # (N, TILE)
    return tile * TILE + _invert(inside, draws[:, 1])


def _invert(mass: Tensor, draw: Tensor) -> Tensor:
    """Where the running sum of mass (N, M) passes the draw's (N,) share of it: (N,) int64."""
    running = mass.cumsum(dim=-1)
    is_passed = (running > draw[:, None] * running[:, -1:]) & (mass > 0)
    index = torch.arange(mass.shape[-1], device=mass.device).expand_as(mass)
    first = torch.where(is_passed, index, mass.shape[-1]).amin(dim=-1)
    # The running sum may lose an ulp on its way, and none passes: then it is the most likely one.
    return torch.where(first < mass.shape[-1], first, mass.argmax(dim=-1))
