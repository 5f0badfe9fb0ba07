"""Mixture of gated experts in plain PyTorch: one expert after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moe_experts_reference(
    hidden: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """Send every token through its experts and sum their outputs by weight.

    Experts are visited in ascending order and their outputs added in the dtype of `hidden`, which
    is the order and the rounding of the published model.

    Args:
        hidden: (T, D), T tokens. Not modified.
        expert_index: (T, A) int64, the A experts of each token, all different.
        expert_weight: (T, A), what each expert's output counts.
        gate_up_proj: (E, 2F, D), rows 0..F-1 the gate, F..2F-1 the up projection.
        down_proj: (E, D, F).
    Returns:
        (T, D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaTextExperts.
    """
    output = torch.zeros_like(hidden)
    for expert in range(gate_up_proj.shape[0]):
        token_index, slot = torch.where(expert_index == expert)
        if token_index.numel() == 0:
            continue
        gate, up = F.linear(hidden[token_index], gate_up_proj[expert]).chunk(2, dim=-1)
        expert_output = F.linear(F.gelu(gate, approximate="tanh") * up, down_proj[expert])
        expert_output = expert_output * expert_weight[token_index, slot, None]
        output.index_add_(0, token_index, expert_output.to(output.dtype))
    return output
