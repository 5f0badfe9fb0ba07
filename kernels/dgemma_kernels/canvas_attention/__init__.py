"""Attention of a canvas over a cached prefix and itself."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from .reference import canvas_attention_reference

__all__ = ["canvas_attention"]


def canvas_attention(
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
    """Attend to the prefix and to the whole canvas, without a mask and with a scale of 1.

    Every query sees the same keys, however far into the canvas it stands: on a layer with a window
    the last `window` keys of the prefix, and always all of the canvas. With `causal` they are new
    tokens of the prefix instead: each sees itself and what is before it, on a layer with a window
    the last `window` of these.

    Args:
        query: (B, H, M, K), all canvas positions or some of them. Not modified.
        prefix_key: (B or 1, G, S, K) with H divisible by G, views into a cache; query head h reads
            key head h // (H / G). One row serves all canvases. S may be 0.
        prefix_value: as `prefix_key`.
        key: (B, G, C, K), the canvas's own.
        value: as `key`.
        prefix_length: () or (1,) int32 on the device, how many of the S keys count; None for all. A
            cache of fixed size thus serves a captured CUDA graph while it fills.
        window: how many keys of the prefix are seen at most; None for all.
        canvas_length: () or (1,) int32 on the device, how many of the C keys count; None for all.
        causal: whether query m stands at key m of the C and sees none behind it.
    Returns:
        (B, H, M, K), dtype of `query`.
    Source: transformers 5.23 DiffusionGemmaDecoderTextAttention with `sdpa` over a DynamicCache.
    """

    def twin() -> Tensor:
        return canvas_attention_reference(
            query,
            prefix_key,
            prefix_value,
            key,
            value,
            prefix_length=prefix_length,
            window=window,
            canvas_length=canvas_length,
            causal=causal,
        )

    if not wants_kernel("canvas_attention", query.device):
        return twin()
    from . import kernel

    tensors = (query, prefix_key, prefix_value, key, value)
    return attempt(
        "canvas_attention",
        why_not_these(*tensors) or kernel.why_not(*tensors),
        lambda: kernel.canvas_attention_kernel(
            *tensors,
            prefix_length=prefix_length,
            window=window,
            canvas_length=canvas_length,
            causal=causal,
        ),
        twin,
    )
