"""A norm, its residual, a scalar, and the norms that follow, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..rms_norm.reference import rms_norm_reference


def residual_norm_reference(
    residual: Tensor,
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    *,
    scalar: Tensor | None = None,
    next_weights: Sequence[Tensor | None] = (),
) -> tuple[Tensor, ...]:
    """See `dgemma_kernels.residual_norm`."""
    total = residual + rms_norm_reference(hidden, weight, eps)
    if scalar is not None:
        total = total * scalar
    return (total, *(rms_norm_reference(total, following, eps) for following in next_weights))
