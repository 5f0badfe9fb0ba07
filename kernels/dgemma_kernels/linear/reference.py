"""Product with one weight in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..weights import QuantizedWeight, WeightFormat


def linear_reference(hidden: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """Compute hidden @ weight^T.

    Args:
        hidden: (..., K). Not modified.
        weight: (N, K). A quantised one is turned back to the dtype of `hidden`; for one token INT8
            is multiplied as it is.
    Returns:
        (..., N), dtype of `hidden`.
    """
    if isinstance(weight, Tensor):
        return F.linear(hidden, weight)
    if weight.format is WeightFormat.INT8 and hidden.shape[:-1].numel() == 1:
        return weight.times(hidden.reshape(-1)).view(*hidden.shape[:-1], -1)
    return F.linear(hidden, weight.dequantize(hidden.dtype))
