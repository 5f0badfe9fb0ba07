"""One step's decisions: which positions to accept, and fresh noise for the others.

Pure functions; the random generator is passed in. The loop is in `denoise.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Acceptance(NamedTuple):
    """mask (B, C) bool, True where a candidate is accepted; entropy (B, C) float32, nats."""

    mask: Tensor
    entropy: Tensor


def accept(
    logits: Tensor, *, entropy_bound: float, min_accepted: Tensor | None = None
) -> Acceptance:
    """Accept the most certain positions whose joint entropy stays within a bound.

    Positions are sorted by entropy h; the first k are accepted while
    sum(h_1..h_k) - h_k <= entropy_bound, so at least one is.

    Args:
        logits: (B, C, V) float32, already divided by the temperature; -inf where a token is ruled
            out. Not modified.
        entropy_bound: nats, > 0.
        min_accepted: (B,) int64; in each row at least so many of the most certain positions are
            accepted, whatever the bound says. None for no such floor.
    Returns:
        the accepted positions and every position's entropy.
    Raises:
        ValueError: entropy_bound <= 0 (the message shows it).
    Source: arXiv 2505.24857; transformers 5.23 EntropyBoundSampler.accept_canvas.
    """
    if entropy_bound <= 0:
        raise ValueError(f"entropy_bound must be above 0, got {entropy_bound}")
    distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
    entropy = distribution.entropy()  # type: ignore[no-untyped-call]  # (B, C)
    ordered, order = torch.sort(entropy, dim=-1)
    accepted = ordered.cumsum(dim=-1) - ordered <= entropy_bound
    if min_accepted is not None:
        rank = torch.arange(entropy.shape[-1], device=entropy.device)
        accepted |= rank[None, :] < min_accepted[:, None]
    mask = torch.zeros_like(accepted).scatter(dim=-1, index=order, src=accepted)
    return Acceptance(mask, entropy)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token per position: (B, C, V) float32 to (B, C) int64.

    Draws what `torch.multinomial` draws on the same generator state, as transformers does.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float32).flatten(0, 1)  # (B * C, V)
    drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)
    return drawn.view(logits.shape[:2])


def noise(shape: tuple[int, int], vocab_size: int, generator: torch.Generator) -> Tensor:
    """Uniform noise over the whole vocabulary, special tokens included: (B, C) int64."""
    return torch.randint(0, vocab_size, shape, generator=generator, device=generator.device)
