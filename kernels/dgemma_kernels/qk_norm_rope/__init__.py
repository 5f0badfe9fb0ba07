"""From query, key and value projections to what attention reads and a cache keeps."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from .reference import Heads, qk_norm_rope_reference

__all__ = ["Heads", "qk_norm_rope"]


def qk_norm_rope(
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
    """Norm every head, rotate queries and keys, and lay the heads out before the tokens.

    Values are normed without a scale and not rotated. On a layer without a value projection they
    are the key projection itself: `value` is then `key`.

    Args:
        query: (B, S, H, K), the projection. Not modified.
        key: (B, S, G, K).
        value: (B, S, G, K).
        query_weight: (K,), of the query norm.
        key_weight: (K,), of the key norm.
        cos: (B or 1, S, K), the angles of the first K/2 channels repeated; dtype of `query`.
        sin: as `cos`.
        eps: added to the mean squares.
        into: (B, G, S, K) twice, views into a cache that keys and values are written to; None for
            new tensors.
    Returns:
        see `Heads`; with `into` its key and value are these views.
    Source: transformers 5.23 DiffusionGemmaDecoderTextAttention.
    """

    def twin() -> Heads:
        return qk_norm_rope_reference(
            query, key, value, query_weight, key_weight, cos, sin, eps, into=into
        )

    if not wants_kernel("qk_norm_rope", query.device):
        return twin()
    from . import kernel

    reason = why_not_these(query, key, value, query_weight, key_weight, cos, sin)
    return attempt(
        "qk_norm_rope",
        reason or kernel.why_not(query, key, value, cos, into),
        lambda: kernel.qk_norm_rope_kernel(
            query, key, value, query_weight, key_weight, cos, sin, eps, into=into
        ),
        twin,
    )
