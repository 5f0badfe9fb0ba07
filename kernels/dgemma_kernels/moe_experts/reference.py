"""Routing and a mixture of gated experts in plain PyTorch: one expert after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import QuantizedWeight, matrix


def route_reference(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Choose A of E experts for every token and say what each counts.

    Softmax over all experts first, then the top A, renormalised, times each expert's scale.

    Args:
        scores: (T, E) logits of any float dtype. Not modified.
        top_k: A, at most E.
        per_expert_scale: (E,).
    Returns:
        expert_index (T, A) int64, the most probable first, and expert_weight (T, A) float32. The
        order of experts that are equally probable is torch.topk's, which says nothing of it.
    Source: transformers 5.23 DiffusionGemmaTextRouter.
    """
    probabilities = scores.softmax(dim=-1, dtype=torch.float32)
    weight, index = torch.topk(probabilities, k=top_k, dim=-1)
    weight = weight / weight.sum(dim=-1, keepdim=True)
    return index, weight * per_expert_scale[index]


def moe_experts_reference(
    hidden: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """Send every token through its experts and sum their outputs by weight.

    Experts are visited in ascending order and their outputs added in the dtype of `hidden`, which
    is the order and the rounding of the published model.

    Args:
        hidden: (T, D), T tokens. Not modified.
        expert_index: (T, A) int64, the A experts of each token, all different.
        expert_weight: (T, A), what each expert's output counts.
        gate_up_proj: (E, 2F, D), rows 0..F-1 the gate, F..2F-1 the up projection. A quantised one
            is turned back to the dtype of `hidden`, an expert at a time.
        down_proj: (E, D, F), likewise.
    Returns:
        (T, D), dtype of `hidden`.
    Source: transformers 5.23 DiffusionGemmaTextExperts.
    """
    output = torch.zeros_like(hidden)
    for expert in range(gate_up_proj.shape[0]):
        token_index, slot = torch.where(expert_index == expert)
        if token_index.numel() == 0:
            continue
        gate_up = F.linear(hidden[token_index], matrix(gate_up_proj, expert, hidden.dtype))
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.gelu(gate, approximate="tanh") * up
        expert_output = F.linear(activated, matrix(down_proj, expert, hidden.dtype))
        expert_output = expert_output * expert_weight[token_index, slot, None]
        output.index_add_(0, token_index, expert_output.to(output.dtype))
    return output
