"""From projections to what attention reads: per-head norms and rotation, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

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
    heads = Heads(
        rope_reference(rms_norm_reference(query, query_weight, eps), cos, sin).transpose(1, 2),
        rope_reference(rms_norm_reference(key, key_weight, eps), cos, sin).transpose(1, 2),
        rms_norm_reference(value, None, eps).transpose(1, 2),
    )
    if into is None:
        return heads
    into[0].copy_(heads.key)
    into[1].copy_(heads.value)
    return Heads(heads.query, *into)
