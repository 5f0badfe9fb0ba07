"""Per-head norms and rotation in Triton: one program a token and head.

Heads are written where attention reads them. Rounds where the twin does: the norm, both products of
the rotation, and their sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_support import round_to
from .reference import Heads


@triton.jit
def _norm_rope_head(
    source,  # (K,), one head of one token
    weight,  # (K,), or None
    cos,  # (K,), or None for no rotation
    sin,
    target,  # (K,)
    eps,
    K: tl.constexpr,
):
    """Norm, scale, rotate: the pairs are (i, i + K/2), so the halves are loaded apart."""
    dtype = target.dtype.element_ty
    channel = tl.arange(0, K // 2)
    first = tl.load(source + channel).to(tl.float32)
    second = tl.load(source + K // 2 + channel).to(tl.float32)
    mean_square = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / K
    root = tl.sqrt(mean_square + eps)
    first = first / root
    second = second / root
    if weight is not None:
        first = first * tl.load(weight + channel).to(tl.float32)
        second = second * tl.load(weight + K // 2 + channel).to(tl.float32)
    first = round_to(first, dtype).to(tl.float32)
    second = round_to(second, dtype).to(tl.float32)
    if cos is not None:
        cosine = tl.load(cos + channel).to(tl.float32)
        sine = tl.load(sin + channel).to(tl.float32)
        left = round_to(first * cosine, dtype).to(tl.float32)
        right = round_to(second * sine, dtype).to(tl.float32)
        rotated = left - right
        left = round_to(second * cosine, dtype).to(tl.float32)
        right = round_to(first * sine, dtype).to(tl.float32)
        second = left + right
        first = rotated
    tl.store(target + channel, round_to(first, dtype))
    tl.store(target + K // 2 + channel, round_to(second, dtype))


@triton.jit
def _qk_norm_rope_kernel(
    query,  # (B, S, H, K)
    key,  # (B, S, G, K)
    value,  # (B, S, G, K)
    query_weight,  # (K,)
    key_weight,  # (K,)
    cos,  # (B or 1, S, K)
    sin,
    query_target,  # (B, H, S, K), contiguous
    key_target,  # (B, G, S, K)
    value_target,
    num_tokens,  # S
    query_batch_stride,
    query_token_stride,
    query_head_stride,
    key_batch_stride,
    key_token_stride,
    key_head_stride,
    value_batch_stride,
    value_token_stride,
    value_head_stride,
    angle_batch_stride,
    key_target_batch_stride,
    key_target_head_stride,
    key_target_token_stride,
    value_target_batch_stride,
    value_target_head_stride,
    value_target_token_stride,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
):
    # One program = one token and one of its H + 2G heads.
    batch = (tl.program_id(0) // num_tokens).to(tl.int64)
    token = (tl.program_id(0) % num_tokens).to(tl.int64)
    head = tl.program_id(1)
    angle = batch * angle_batch_stride + token * K
    if head < H:
        _norm_rope_head(
            query
            + batch * query_batch_stride
            + token * query_token_stride
            + head * query_head_stride,
            query_weight,
            cos + angle,
            sin + angle,
            query_target + ((batch * H + head) * num_tokens + token) * K,
            eps,
            K,
        )
    elif head < H + G:
        head = head - H
        _norm_rope_head(
            key + batch * key_batch_stride + token * key_token_stride + head * key_head_stride,
            key_weight,
            cos + angle,
            sin + angle,
            key_target
            + batch * key_target_batch_stride
            + head * key_target_head_stride
            + token * key_target_token_stride,
            eps,
            K,
        )
    else:
        head = head - H - G
        _norm_rope_head(
            value
            + batch * value_batch_stride
            + token * value_token_stride
            + head * value_head_stride,
            None,
            None,
            None,
            value_target
            + batch * value_target_batch_stride
            + head * value_target_head_stride
            + token * value_target_token_stride,
            eps,
            K,
        )


def qk_norm_rope_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    into: tuple[Tensor, Tensor] | None,
) -> Heads:
    """Launch. Arguments as `dgemma_kernels.qk_norm_rope`; `why_not` lets them pass."""
    batch, num_tokens, num_heads, size = query.shape
    num_kv_heads = key.shape[2]
    cos, sin = cos.contiguous(), sin.contiguous()

    def target(heads: int) -> Tensor:
        shape = (batch, heads, num_tokens, size)
        return torch.empty(shape, dtype=query.dtype, device=query.device)

    keys, values = into or (target(num_kv_heads), target(num_kv_heads))
    heads = Heads(target(num_heads), keys, values)
    _qk_norm_rope_kernel[(batch * num_tokens, num_heads + 2 * num_kv_heads)](
        query,
        key,
        value,
        query_weight,
        key_weight,
        cos,
        sin,
        *heads,
        num_tokens,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        0 if len(cos) == 1 else cos.stride(0),
        *keys.stride()[:3],
        *values.stride()[:3],
        eps,
        H=num_heads,
        G=num_kv_heads,
        K=size,
        num_warps=1 if size <= 128 else 2,
        enable_fp_fusion=True,
    )
    return heads


def why_not(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, into: tuple[Tensor, Tensor] | None
) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    size = query.shape[-1]
    tensors = (query, key, value, cos, *(into or ()))
    if size & (size - 1) or size < 2:
        return f"heads of {size} channels"
    if any(tensor.dtype != query.dtype for tensor in tensors):
        return "projections, angles or a cache of different dtypes"
    if any(tensor.stride(-1) != 1 for tensor in (query, key, value, *(into or ()))):
        return "channels that do not lie side by side"
    if query.numel() == 0:
        return "no tokens"
    return None
