"""Rotary position embedding in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_reference(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K/2) of every head by its position's angles.

    Args:
        heads: (B, S, N, K) for any number of heads N. Not modified.
        cos: (B or 1, S, K), the angles of the first K/2 channels repeated; dtype of `heads`.
        sin: as `cos`.
    Returns:
        (B, S, N, K), dtype of `heads`.
    Source: transformers 5.23 apply_rotary_pos_emb (rotate-half pairing).
    """
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return heads * cos.unsqueeze(-2) + rotated * sin.unsqueeze(-2)
