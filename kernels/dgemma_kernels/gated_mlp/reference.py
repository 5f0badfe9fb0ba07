"""Gated feed-forward network in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gated_mlp_reference(
    hidden: Tensor, gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """Compute down(gelu_tanh(gate(hidden)) * up(hidden)).

    Args:
        hidden: (..., D). Not modified.
        gate_proj: (F, D).
        up_proj: (F, D).
        down_proj: (D, F).
    Returns:
        (..., D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaText4MLP.
    """
    gate = F.gelu(F.linear(hidden, gate_proj), approximate="tanh")
    return F.linear(gate * F.linear(hidden, up_proj), down_proj)
