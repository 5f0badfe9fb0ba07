"""Root-mean-square norm in plain PyTorch, rounded where the published model rounds."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(hidden: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis, then scale.

    The whole computation is float32, the scaling included; the result is rounded once, to the
    dtype of `hidden`. The scale is the weight itself, not 1 + weight as in earlier Gemmas.

    Args:
        hidden: (..., D), any float dtype. Not modified.
        weight: (D,), or None for no scaling.
        eps: added to the mean square.
    Returns:
        (..., D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaRMSNorm (power -0.5, not rsqrt: they differ by 1 ulp).
    """
    hidden_fp32 = hidden.float()
    mean_square = hidden_fp32.pow(2).mean(-1, keepdim=True) + eps
    normed = hidden_fp32 * torch.pow(mean_square, -0.5)
    if weight is not None:
        normed = normed * weight.float()
    return normed.to(hidden.dtype)
