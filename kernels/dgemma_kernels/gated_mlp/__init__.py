"""Gated feed-forward network."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel
from ..weights import QuantizedWeight
from .reference import gated_mlp_reference

__all__ = ["gated_mlp", "gated_mlp_reference"]


def gated_mlp(
    hidden: Tensor,
    gate_proj: Tensor | QuantizedWeight,
    up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """Compute down(gelu_tanh(gate(hidden)) * up(hidden)): see `gated_mlp_reference`.

    The kernel is for quantised weights, as that of `linear`.
    """
    if not wants_kernel("gated_mlp", hidden.device):
        return gated_mlp_reference(hidden, gate_proj, up_proj, down_proj)
    from ..linear.kernel import why_not_linear
    from .kernel import gated_mlp_triton

    return attempt(
        "gated_mlp",
        why_not_linear(hidden, gate_proj, up_proj, down_proj),
        lambda: gated_mlp_triton(hidden, gate_proj, up_proj, down_proj),
        lambda: gated_mlp_reference(hidden, gate_proj, up_proj, down_proj),
    )
