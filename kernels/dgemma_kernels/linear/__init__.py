"""Product with one weight, plain or quantised."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel
from ..weights import QuantizedWeight
from .reference import linear_reference

__all__ = ["linear", "linear_reference"]


def linear(hidden: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """Compute hidden @ weight^T: see `linear_reference`.

    The kernel is for quantised weights, those of 4 bits in the order of
    `QuantizedWeight.prepared_for_kernel`; plain ones are left to torch's library.
    """
    if not wants_kernel("linear", hidden.device):
        return linear_reference(hidden, weight)
    from .kernel import linear_triton, why_not_linear

    return attempt(
        "linear",
        why_not_linear(hidden, weight),
        lambda: linear_triton(hidden, weight),
        lambda: linear_reference(hidden, weight),
    )
