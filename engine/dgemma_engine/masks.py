"""Who may look at whom in the encoder: pure functions returning bool masks.

The canvas needs none: all of its rows see the same keys, which `KVCache.canvas_keys` selects.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encoder_mask(
    num_cached: int, num_new: int, sliding_window: int | None, device: torch.device
) -> Tensor:
    """Mask of new encoder tokens over cached and new ones: causal, and within the window if any.

    Args:
        num_cached: keys already in the cache, >= 0.
        num_new: queries, which are also the last keys, >= 1.
        sliding_window: query i sees key j with 0 <= i - j < sliding_window; None sees all j <= i.
        device: where to build it.
    Returns:
        (num_new, num_cached + num_new) bool, True where a query may look.
    """
    query = torch.arange(num_cached, num_cached + num_new, device=device)[:, None]
    key = torch.arange(num_cached + num_new, device=device)[None, :]
    distance = query - key
    mask = distance >= 0
    if sliding_window is not None:
        mask &= distance < sliding_window
    return mask
