"""Attention of a canvas over a cached prefix and itself, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import attention


def canvas_attention_reference(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prefix_length: Tensor | None = None,
    window: int | None = None,
    canvas_length: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """See `dgemma_kernels.canvas_attention`."""
    end = prefix_key.shape[2] if prefix_length is None else int(prefix_length)
    start = 0 if window is None else max(0, end - window)
    batch = query.shape[0]
    seen_key = prefix_key[:, :, start:end].expand(batch, -1, -1, -1)
    seen_value = prefix_value[:, :, start:end].expand(batch, -1, -1, -1)
    if canvas_length is not None:
        key, value = key[:, :, : int(canvas_length)], value[:, :, : int(canvas_length)]
    mask = None
    if causal:
        num_seen, num_new = end - start, key.shape[2]
        place = torch.arange(-num_seen, num_new, device=query.device)[None, :]
        distance = torch.arange(query.shape[2], device=query.device)[:, None] - place
        mask = distance >= 0
        if window is not None:
            mask &= distance <= window
    return attention(
        query, torch.cat((seen_key, key), dim=2), torch.cat((seen_value, value), dim=2), mask
    )
