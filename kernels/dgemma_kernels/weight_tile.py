"""Products with a weight of any form, inside a kernel: its rows, one step along K, the end.

A weight is always the left operand: (rows of the weight, K) x (K, tokens). Tensor cores of sm_90
want 64 rows there, which a canvas does not have and a weight has; elsewhere the order is no matter.
Codes become numbers by putting their bits into those of a float: a conversion takes a slow unit
of the GPU, but for that of e4m3 from sm_89 on.
Only kernels import this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_support import TRITON_DTYPES, Blocks, upcast
from .weights import QuantizedWeight, WeightFormat

PLAIN = "plain"
# What a kernel's tiles may take of shared memory: all of it on sm_89 and sm_120 (99 KB), and what
# leaves room for a second block on sm_90.
_SHARED_BYTES = 96 * 1024


@dataclass(frozen=True)
class WeightView:
    """A weight as kernels take it; what a form does not have points to its data.

    Attributes:
        format: a WeightFormat's value, or "plain".
        data: (..., N, bytes or values of a row).
        group_scale: fp8_block, int4: as stored; nvfp4: its bytes.
        row_scale: float32 (..., N): of int8 and fp8 the scale, of nvfp4 the global scale.
        split: columns of a run of a 4-bit form, which is the step along K; else 0.
    """

    format: str
    data: Tensor
    group_scale: Tensor
    row_scale: Tensor
    split: int


def weight_view(weight: Tensor | QuantizedWeight, converts_e4m3: bool | None = None) -> WeightView:
    """What is passed to a kernel. The weight is one that `why_not_weight` has nothing against.

    converts_e4m3: whether the GPU has an instruction for it, from sm_89 on; None to ask it. With
    it a weight costs 4 instructions on sm_90, by its bits 8, too many for the memory's speed.
    """
    if isinstance(weight, Tensor):
        return WeightView(PLAIN, weight, weight, weight, 0)
    data, scale = weight.data, weight.scale
    if weight.format is WeightFormat.NVFP4:
        assert weight.global_scale is not None
        return WeightView("nvfp4", data, scale.view(torch.uint8), weight.global_scale, weight.split)
    if data.dtype == torch.int8 or not _converts_e4m3(data.device, converts_e4m3):
        data = data.view(torch.uint8)
    return WeightView(weight.format.value, data, scale, scale, weight.split)


def _converts_e4m3(device: torch.device, answer: bool | None) -> bool:
    if answer is None:
        answer = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)
    return answer


def why_not_weight(weight: Tensor | QuantizedWeight, dtype: torch.dtype) -> str | None:
    """Why kernels do not multiply this weight with activations of `dtype`; None if they do."""
    if dtype not in TRITON_DTYPES:
        return f"no kernel computes in {dtype}"
    if isinstance(weight, Tensor):
        if weight.dtype != dtype:
            return f"the weight is {weight.dtype} and the activations {dtype}"
        return None if weight.is_contiguous() else "the weight is not contiguous"
    if weight.format.is_4_bit and not weight.split:
        return "the 4-bit weight is not in the kernels' order: prepared_for_kernel()"
    parts = [weight.data, weight.scale]
    if weight.global_scale is not None:
        parts.append(weight.global_scale)
        if weight.global_scale.ndim != weight.ndim - 1:
            return "the weight has one global scale a matrix: prepared_for_kernel()"
    return None if all(part.is_contiguous() for part in parts) else "the weight is not contiguous"


def blocks_for(
    format: str, split: int, dtype: torch.dtype, rows: int, num_weights: int
) -> list[Blocks]:
    """Configurations of a kernel that multiplies weights, from the best to the smallest.

    Args:
        format, split: of the WeightView. The step along K of a 4-bit form is its run.
        dtype: of the activations.
        rows: tokens of a block.
        num_weights: how many weights are multiplied with the same activations.
    """
    if dtype == torch.float32:  # without tensor cores, for comparisons: small tiles
        return [Blocks(32, split or 32, 4, stages) for stages in (2, 1)]
    weight_bits = 16 if format == PLAIN else 4 if split else 8
    num_warps = 4 if rows <= 32 else 8
    wanted = [(64, 128, 4), (64, 128, 3), (64, 128, 2), (64, 64, 3), (32, 64, 3), (32, 32, 1)]
    if num_weights == 2 and rows > 32:
        # Two sums and two products of a step are more than the registers of sm_89 and sm_120 hold.
        if format == "fp8_block":
            wanted = [(64, 64, 4), *wanted[3:]]
        if format == "int4":
            wanted = wanted[4:]
    found = []
    for columns, depth, stages in wanted:
        depth = split or depth
        tile_bytes = depth * (num_weights * columns * weight_bits // 8 + rows * dtype.itemsize)
        if stages * tile_bytes <= _SHARED_BYTES:
            found.append(Blocks(columns, depth, num_warps, stages))
    return found


@triton.jit
def data_rows(data, matrix, row, N: tl.constexpr, STRIDE: tl.constexpr):
    """Pointers (rows) to where rows of one of the stacked matrices begin."""
    return data + (matrix * N + row) * STRIDE


@triton.jit
def scale_rows(group_scale, matrix, row, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr):
    """Pointers (rows) to the first of each row's group scales."""
    if FORMAT == "fp8_block":
        pointers = group_scale + (matrix * ((N + 127) // 128) + row // 128) * ((K + 127) // 128)
    elif FORMAT == "int4":
        pointers = group_scale + (matrix * N + row) * ((K + 127) // 128)
    elif FORMAT == "nvfp4":
        pointers = group_scale + (matrix * N + row) * ((K + 15) // 16)
    else:
        pointers = group_scale + row
    return pointers


@triton.jit
def load_tokens(rows, is_row, start, K: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """(tokens, WIDTH): columns from `start` on of the activations, zeros beyond K."""
    column = start + tl.arange(0, WIDTH)
    mask = is_row[:, None]
    if K % STEP != 0:
        mask = mask & (column < K)[None, :]
    tokens = tl.load(rows[:, None] + column[None, :], mask=mask, other=0.0)
    return upcast(tokens)


@triton.jit
def add_product(
    total,
    low,
    high,
    rows,
    scales,
    start,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One step along K: total (weight rows, tokens) + weight[:, start : start + DEPTH] @ tokens.

    low, high: the activations' columns of the step: all of them in `low`, or of a 4-bit form, whose
    run is the step, the first half and the second.
    rows, scales: from `data_rows` and `scale_rows`.
    DTYPE: of the activations as they are stored.
    """
    if FORMAT == "int4" or FORMAT == "nvfp4":
        byte = start // 2 + tl.arange(0, DEPTH // 2)
        pairs = tl.load(rows[:, None] + byte[None, :])
        first, second = pairs & 15, pairs >> 4
        if FORMAT == "int4":
            product = _dot(_int4(first, DTYPE), low, tl.zeros_like(total))
            product = _dot(_int4(second, DTYPE), high, product)
            total += product * tl.load(scales + start // 128).to(tl.float32)[:, None]
        else:
            first = _nvfp4(first, scales, start, DTYPE, K, DEPTH // 2)
            second = _nvfp4(second, scales, start + DEPTH // 2, DTYPE, K, DEPTH // 2)
            total = _dot(second, high, _dot(first, low, total))
    else:
        column = start + tl.arange(0, DEPTH)
        if K % DEPTH != 0:
            codes = tl.load(rows[:, None] + column[None, :], mask=(column < K)[None, :], other=0.0)
        else:
            codes = tl.load(rows[:, None] + column[None, :])
        if FORMAT == "plain":
            total = _dot(upcast(codes), low, total)
        elif FORMAT == "int8":
            total = _dot(_int8(codes, DTYPE), low, total)
        elif FORMAT == "fp8":
            total = _dot(_e4m3(codes, DTYPE), low, total)
        else:
            product = _dot(_e4m3(codes, DTYPE), low, tl.zeros_like(total))
            total += product * tl.load(scales + start // 128).to(tl.float32)[:, None]
    return total


@triton.jit
def finish(total, row_scale, FORMAT: tl.constexpr):
    """Apply what is one number a row; row_scale are pointers (weight rows)."""
    if FORMAT == "int8" or FORMAT == "fp8":
        total = total * tl.load(row_scale).to(tl.float32)[:, None]
    elif FORMAT == "nvfp4":
        total = total * (tl.load(row_scale).to(tl.float32) * 256.0)[:, None]  # of _nvfp4
    return total


@triton.jit
def _dot(weight, tokens, total):
    return tl.dot(weight, tl.trans(tokens), total, input_precision="ieee")


@triton.jit
def _int8(code, DTYPE: tl.constexpr):
    """Bytes of int8 to numbers: bits of a large float, from which the large part is taken off.

    bfloat16 has room for seven of them: 128 and the lower seven bits, less 128 or, negative, 256.
    """
    if DTYPE == tl.float16:
        number = ((code ^ 0x80).to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    elif DTYPE == tl.bfloat16:
        code = code.to(tl.uint16)
        number = upcast(((code & 0x7F) | 0x4300).to(tl.bfloat16, bitcast=True))
        number -= upcast(((code & 0x80) | 0x4300).to(tl.bfloat16, bitcast=True))
    else:
        code = (code ^ 0x80).to(tl.uint32)
        number = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    return number


@triton.jit
def _e4m3(code, DTYPE: tl.constexpr):
    """e4m3 to numbers: converted where the GPU can, which gets it as such and not as bytes.

    Else by its bits, which in a wider float are too small by a power of two.
    """
    if code.dtype == tl.float8e4nv:
        number = upcast(code.to(tl.float16).to(tl.float32).to(DTYPE))
    elif DTYPE == tl.float16:
        code = code.to(tl.uint16)
        number = (((code & 0x80) << 8) | ((code & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    elif DTYPE == tl.bfloat16:
        code = code.to(tl.uint16)
        number = (((code & 0x80) << 8) | ((code & 0x7F) << 4)).to(tl.bfloat16, bitcast=True)
        number = upcast(number) * 1.329227995784916e36  # 2^120
    else:
        code = code.to(tl.uint32)
        number = (((code & 0x80) << 24) | ((code & 0x7F) << 20)).to(tl.float32, bitcast=True)
        number = number * 1.329227995784916e36
    return number


@triton.jit
def _int4(nibble, DTYPE: tl.constexpr):
    """Nibbles to -8..7: the low bits of 128 or 1024, which then go away with the offset."""
    if DTYPE == tl.float16:
        number = (nibble.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    elif DTYPE == tl.bfloat16:
        number = upcast((nibble.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)) - 136.0
    else:
        number = nibble.to(tl.float32) - 8.0
    return number


@triton.jit
def _nvfp4(nibble, scales, start, DTYPE: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """Nibbles of e2m1 times their groups' scales, times 2^-8: exact in every float.

    The bits of e2m1 in a wider float are too small by 2^14 or 2^126; the scale makes up for it but
    for 2^8, which keeps the largest product, 6 x 448, from overflowing.
    """
    group = start // 16 + tl.arange(0, WIDTH // 16)
    group = tl.minimum(group, (K + 15) // 16 - 1)  # beyond K the tokens are zeros
    scale = tl.load(scales[:, None] + group[None, :]).to(tl.uint32) << 20
    scale = scale.to(tl.float32, bitcast=True) * 1.329227995784916e36
    if DTYPE == tl.float16:
        code = nibble.to(tl.uint16)
        number = (((code & 8) << 12) | ((code & 7) << 9)).to(tl.float16, bitcast=True)
        scale = (scale * 64.0).to(tl.float16)
    elif DTYPE == tl.bfloat16:
        code = nibble.to(tl.uint16)
        number = (((code & 8) << 12) | ((code & 7) << 6)).to(tl.bfloat16, bitcast=True)
        number = upcast(number)
        scale = upcast((scale * 3.32306998946229e35).to(tl.bfloat16))  # 2^118
    else:
        code = nibble.to(tl.uint32)
        number = (((code & 8) << 28) | ((code & 7) << 22)).to(tl.float32, bitcast=True)
        scale = scale * 3.32306998946229e35
    groups = tl.reshape(number, (number.shape[0], WIDTH // 16, 16)) * scale[:, :, None]
    return tl.reshape(groups, (number.shape[0], WIDTH))
