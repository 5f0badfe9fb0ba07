"""Every code of every form, decoded as in a kernel, is the number it stands for.

A product over random weights would hide a wrong rare code: the smallest numbers of e4m3 are a
thousandth of the largest.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl

from dgemma_kernels.testing import DTYPES
from dgemma_kernels.triton_support import INTERPRETED, TRITON_DTYPES
from dgemma_kernels.weight_tile import (
    add_product,
    blocks_for,
    finish,
    load_tokens,
    weight_view,
    why_not_weight,
)
from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize


@triton.jit
def _multiply(
    tokens,  # (TOKENS, K)
    data,
    group_scale,
    row_scale,
    output,  # (N, TOKENS) float32
    TOKENS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.arange(0, N)
    token = tl.arange(0, TOKENS)
    rows = tokens + token * K
    every = token >= 0
    total = tl.zeros([N, TOKENS], tl.float32)
    for start in range(0, K, DEPTH):
        if FORMAT == "int4" or FORMAT == "nvfp4":
            low = load_tokens(rows, every, start, K, DEPTH // 2, DEPTH)
            high = load_tokens(rows, every, start + DEPTH // 2, K, DEPTH // 2, DEPTH)
        else:
            low = load_tokens(rows, every, start, K, DEPTH, DEPTH)
            high = low
        total = add_product(
            total,
            low,
            high,
            data + row * STRIDE,
            group_scale + row * GROUPS,
            start,
            K,
            FORMAT,
            DTYPE,
            DEPTH,
        )
    total = finish(total, row_scale + row, FORMAT)
    tl.store(output + row[:, None] * TOKENS + token[None, :], total)


def decoded(
    weight: QuantizedWeight, dtype: torch.dtype, device: torch.device, converts_e4m3: bool
) -> Tensor:
    """The weights (16, K) as a kernel sees them: its product with a unit matrix."""
    weight = weight.prepared_for_kernel().to(device)
    view = weight_view(weight, converts_e4m3)
    rows, columns = weight.shape
    output = torch.empty(rows, columns, device=device)
    _multiply[(1,)](
        torch.eye(columns, dtype=dtype, device=device),
        view.data,
        view.group_scale,
        view.row_scale,
        output,
        TOKENS=columns,
        N=rows,
        K=columns,
        STRIDE=view.data.shape[-1],
        GROUPS=view.group_scale.shape[-1] if view.split else 0,
        FORMAT=view.format,
        DTYPE=TRITON_DTYPES[dtype],
        DEPTH=view.split or 64,
    )
    return output


def every_code(format: WeightFormat) -> QuantizedWeight:
    """16 rows that hold all codes, with scales that are not all one."""
    if format.is_4_bit:
        low = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
        data = torch.cat((low, low.flip(0)), dim=1)  # 64 columns
        if format is WeightFormat.INT4:
            return QuantizedWeight(format, data, torch.rand(16, 1).bfloat16())
        # All 127 scales that are numbers, at least in the first columns of a group.
        scale = torch.arange(64, dtype=torch.uint8).reshape(16, 4) * 2
        scale[1::2] += 1
        scale.clamp_(max=126)  # 127 is not a number
        return QuantizedWeight(format, data, scale.view(torch.float8_e4m3fn), torch.tensor(0.75))
    codes = torch.arange(256, dtype=torch.int32).reshape(16, 16).repeat(1, 4)
    if format is WeightFormat.INT8:
        data = (codes - 128).clamp_min(-127).to(torch.int8)
        return QuantizedWeight(format, data, torch.rand(16))
    codes[codes % 128 == 127] = 0  # not a number
    data = codes.to(torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.rand(16) if format is WeightFormat.FP8 else torch.rand(1, 1)
    return QuantizedWeight(format, data, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("format", "converts_e4m3"),
    [(format, False) for format in WeightFormat]
    + [(WeightFormat.FP8, True), (WeightFormat.FP8_BLOCK, True)],
)
def test_every_code_is_its_number(
    format: WeightFormat, converts_e4m3: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Exactly: no code is rounded in any dtype, and a scale once, in float32."""
    if converts_e4m3 and not INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not convert e4m3")
    weight = every_code(format)
    actual = decoded(weight, dtype, device, converts_e4m3)
    expected = weight.dequantize(torch.float32).to(device)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_weights_that_no_kernel_reads_say_why() -> None:
    """Each reason by itself; None for what can be read."""
    plain = torch.zeros(8, 64)
    assert why_not_weight(plain, torch.float32) is None
    assert why_not_weight(plain, torch.float16) is not None
    assert why_not_weight(plain, torch.float64) == "no kernel computes in torch.float64"
    assert why_not_weight(plain.t(), torch.float32) == "the weight is not contiguous"
    public = quantize(plain, WeightFormat.NVFP4)
    assert "prepared_for_kernel" in (why_not_weight(public, torch.float16) or "")
    assert why_not_weight(public.prepared_for_kernel(), torch.float16) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_there_are_always_smaller_blocks(rows: int, dtype: torch.dtype) -> None:
    """A GPU with less shared memory still runs the kernel, and the step of a run is the run."""
    for format, split in (("plain", 0), ("fp8", 0), ("int4", 128), ("nvfp4", 32)):
        for num_weights in (1, 2):
            configs = blocks_for(format, split, dtype, rows, num_weights)
            assert len(configs) > 1
            assert all(not split or blocks.depth == split for blocks in configs)
