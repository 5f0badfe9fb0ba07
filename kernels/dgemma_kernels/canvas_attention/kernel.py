"""Canvas attention in Triton: online softmax over prefix and canvas, split over the keys.

Query heads that share a key head are rows of one matrix, token by token. The keys are walked tile
by tile, the prefix's first and the canvas's behind them, each from where it lies: nothing is copied
together. With more than one split, each writes its part and its normaliser, and a second kernel
adds the parts up in the order of the splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..splits import splits_for
from ..triton_support import UPCAST, Blocks, launch, round_to


# Lengths change with every keystroke: a kernel for each of their divisors would be compiled anew.
@triton.jit(do_not_specialize=["num_queries", "prefix_capacity", "canvas_capacity", "window"])
def _canvas_attention_kernel(
    query,  # (B, H, M, K)
    prefix_key,  # (B or 1, G, S, K)
    prefix_value,
    key,  # (B, G, C, K)
    value,
    prefix_length,  # (1,) int32, or None for S
    canvas_length,  # (1,) int32, or None for C
    output,  # (B, H, M, K), or (splits, B, H, M, K) float32
    normalizer,  # (splits, B, H, M) float32, or None with one split
    num_queries,
    prefix_capacity,
    canvas_capacity,
    window,
    query_batch_stride,
    query_head_stride,
    query_row_stride,
    prefix_key_batch_stride,
    prefix_key_head_stride,
    prefix_key_row_stride,
    prefix_value_batch_stride,
    prefix_value_head_stride,
    prefix_value_row_stride,
    key_batch_stride,
    key_head_stride,
    key_row_stride,
    value_batch_stride,
    value_head_stride,
    value_row_stride,
    G: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of one key head
    K: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    # One program = one block of (token, query head) rows of one key head, over one split.
    batch = tl.program_id(1) // G
    head = tl.program_id(1) % G
    split = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = row // GROUP
    query_head = head * GROUP + row % GROUP
    is_row = token < num_queries
    channel = tl.arange(0, K)
    query_rows = (
        query
        + batch.to(tl.int64) * query_batch_stride
        + query_head[:, None] * query_head_stride
        + token[:, None] * query_row_stride
    )
    rows = tl.load(query_rows + channel[None, :], mask=is_row[:, None], other=0.0)
    if UPCAST:
        rows = rows.to(tl.float32)

    prefix_end = prefix_capacity
    if prefix_length is not None:
        prefix_end = tl.load(prefix_length).to(tl.int32)
    canvas_end = canvas_capacity
    if canvas_length is not None:
        canvas_end = tl.load(canvas_length).to(tl.int32)
    prefix_start = 0
    if HAS_WINDOW:
        prefix_start = tl.maximum(prefix_end - window, 0)
    prefix_tiles = tl.cdiv(prefix_end - prefix_start, BLOCK_L)
    num_tiles = prefix_tiles + tl.cdiv(canvas_end, BLOCK_L)
    share = tl.cdiv(num_tiles, NUM_SPLITS)
    first = split * share
    last = tl.minimum(first + share, num_tiles)

    column = tl.arange(0, BLOCK_L)
    maximum = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    result = tl.zeros([BLOCK_R, K], tl.float32)
    of_prefix = batch.to(tl.int64) * prefix_key_batch_stride + head * prefix_key_head_stride
    of_canvas = batch.to(tl.int64) * key_batch_stride + head * key_head_stride
    prefix_keys = prefix_key + of_prefix
    keys = key + of_canvas
    of_prefix = batch.to(tl.int64) * prefix_value_batch_stride + head * prefix_value_head_stride
    of_canvas = batch.to(tl.int64) * value_batch_stride + head * value_head_stride
    prefix_values = prefix_value + of_prefix
    values = value + of_canvas
    for tile in range(first, last):
        # One loop over both: with two, 64 x 512 rows spill 436 bytes of registers on sm_90.
        is_prefix = tile < prefix_tiles
        start = tl.where(is_prefix, prefix_start + tile * BLOCK_L, (tile - prefix_tiles) * BLOCK_L)
        end = tl.where(is_prefix, prefix_end, canvas_end)
        key_rows = tl.where(is_prefix, prefix_keys, keys)
        value_rows = tl.where(is_prefix, prefix_values, values)
        key_stride = tl.where(is_prefix, prefix_key_row_stride, key_row_stride)
        value_stride = tl.where(is_prefix, prefix_value_row_stride, value_row_stride)
        is_key = column < end - start
        # Long distances go into the scalar base: offsets of 64 bits would take twice the registers.
        key_rows += start.to(tl.int64) * key_stride
        value_rows += start.to(tl.int64) * value_stride
        key_tile = tl.load(
            key_rows + (column * key_stride)[None, :] + channel[:, None],
            mask=is_key[None, :],
            other=0.0,
        )
        value_tile = tl.load(
            value_rows + (column * value_stride)[:, None] + channel[None, :],
            mask=is_key[:, None],
            other=0.0,
        )
        if UPCAST:
            key_tile = key_tile.to(tl.float32)
        score = tl.dot(rows, key_tile, input_precision="ieee")
        is_seen = is_key[None, :]
        if CAUSAL:
            distance = tl.where(is_prefix, prefix_end, 0) + token[:, None] - start - column[None, :]
            is_seen = is_seen & (distance >= 0)
            if HAS_WINDOW:
                is_seen = is_seen & (distance <= window)
        score = tl.where(is_seen, score, float("-inf"))
        higher = tl.maximum(maximum, tl.max(score, 1))
        # Every tile holds at least one key: only where not all see it may the maximum be infinite.
        finite = higher
        if CAUSAL:
            finite = tl.where(higher == float("-inf"), 0.0, higher)
        probability = tl.exp(score - finite[:, None])
        shrink = tl.exp(maximum - finite)
        total = total * shrink + tl.sum(probability, 1)
        maximum = higher
        result = result * shrink[:, None]
        weight = round_to(probability, value_tile.dtype)
        if UPCAST:
            weight = weight.to(tl.float32)
            value_tile = value_tile.to(tl.float32)
        result = tl.dot(weight, value_tile, result, input_precision="ieee")

    has_keys = total > 0  # a split may have none
    safe_total = tl.where(has_keys, total, 1.0)
    result = result / safe_total[:, None]
    num_heads = G * GROUP
    place = (batch * num_heads + query_head).to(tl.int64) * num_queries + token
    if NUM_SPLITS > 1:
        part = split.to(tl.int64) * (tl.num_programs(1) * GROUP) * num_queries
        log_total = tl.where(has_keys, maximum + tl.log(safe_total), float("-inf"))
        tl.store(normalizer + part + place, log_total, mask=is_row)
        tl.store(
            output + (part + place)[:, None] * K + channel[None, :], result, mask=is_row[:, None]
        )
    else:
        tl.store(
            output + place[:, None] * K + channel[None, :],
            round_to(result, output.dtype.element_ty),
            mask=is_row[:, None],
        )


@triton.jit
def _merge_splits_kernel(
    parts,  # (splits, rows, K) float32
    normalizers,  # (splits, rows) float32
    output,  # (rows, K)
    num_rows,
    NUM_SPLITS: tl.constexpr,
    K: tl.constexpr,
):
    # One program = one row.
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, K)
    highest = tl.load(normalizers + row)
    for split in tl.static_range(1, NUM_SPLITS):
        highest = tl.maximum(highest, tl.load(normalizers + split * num_rows + row))
    total = 0.0
    merged = tl.zeros([K], tl.float32)
    for split in tl.static_range(0, NUM_SPLITS):
        at = split * num_rows + row
        weight = tl.exp(tl.load(normalizers + at) - highest)
        total += weight
        merged += weight * tl.load(parts + at * K + channel)
    merged = merged / total
    tl.store(output + row * K + channel, round_to(merged, output.dtype.element_ty))


def canvas_attention_kernel(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prefix_length: Tensor | None,
    window: int | None,
    canvas_length: Tensor | None,
    causal: bool,
) -> Tensor:
    """Launch. Arguments as `dgemma_kernels.canvas_attention`; `why_not` lets them pass."""
    batch, num_heads, num_queries, size = query.shape
    num_kv_heads, canvas_capacity = key.shape[1], key.shape[2]
    group = num_heads // num_kv_heads
    num_keys = canvas_capacity + min(prefix_key.shape[2], window or prefix_key.shape[2])
    shared = prefix_key.shape[0] == 1
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if prefix_length is not None:
        prefix_length = prefix_length.reshape(1)
    if canvas_length is not None:
        canvas_length = canvas_length.reshape(1)

    def run(blocks: Blocks) -> None:
        num_row_blocks = triton.cdiv(num_queries * group, blocks.rows)
        num_splits = splits_for(
            query.device,
            num_programs=num_row_blocks * batch * num_kv_heads,
            num_steps=triton.cdiv(num_keys, blocks.columns),
            shortest=_SHORTEST_SPLIT,
            largest=_LARGEST_SPLITS,
        )
        parts, normalizers = output, None
        if num_splits > 1:
            shape = (num_splits, batch, num_heads, num_queries)
            parts = torch.empty((*shape, size), dtype=torch.float32, device=query.device)
            normalizers = torch.empty(shape, dtype=torch.float32, device=query.device)
        _canvas_attention_kernel[(num_row_blocks, batch * num_kv_heads, num_splits)](
            query,
            prefix_key,
            prefix_value,
            key,
            value,
            prefix_length,
            canvas_length,
            parts,
            normalizers,
            num_queries,
            prefix_key.shape[2],
            canvas_capacity,
            window or 0,
            *query.stride()[:3],
            0 if shared else prefix_key.stride(0),
            *prefix_key.stride()[1:3],
            0 if shared else prefix_value.stride(0),
            *prefix_value.stride()[1:3],
            *key.stride()[:3],
            *value.stride()[:3],
            G=num_kv_heads,
            GROUP=group,
            K=size,
            NUM_SPLITS=num_splits,
            HAS_WINDOW=window is not None,
            CAUSAL=causal,
            BLOCK_R=blocks.rows,
            BLOCK_L=blocks.columns,
            **blocks.options(),
        )
        if normalizers is not None:
            num_rows = batch * num_heads * num_queries
            _merge_splits_kernel[(num_rows,)](
                parts,
                normalizers,
                output,
                num_rows,
                NUM_SPLITS=num_splits,
                K=size,
                num_warps=4,
                enable_fp_fusion=True,
            )

    configs = attention_configs(size, num_queries * group)
    launch(("canvas_attention", size, configs[0].rows, query.dtype), configs, run)
    return output


def attention_configs(size: int, num_rows: int) -> tuple[Blocks, ...]:
    """Blocks for a head size and so many (token, query head) rows, from the best to the smallest.

    With 256 channels 64 x 64 takes 160 KB of shared memory on sm_90, 64 x 32 takes 68 KB on sm_89
    and sm_120. With 512, 32 x 32 takes 98 KB, just what those two have; 64 rows spill 324 bytes of
    registers on sm_90. The smallest are for float32 and for few rows.
    """
    rows = max(16, triton.next_power_of_2(num_rows))
    largest = 256 * 64
    shapes = ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 8, 2), (16, 32, 4, 2), (16, 16, 4, 1))
    return tuple(
        Blocks(rows=block, columns=keys, depth=size, num_warps=num_warps, num_stages=num_stages)
        for block, keys, num_warps, num_stages in shapes
        if block <= rows and block * size <= largest and keys * size <= largest
    )


_LARGEST_SPLITS = 32
_SHORTEST_SPLIT = 4  # tiles of keys; a shorter one costs more to merge than it saves


def why_not(
    query: Tensor, prefix_key: Tensor, prefix_value: Tensor, key: Tensor, value: Tensor
) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    tensors = (query, prefix_key, prefix_value, key, value)
    size = query.shape[-1]
    if size & (size - 1) or not 16 <= size <= 512:
        return f"heads of {size} channels"
    if any(tensor.dtype != query.dtype for tensor in tensors):
        return "queries, keys and values of different dtypes"
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return "channels that do not lie side by side"
    if query.numel() == 0 or key.shape[2] == 0:
        return "no queries or no canvas"
    return None
