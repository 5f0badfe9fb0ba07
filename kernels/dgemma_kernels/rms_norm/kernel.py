"""Root-mean-square norm in Triton: one program a row, rounded once, as the twin does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_support import round_to

LARGEST_ROW = 16384  # channels that a program holds in registers


@triton.jit
def normalised(row, size, eps):
    """A row of float32, zero beyond `size`, by its root mean square."""
    mean_square = tl.sum(row * row, 0) / size
    return row / tl.sqrt(mean_square + eps)


@triton.jit
def _rms_norm_kernel(
    hidden,  # (T, D)
    weight,  # (D,), or None
    output,  # (T, D), contiguous
    stride,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program = one row.
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < D
    row = tl.load(hidden + token * stride + channel, mask=is_channel, other=0.0).to(tl.float32)
    row = normalised(row, D, eps)
    if weight is not None:
        row = row * tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(output + token * D + channel, round_to(row, output.dtype.element_ty), mask=is_channel)


def rms_norm_kernel(hidden: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Launch. Arguments as `dgemma_kernels.rms_norm`; `why_not` lets them pass."""
    size = hidden.shape[-1]
    rows = hidden.reshape(-1, size)
    output = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    block = triton.next_power_of_2(size)
    _rms_norm_kernel[(len(rows),)](
        rows,
        weight,
        output,
        rows.stride(0),
        eps,
        D=size,
        BLOCK=block,
        num_warps=row_warps(block),
        enable_fp_fusion=True,
    )
    return output


def row_warps(block: int) -> int:
    """Warps of a program that holds one row: at most 16 values a thread, and at most 16 warps."""
    return min(16, max(1, block // 512))


def why_not(hidden: Tensor, weight: Tensor | None) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    if hidden.shape[-1] > LARGEST_ROW:
        return f"rows of {hidden.shape[-1]} channels"
    if hidden.numel() == 0:
        return "no rows"
    if hidden.stride(-1) != 1 or (weight is not None and weight.stride(-1) != 1):
        return "channels that do not lie side by side"
    return None
