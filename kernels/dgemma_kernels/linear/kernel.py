"""Product with one quantised weight in Triton.

With few tokens its time is that of reading the weight, which too few programs read too slowly: K is
then split among several, whose float32 partial sums a second kernel adds, always in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import why_not_these
from ..triton_support import TRITON_DTYPES, Blocks, launch, round_to
from ..weight_tile import (
    add_product,
    blocks_for,
    data_rows,
    finish,
    load_tokens,
    scale_rows,
    weight_view,
    why_not_weight,
)
from ..weights import QuantizedWeight

_MOST_SPLITS = 8
_PROGRAMS_A_PROCESSOR = 2  # that read at the same time; one alone waits for its own loads
_SUM_COLUMNS = 1024


def why_not_linear(hidden: Tensor, *weights: Tensor | QuantizedWeight) -> str | None:
    """Why the kernels here do not support these arguments; None if they do."""
    parts = [hidden]
    for weight in weights:
        if isinstance(weight, Tensor):
            return "plain weights are left to torch"
        reason = why_not_weight(weight, hidden.dtype)
        if reason:
            return reason
        parts.append(weight.data)
    return why_not_these(*parts)


def linear_triton(
    hidden: Tensor, weight: Tensor | QuantizedWeight, splits: int | None = None
) -> Tensor:
    """As `linear_reference`, summed in float32. splits: in how many parts K is; None to choose."""
    sums = partial_sums(hidden, weight, splits, hidden.dtype)  # (S, T, N)
    shape = (*hidden.shape[:-1], weight.shape[0])
    if sums.shape[0] == 1:
        return sums.view(shape)
    output = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    count = output.numel()
    _sum_kernel[(triton.cdiv(count, _SUM_COLUMNS),)](
        sums,
        output,
        count,
        SPLITS=sums.shape[0],
        DTYPE=TRITON_DTYPES[hidden.dtype],
        COLUMNS=_SUM_COLUMNS,
        **Blocks(0, 0, num_warps=4, num_stages=1).options(),
    )
    return output


def partial_sums(
    hidden: Tensor,
    weight: Tensor | QuantizedWeight,
    splits: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The product in parts that are still to be added.

    Args:
        hidden: (..., K) of T rows.
        weight: (N, K).
        splits: how many parts; None to choose.
        dtype: of the result where it is one part; several are float32.
    Returns:
        (S, T, N).
    """
    rows_of_weight, columns = weight.shape
    tokens = hidden.reshape(-1, columns)
    tokens = tokens if tokens.stride(-1) == 1 else tokens.contiguous()
    num_tokens = tokens.shape[0]
    rows = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    view = weight_view(weight)
    configs = blocks_for(view.format, view.split, hidden.dtype, rows, num_weights=1)
    splits = splits or _choose_splits(num_tokens, rows, rows_of_weight, columns, configs[0], hidden)
    dtype = dtype if splits == 1 else torch.float32
    sums = torch.empty((splits, num_tokens, rows_of_weight), dtype=dtype, device=hidden.device)
    if num_tokens == 0:
        return sums

    def run(blocks: Blocks) -> None:
        grid = (
            triton.cdiv(num_tokens, rows),
            triton.cdiv(rows_of_weight, blocks.columns),
            splits,
        )
        _linear_kernel[grid](
            tokens,
            view.data,
            view.group_scale,
            view.row_scale,
            sums,
            num_tokens,
            tokens.stride(0),
            N=rows_of_weight,
            K=columns,
            STRIDE=view.data.shape[-1],
            FORMAT=view.format,
            DTYPE=TRITON_DTYPES[hidden.dtype],
            OUTPUT=TRITON_DTYPES[dtype],
            SPLITS=splits,
            ROWS=rows,
            COLUMNS=blocks.columns,
            DEPTH=blocks.depth,
            **blocks.options(),
        )

    launch(("linear", view.format, view.split, hidden.dtype, rows), configs, run)
    return sums


def _choose_splits(
    num_tokens: int, rows: int, rows_of_weight: int, columns: int, blocks: Blocks, hidden: Tensor
) -> int:
    """So many that every processor of the GPU has something to read."""
    if hidden.device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    programs = triton.cdiv(num_tokens, rows) * triton.cdiv(rows_of_weight, blocks.columns)
    wanted: int = _PROGRAMS_A_PROCESSOR * processors // max(programs, 1)
    steps: int = triton.cdiv(columns, blocks.depth)
    return max(1, min(wanted, _MOST_SPLITS, steps // 2))


@triton.jit
def _linear_kernel(
    hidden,  # (T, K), rows stride_hidden apart
    data,  # (N, STRIDE)
    group_scale,
    row_scale,
    sums,  # (SPLITS, T, N)
    num_tokens,
    stride_hidden,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    OUTPUT: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # One program = one block of tokens x COLUMNS of N x one part of K. Blocks of tokens are
    # neighbours, so that the second one finds the weights in the cache.
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = token < num_tokens
    tokens = hidden + tl.where(is_row, token, 0).to(tl.int64) * stride_hidden
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    weight_row = tl.minimum(column, N - 1)  # beyond N the last row again, and not stored
    matrix = tl.zeros([], tl.int64)
    weights = data_rows(data, matrix, weight_row, N, STRIDE)
    scales = scale_rows(group_scale, matrix, weight_row, N, K, FORMAT)
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    STEPS: tl.constexpr = (K + DEPTH - 1) // DEPTH
    STEPS_OF_PART: tl.constexpr = (STEPS + SPLITS - 1) // SPLITS
    first = tl.program_id(2) * STEPS_OF_PART
    last = tl.minimum(first + STEPS_OF_PART, STEPS)
    for step in range(first, last):
        start = step * DEPTH
        if FORMAT == "int4" or FORMAT == "nvfp4":
            low = load_tokens(tokens, is_row, start, K, DEPTH // 2, DEPTH)
            high = load_tokens(tokens, is_row, start + DEPTH // 2, K, DEPTH // 2, DEPTH)
        else:
            low = load_tokens(tokens, is_row, start, K, DEPTH, DEPTH)
            high = low
        total = add_product(total, low, high, weights, scales, start, K, FORMAT, DTYPE, DEPTH)
    total = finish(total, row_scale + weight_row, FORMAT)
    row = tl.program_id(2).to(tl.int64) * num_tokens + token
    target = sums + row[:, None] * N + column[None, :]
    mask = is_row[:, None] & (column < N)[None, :]
    tl.store(target, round_to(tl.trans(total), OUTPUT), mask=mask)


@triton.jit
def _sum_kernel(
    sums,  # (SPLITS, count) float32
    output,  # (count)
    count,
    SPLITS: tl.constexpr,
    DTYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mask = place < count
    total = tl.zeros([COLUMNS], tl.float32)
    for part in range(SPLITS):
        total += tl.load(sums + part * count + place, mask=mask, other=0.0)
    tl.store(output + place, round_to(total, DTYPE), mask=mask)
