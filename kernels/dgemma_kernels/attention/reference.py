"""Grouped-query attention in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention_reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with a scale of 1: the query norm's weight carries the scale in this architecture.

    Args:
        query: (B, H, S, K). Not modified.
        key: (B, G, L, K) with H divisible by G; query head h reads key head h // (H / G).
        value: as `key`.
        mask: bool, broadcastable to (B, H, S, L), True where a query may look; None for everywhere.
    Returns:
        (B, H, S, K), dtype of `query`.
    Source: transformers 5.23 DiffusionGemmaDecoderTextAttention with `sdpa`.
    """
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=1.0, enable_gqa=query.shape[1] != key.shape[1]
    )
