"""Norm, residual, scalar and following norms in Triton: one program a row, read and written once.

Rounds where the twin does: the norm, the sum, the product with the scalar, and each following norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rms_norm.kernel import LARGEST_ROW, normalised, row_warps
from ..triton_support import round_to

MOST_FOLLOWING = 3


@triton.jit
def _store_norm(row, weight, output, token, channel, D: tl.constexpr):
    is_channel = channel < D
    if weight is not None:
        row = row * tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(output + token * D + channel, round_to(row, output.dtype.element_ty), mask=is_channel)


@triton.jit
def _residual_norm_kernel(
    residual,  # (T, D)
    hidden,  # (T, D)
    weight,  # (D,)
    scalar,  # (1,), or None
    weight_1,  # (D,) of a following norm, or None
    weight_2,
    weight_3,
    total,  # (T, D), contiguous
    output_1,  # (T, D), contiguous, or None for no such norm
    output_2,
    output_3,
    residual_stride,
    hidden_stride,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program = one row.
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < D
    dtype = total.dtype.element_ty
    row = tl.load(hidden + token * hidden_stride + channel, mask=is_channel, other=0.0)
    row = normalised(row.to(tl.float32), D, eps)
    row = row * tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    before = tl.load(residual + token * residual_stride + channel, mask=is_channel, other=0.0)
    row = before.to(tl.float32) + round_to(row, dtype).to(tl.float32)
    row = round_to(row, dtype).to(tl.float32)
    if scalar is not None:
        row = round_to(row * tl.load(scalar).to(tl.float32), dtype).to(tl.float32)
    tl.store(total + token * D + channel, round_to(row, dtype), mask=is_channel)
    if output_1 is not None:
        row = normalised(row, D, eps)
        _store_norm(row, weight_1, output_1, token, channel, D)
        if output_2 is not None:
            _store_norm(row, weight_2, output_2, token, channel, D)
        if output_3 is not None:
            _store_norm(row, weight_3, output_3, token, channel, D)


def residual_norm_kernel(
    residual: Tensor,
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    *,
    scalar: Tensor | None,
    next_weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Launch. Arguments as `dgemma_kernels.residual_norm`; `why_not` lets them pass."""
    size = hidden.shape[-1]
    before, rows = residual.reshape(-1, size), hidden.reshape(-1, size)
    outputs = tuple(
        torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        for _ in range(1 + len(next_weights))
    )
    missing = [None] * (MOST_FOLLOWING - len(next_weights))
    block = triton.next_power_of_2(size)
    _residual_norm_kernel[(len(rows),)](
        before,
        rows,
        weight,
        scalar,
        *next_weights,
        *missing,
        *outputs,
        *missing,
        before.stride(0),
        rows.stride(0),
        eps,
        D=size,
        BLOCK=block,
        num_warps=row_warps(block),
        enable_fp_fusion=True,
    )
    return outputs


def why_not(
    residual: Tensor, hidden: Tensor, scalar: Tensor | None, next_weights: Sequence[Tensor | None]
) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    if hidden.shape[-1] > LARGEST_ROW:
        return f"rows of {hidden.shape[-1]} channels"
    if hidden.numel() == 0:
        return "no rows"
    if residual.dtype != hidden.dtype:
        return "a residual of another dtype"
    if scalar is not None and scalar.numel() != 1:
        return "a scalar for each row"
    if scalar is not None and scalar.dtype != hidden.dtype:
        return f"a scalar in {scalar.dtype}"
    if len(next_weights) > MOST_FOLLOWING:
        return f"{len(next_weights)} following norms"
    return None
