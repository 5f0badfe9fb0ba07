"""Root-mean-square norm."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from .reference import rms_norm_reference

__all__ = ["rms_norm"]


def rms_norm(hidden: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis, then scale.

    The whole computation is float32, the scaling included; the result is rounded once, to the
    dtype of `hidden`. The scale is the weight itself, not 1 + weight as in earlier Gemmas.

    Args:
        hidden: (..., D), any float dtype. Not modified.
        weight: (D,), or None for no scaling.
        eps: added to the mean square.
    Returns:
        (..., D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaRMSNorm.
    """
    if not wants_kernel("rms_norm", hidden.device):
        return rms_norm_reference(hidden, weight, eps)
    from . import kernel

    given = (hidden,) if weight is None else (hidden, weight)
    return attempt(
        "rms_norm",
        why_not_these(*given) or kernel.why_not(hidden, weight),
        lambda: kernel.rms_norm_kernel(hidden, weight, eps),
        lambda: rms_norm_reference(hidden, weight, eps),
    )
