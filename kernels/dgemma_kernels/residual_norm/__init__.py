"""The end of a sublayer: norm, residual, layer scalar, and the norms that follow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from .reference import residual_norm_reference

__all__ = ["residual_norm"]


def residual_norm(
    residual: Tensor,
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    *,
    scalar: Tensor | None = None,
    next_weights: Sequence[Tensor | None] = (),
) -> tuple[Tensor, ...]:
    """Compute (residual + rms_norm(hidden, weight)) * scalar, and norms of the result.

    Rounded to the dtype of `hidden` after the norm, the sum and the product, as the published model
    does.

    Args:
        residual: (..., D), dtype of `hidden`. Not modified.
        hidden: (..., D), a sublayer's output. Not modified.
        weight: (D,).
        eps: added to the mean squares.
        scalar: (1,), the layer scalar; None for 1. One of another shape takes the twin.
        next_weights: for each norm of the result (D,), or None for a norm that does not scale. More
            than three take the twin.
    Returns:
        (..., D) the sum, then one such tensor for each of `next_weights`.
    Source: transformers 5.23 DiffusionGemmaTextDecoderLayer.
    """
    next_weights = tuple(next_weights)

    def twin() -> tuple[Tensor, ...]:
        return residual_norm_reference(
            residual, hidden, weight, eps, scalar=scalar, next_weights=next_weights
        )

    if not wants_kernel("residual_norm", hidden.device):
        return twin()
    from . import kernel

    given = (tensor for tensor in (scalar, *next_weights) if tensor is not None)
    reason = why_not_these(residual, hidden, weight, *given)
    return attempt(
        "residual_norm",
        reason or kernel.why_not(residual, hidden, scalar, next_weights),
        lambda: kernel.residual_norm_kernel(
            residual, hidden, weight, eps, scalar=scalar, next_weights=next_weights
        ),
        twin,
    )
