"""Routing tokens to experts, and the mixture of gated experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import attempt, wants_kernel
from ..weights import QuantizedWeight, WeightFormat
from .dense import moe_experts_dense
from .reference import moe_experts_reference, route_reference

__all__ = [
    "moe_experts",
    "moe_experts_dense",
    "moe_experts_reference",
    "route",
    "route_reference",
]

# On a CPU, of 2 from 4 experts: 2.2 times as fast at 1 token, 1.05 times at 256, 0.9 times at 512.
_MOST_DENSE_TOKENS = 256


def route(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Choose A of E experts for every token: see `route_reference`.

    The kernel puts the lower index first where two are equally probable.
    """
    if not wants_kernel("route", scores.device):
        return route_reference(scores, top_k, per_expert_scale)
    from .kernel import route_triton, why_not_route

    return attempt(
        "route",
        why_not_route(scores, top_k, per_expert_scale),
        lambda: route_triton(scores, top_k, per_expert_scale),
        lambda: route_reference(scores, top_k, per_expert_scale),
    )


def moe_experts(
    hidden: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """Send every token through its experts and sum by weight: see `moe_experts_reference`.

    The kernel takes 4-bit weights in the order of `QuantizedWeight.prepared_for_kernel`, and sums
    in float32. It gives the same bits for the same arguments.
    """
    if not wants_kernel("moe_experts", hidden.device):
        if _is_faster_dense(hidden, expert_index, gate_up_proj, down_proj):
            return moe_experts_dense(hidden, expert_index, expert_weight, gate_up_proj, down_proj)
        return moe_experts_reference(hidden, expert_index, expert_weight, gate_up_proj, down_proj)
    from .kernel import moe_experts_triton, why_not_experts

    return attempt(
        "moe_experts",
        why_not_experts(hidden, expert_weight, gate_up_proj, down_proj),
        lambda: moe_experts_triton(hidden, expert_index, expert_weight, gate_up_proj, down_proj),
        lambda: moe_experts_reference(hidden, expert_index, expert_weight, gate_up_proj, down_proj),
    )


def _is_faster_dense(
    hidden: Tensor,
    expert_index: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> bool:
    """Whether searching and gathering tokens costs more than the experts that were not chosen."""
    num_tokens, num_chosen = expert_index.shape
    most_tokens = min(_most_dense_tokens(gate_up_proj), _most_dense_tokens(down_proj))
    is_plain = hidden.device.type == "cpu" and hidden.dtype is torch.float32
    return is_plain and num_tokens <= most_tokens and gate_up_proj.shape[0] <= 2 * num_chosen


def _most_dense_tokens(weight: Tensor | QuantizedWeight) -> int:
    if isinstance(weight, Tensor):
        return _MOST_DENSE_TOKENS
    return 1 if weight.format is WeightFormat.INT8 else 0
