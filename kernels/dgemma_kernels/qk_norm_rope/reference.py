"""From projections to what attention reads: per-head norms and rotation, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..rms_norm.reference import rms_norm_reference
from ..rope.reference import rope_reference


class Heads(NamedTuple):
    """query (B, H, S, K); key and value (B, G, S, K)."""

    query: Tensor
    key: Tensor
    value: Tensor


def qk_norm_rope_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    into: tuple[Tensor, Tensor] | None = None,
) -> Heads:
    """See `dgemma_kernels.qk_norm_rope`."""
    sizes = [query.shape[2], key.shape[2]]
    weights = torch.cat((query_weight.expand(sizes[0], -1), key_weight.expand(sizes[1], -1)))
    normed = rms_norm_reference(torch.cat((query, key), dim=2), weights, eps)  # (B, S, H + G, K)
    rotated = rope_reference(normed, cos, sin).transpose(1, 2)
    rotated_query, rotated_key = torch.split(rotated, sizes, dim=1)
    normed_value = rms_norm_reference(value, None, eps).transpose(1, 2)
    heads = Heads(rotated_query, rotated_key, normed_value)
    if into is None:
        return heads
    into[0].copy_(heads.key)
    into[1].copy_(heads.value)
    return Heads(heads.query, *into)
