"""Routing tokens to experts, and the mixture of gated experts."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel
from ..weights import QuantizedWeight
from .reference import moe_experts_reference, route_reference

__all__ = ["moe_experts", "moe_experts_reference", "route", "route_reference"]


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
        return moe_experts_reference(hidden, expert_index, expert_weight, gate_up_proj, down_proj)
    from .kernel import moe_experts_triton, why_not_experts

    return attempt(
        "moe_experts",
        why_not_experts(hidden, expert_weight, gate_up_proj, down_proj),
        lambda: moe_experts_triton(hidden, expert_index, expert_weight, gate_up_proj, down_proj),
        lambda: moe_experts_reference(hidden, expert_index, expert_weight, gate_up_proj, down_proj),
    )
