"""Gated feed-forward network in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..linear.reference import linear_reference
from ..weights import QuantizedWeight


def gated_mlp_reference(
    hidden: Tensor,
    gate_proj: Tensor | QuantizedWeight,
    up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """Compute down(gelu_tanh(gate(hidden)) * up(hidden)).

    Args:
        hidden: (..., D). Not modified.
        gate_proj: (F, D). A quantised weight is turned back to the dtype of `hidden`.
        up_proj: (F, D).
        down_proj: (D, F).
    Returns:
        (..., D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaText4MLP.
    """
    gate = F.gelu(linear_reference(hidden, gate_proj), approximate="tanh")
    return linear_reference(gate * linear_reference(hidden, up_proj), down_proj)
