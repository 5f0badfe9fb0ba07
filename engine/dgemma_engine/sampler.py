"""One step's decisions: which positions to accept, and fresh noise for the others.

Pure functions; the random generator is passed in. The loop is in `denoise.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgemma_kernels.vocab_head.reference import draw_reference


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


class Randoms(NamedTuple):
    """All that is random in one denoising, drawn before it: B canvases of C positions, N steps.

    Attributes:
        initial: (B, C) int64, the noise that it begins with.
        draws: (N, B, M, 2) float32 in [0, 1), by which each step draws at the M slots; see
            `dgemma_kernels.vocab_head`.
        fresh: (N, B, C) int64, each step's noise for what is not accepted.
    """

    initial: Tensor
    draws: Tensor
    fresh: Tensor

    @classmethod
    def of(
        cls,
        generator: torch.Generator,
        *,
        num_steps: int,
        shape: tuple[int, int],
        num_slots: int,
        vocab_size: int,
    ) -> Randoms:
        """Drawn on the generator's device, in the order of the attributes."""
        batch_size, length = shape
        initial = noise(shape, vocab_size, generator)
        draws = torch.rand(
            (num_steps, batch_size, num_slots, 2), generator=generator, device=generator.device
        )
        fresh = noise((num_steps * batch_size, length), vocab_size, generator)
        return cls(initial, draws, fresh.view(num_steps, batch_size, length))

    def draw(self, step: int, logits: Tensor) -> Tensor:
        """One token a slot: (B, M, V) float32 to (B, M) int64."""
        probability = logits.softmax(dim=-1).flatten(0, 1)
        return draw_reference(probability, self.draws[step].flatten(0, 1)).view(logits.shape[:2])

    def select(self, rows: Tensor) -> Randoms:
        """Those of some rows: (N,) int64."""
        return Randoms(self.initial[rows], self.draws[:, rows], self.fresh[:, rows])
