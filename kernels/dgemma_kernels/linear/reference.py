"""Product with one weight in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..weights import QuantizedWeight


def linear_reference(hidden: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """Compute hidden @ weight^T.

    Args:
        hidden: (..., K). Not modified.
        weight: (N, K). A quantised one is turned back to the dtype of `hidden`.
    Returns:
        (..., N), dtype of `hidden`.
    """
    plain = weight if isinstance(weight, Tensor) else weight.dequantize(hidden.dtype)
    return F.linear(hidden, plain)
