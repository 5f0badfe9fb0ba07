"""The mixture of gated experts without a choice: for few tokens and few experts on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..weights import QuantizedWeight


def moe_experts_dense(
    hidden: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """As `moe_experts_reference`, with every token sent through every expert.

    What a token did not choose counts 0. Nothing is searched, gathered or added by index, so that
    the same operations run whatever is chosen. Rounds in another order than the published model.

    Args:
        hidden: (T, D); of one token, if the weights are quantised. Not modified.
        expert_index: (T, A) int64.
        expert_weight: (T, A).
        gate_up_proj: (E, 2F, D), dtype of `hidden`, or in INT8.
        down_proj: (E, D, F), likewise.
    Returns:
        (T, D), dtype of `hidden`.
    """
    num_experts, double, size = gate_up_proj.shape
    weight = hidden.new_zeros(hidden.shape[0], num_experts)
    weight = weight.scatter(1, expert_index, expert_weight.to(hidden.dtype))  # (T, E)
    if isinstance(gate_up_proj, Tensor):
        gate_up = F.linear(hidden, gate_up_proj.view(-1, size)).view(-1, num_experts, double)
    else:
        gate_up = gate_up_proj.times(hidden)[None]
    gate, up = gate_up.chunk(2, dim=-1)
    activated = F.gelu(gate, approximate="tanh") * up * weight[..., None]  # (T, E, F)
    if isinstance(down_proj, Tensor):
        return torch.bmm(activated.transpose(0, 1), down_proj.transpose(1, 2)).sum(dim=0)
    return down_proj.times(activated[0]).sum(dim=0, keepdim=True)
