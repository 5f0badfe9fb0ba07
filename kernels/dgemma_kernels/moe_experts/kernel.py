"""Mixture of gated experts in Triton: route, sort by expert, gate and up, down, sum.

A pass over 64 tokens touches all experts, so its time is that of reading their weights; these are
turned back from fewer bits inside the product. Tokens are sorted by expert into blocks of ROWS; all
grids are of the largest number of blocks that there can be, and what is too many returns at once:
no launch depends on what is routed where, and a CUDA graph holds for any tokens. Sums are made in
one order, without atomics: the same tokens give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import why_not_these
from ..triton_support import TRITON_DTYPES, Blocks, gelu_tanh, launch, round_to
from ..weight_tile import (
    WeightView,
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

_LARGEST_TOP_K = 32
_LARGEST_NUM_EXPERTS = 1024
_ROUTE_ROWS = 4
_SORT_CHUNK = 1024
_COMBINE_COLUMNS = 512


class Sorted(NamedTuple):
    """Assignments of tokens to experts, in blocks of one expert each.

    An assignment is a row of the flattened (T, A): token * A + slot. row_of_slot: int32
    (blocks * ROWS), the assignment at each place, -1 for none. expert_of_block: int32 (blocks).
    num_blocks: int32 (1), how many of them there are; what comes after is undefined.
    """

    row_of_slot: Tensor
    expert_of_block: Tensor
    num_blocks: Tensor


def why_not_route(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> str | None:
    """Why `route_triton` does not support these arguments; None if it does."""
    if scores.shape[-1] > _LARGEST_NUM_EXPERTS or top_k > _LARGEST_TOP_K:
        return f"more than {_LARGEST_NUM_EXPERTS} experts, or {_LARGEST_TOP_K} for a token"
    if scores.dtype not in TRITON_DTYPES:
        return f"no kernel computes in {scores.dtype}"
    return why_not_these(scores, per_expert_scale)


def route_triton(scores: Tensor, top_k: int, per_expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `route_reference`. Of equal scores the expert with the lowest index comes first."""
    scores = scores.contiguous()
    num_tokens, num_experts = scores.shape
    index = torch.empty((num_tokens, top_k), dtype=torch.int64, device=scores.device)
    weight = torch.empty((num_tokens, top_k), dtype=torch.float32, device=scores.device)
    if num_tokens == 0:
        return index, weight
    _route_kernel[(triton.cdiv(num_tokens, _ROUTE_ROWS),)](
        scores,
        per_expert_scale.contiguous(),
        index,
        weight,
        num_tokens,
        TOP_K=top_k,
        TOP_K_PADDED=triton.next_power_of_2(top_k),
        E=num_experts,
        E_PADDED=triton.next_power_of_2(num_experts),
        ROWS=_ROUTE_ROWS,
        **Blocks(0, 0, num_warps=4, num_stages=1).options(),
    )
    return index, weight


def why_not_experts(
    hidden: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> str | None:
    """Why `moe_experts_triton` does not support these arguments; None if it does."""
    if gate_up_proj.shape[0] > _LARGEST_NUM_EXPERTS:
        return f"more than {_LARGEST_NUM_EXPERTS} experts"
    parts = [w if isinstance(w, Tensor) else w.data for w in (gate_up_proj, down_proj)]
    return (
        why_not_weight(gate_up_proj, hidden.dtype)
        or why_not_weight(down_proj, hidden.dtype)
        or why_not_these(hidden, expert_weight, *parts)
    )


def moe_experts_triton(
    hidden: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate_up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
) -> Tensor:
    """As `moe_experts_reference`; sums in float32 and rounds once where the twin rounds often."""
    num_tokens, size = hidden.shape
    top_k = expert_index.shape[1]
    num_experts, inner_size = gate_up_proj.shape[0], gate_up_proj.shape[1] // 2
    output = torch.empty((num_tokens, size), dtype=hidden.dtype, device=hidden.device)
    if num_tokens == 0:
        return output
    hidden = hidden if hidden.stride(-1) == 1 else hidden.contiguous()
    rows = rows_of_block(num_tokens * top_k, num_experts)
    order = sort_by_expert(expert_index.contiguous(), num_experts, rows)
    shape = (num_tokens * top_k, inner_size)
    activated = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    _gate_up(hidden, weight_view(gate_up_proj), activated, order, rows, top_k, size)
    shape = (num_tokens * top_k, size)
    expert_output = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    _down(activated, weight_view(down_proj), expert_weight, expert_output, order, rows)
    _combine_kernel[(num_tokens, triton.cdiv(size, _COMBINE_COLUMNS))](
        expert_output,
        output,
        TOP_K=top_k,
        D=size,
        COLUMNS=_COMBINE_COLUMNS,
        DTYPE=TRITON_DTYPES[hidden.dtype],
        **Blocks(0, 0, num_warps=4, num_stages=1).options(),
    )
    return output


def rows_of_block(num_assignments: int, num_experts: int) -> int:
    """How many tokens of one expert a block holds: about as many as an expert gets.

    Fewer, and its weights are read again for the next block; more, and the tensor cores multiply
    zeros. At 256 tokens and 8 of 128 experts (16 each on average), blocks of 16 are 1.43 an expert
    and blocks of 32 exactly one.
    """
    mean = num_assignments / num_experts
    return 16 if mean <= 8 else 32 if mean <= 24 else 64


def sort_by_expert(expert_index: Tensor, num_experts: int, rows: int) -> Sorted:
    """Group assignments by expert, each expert's in ascending order.

    Args:
        expert_index: (T, A) int64, contiguous.
        num_experts: E.
        rows: places in a block.
    """
    count, device = expert_index.numel(), expert_index.device
    most_blocks = min(count, num_experts) + count // rows
    row_of_slot = torch.empty(most_blocks * rows, dtype=torch.int32, device=device)
    expert_of_block = torch.empty(most_blocks, dtype=torch.int32, device=device)
    num_blocks = torch.empty(1, dtype=torch.int32, device=device)
    _sort_kernel[(num_experts,)](
        expert_index,
        row_of_slot,
        expert_of_block,
        num_blocks,
        count,
        E=num_experts,
        E_PADDED=triton.next_power_of_2(num_experts),
        ROWS=rows,
        CHUNK=_SORT_CHUNK,
        **Blocks(0, 0, num_warps=4, num_stages=1).options(),
    )
    return Sorted(row_of_slot, expert_of_block, num_blocks)


def _gate_up(
    hidden: Tensor,
    weight: WeightView,
    activated: Tensor,
    order: Sorted,
    rows: int,
    top_k: int,
    size: int,
) -> None:
    inner_size = activated.shape[1]

    def run(blocks: Blocks) -> None:
        grid = (order.expert_of_block.shape[0], triton.cdiv(inner_size, blocks.columns))
        _gate_up_kernel[grid](
            hidden,
            weight.data,
            weight.group_scale,
            weight.row_scale,
            activated,
            *order,
            hidden.stride(0),
            TOP_K=top_k,
            D=size,
            F=inner_size,
            STRIDE=weight.data.shape[-1],
            FORMAT=weight.format,
            DTYPE=TRITON_DTYPES[hidden.dtype],
            ROWS=rows,
            COLUMNS=blocks.columns,
            DEPTH=blocks.depth,
            **blocks.options(),
        )

    configs = blocks_for(weight.format, weight.split, hidden.dtype, rows, num_weights=2)
    launch(("gate_up", weight.format, weight.split, hidden.dtype, rows), configs, run)


def _down(
    activated: Tensor,
    weight: WeightView,
    expert_weight: Tensor,
    expert_output: Tensor,
    order: Sorted,
    rows: int,
) -> None:
    size, inner_size = expert_output.shape[1], activated.shape[1]
    expert_weight = expert_weight.contiguous()

    def run(blocks: Blocks) -> None:
        grid = (order.expert_of_block.shape[0], triton.cdiv(size, blocks.columns))
        _down_kernel[grid](
            activated,
            weight.data,
            weight.group_scale,
            weight.row_scale,
            expert_weight,
            expert_output,
            *order,
            D=size,
            F=inner_size,
            STRIDE=weight.data.shape[-1],
            FORMAT=weight.format,
            DTYPE=TRITON_DTYPES[activated.dtype],
            ROWS=rows,
            COLUMNS=blocks.columns,
            DEPTH=blocks.depth,
            **blocks.options(),
        )

    configs = blocks_for(weight.format, weight.split, activated.dtype, rows, num_weights=1)
    launch(("down", weight.format, weight.split, activated.dtype, rows), configs, run)


@triton.jit
def _route_kernel(
    scores,  # (T, E)
    per_expert_scale,  # (E,)
    index,  # (T, A) int64
    weight,  # (T, A) float32
    num_tokens,
    TOP_K: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    # One program = ROWS tokens.
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, E_PADDED)
    is_token = token < num_tokens
    mask = is_token[:, None] & (expert < E)[None, :]
    score = tl.load(scores + token[:, None] * E + expert[None, :], mask=mask, other=0.0)
    score = tl.where((expert < E)[None, :], score.to(tl.float32), -float("inf"))
    exponential = tl.exp(score - tl.max(score, 1)[:, None])
    probability = exponential / tl.sum(exponential, 1)[:, None]
    # Experts that are none are below those whose probability is zero.
    left = tl.where((expert < E)[None, :], probability, -1.0)
    slot = tl.arange(0, TOP_K_PADDED)
    chosen = tl.zeros([ROWS, TOP_K_PADDED], tl.int32)
    chosen_probability = tl.zeros([ROWS, TOP_K_PADDED], tl.float32)
    for place in range(TOP_K):
        largest = tl.max(left, 1)
        is_largest = left == largest[:, None]
        best = tl.min(tl.where(is_largest, expert[None, :], E_PADDED), 1)  # (ROWS,)
        left = tl.where(expert[None, :] == best[:, None], -2.0, left)
        here = (slot == place)[None, :]
        chosen = tl.where(here, best[:, None], chosen)
        chosen_probability = tl.where(here, largest[:, None], chosen_probability)
    share = chosen_probability / tl.sum(chosen_probability, 1)[:, None]
    scale = tl.load(per_expert_scale + chosen).to(tl.float32)
    target = token[:, None] * TOP_K + slot[None, :]
    mask = is_token[:, None] & (slot < TOP_K)[None, :]
    tl.store(index + target, chosen.to(tl.int64), mask=mask)
    tl.store(weight + target, share * scale, mask=mask)


@triton.jit
def _sort_kernel(
    expert_index,  # (T * A) int64
    row_of_slot,  # (blocks * ROWS) int32
    expert_of_block,  # (blocks) int32
    num_blocks,  # (1) int32
    count,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # One program = one expert. Each counts all experts, to know where its own blocks begin.
    mine = tl.program_id(0)
    expert = tl.arange(0, E_PADDED)
    counts = tl.zeros([E_PADDED], tl.int32)
    start = 0
    while start < count:
        place = start + tl.arange(0, CHUNK)
        is_place = place < count
        ids = tl.load(expert_index + place, mask=is_place, other=0).to(tl.int32)
        counts += tl.histogram(ids, E_PADDED, mask=is_place)
        start += CHUNK
    blocks = (counts + ROWS - 1) // ROWS
    first_block = tl.sum(tl.where(expert < mine, blocks, 0))
    my_blocks = tl.sum(tl.where(expert == mine, blocks, 0))
    position = first_block * ROWS
    start = 0
    while start < count:
        place = start + tl.arange(0, CHUNK)
        ids = tl.load(expert_index + place, mask=place < count, other=-1).to(tl.int32)
        is_mine = (ids == mine).to(tl.int32)
        target = position + tl.cumsum(is_mine, 0) - 1
        tl.store(row_of_slot + target, place, mask=is_mine == 1)
        position += tl.sum(is_mine)
        start += CHUNK
    end = (first_block + my_blocks) * ROWS
    rest = position + tl.arange(0, ROWS)
    tl.store(row_of_slot + rest, tl.full([ROWS], -1, tl.int32), mask=rest < end)
    block = 0
    while block < my_blocks:
        tl.store(expert_of_block + first_block + block, mine)
        block += 1
    if mine == E - 1:
        tl.store(num_blocks, first_block + my_blocks)


@triton.jit
def _gate_up_kernel(
    hidden,  # (T, D), rows stride_hidden apart
    data,  # (E, 2F, STRIDE)
    group_scale,
    row_scale,
    activated,  # (T * A, F)
    row_of_slot,
    expert_of_block,
    num_blocks,
    stride_hidden,
    TOP_K: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    STRIDE: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # One program = one block of tokens x COLUMNS of F. Blocks of an expert are neighbours, so that
    # the second one finds the weights in the cache.
    block = tl.program_id(0)
    if block >= tl.load(num_blocks):
        return
    expert = tl.load(expert_of_block + block).to(tl.int64)
    assignment = tl.load(row_of_slot + block * ROWS + tl.arange(0, ROWS))
    is_row = assignment >= 0
    assignment = tl.where(is_row, assignment, 0)
    tokens = hidden + (assignment // TOP_K).to(tl.int64) * stride_hidden
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate_row = tl.minimum(column, F - 1)  # beyond F the last row is computed again, and not stored
    up_row = gate_row + F
    gate_data = data_rows(data, expert, gate_row, 2 * F, STRIDE)
    up_data = data_rows(data, expert, up_row, 2 * F, STRIDE)
    gate_scale = scale_rows(group_scale, expert, gate_row, 2 * F, D, FORMAT)
    up_scale = scale_rows(group_scale, expert, up_row, 2 * F, D, FORMAT)
    gate = tl.zeros([COLUMNS, ROWS], tl.float32)
    up = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, D, DEPTH):
        if FORMAT == "int4" or FORMAT == "nvfp4":
            low = load_tokens(tokens, is_row, start, D, DEPTH // 2, DEPTH)
            high = load_tokens(tokens, is_row, start + DEPTH // 2, D, DEPTH // 2, DEPTH)
        else:
            low = load_tokens(tokens, is_row, start, D, DEPTH, DEPTH)
            high = low
        gate = add_product(gate, low, high, gate_data, gate_scale, start, D, FORMAT, DTYPE, DEPTH)
        up = add_product(up, low, high, up_data, up_scale, start, D, FORMAT, DTYPE, DEPTH)
    gate = finish(gate, row_scale + expert * 2 * F + gate_row, FORMAT)
    up = finish(up, row_scale + expert * 2 * F + up_row, FORMAT)
    value = tl.trans(gelu_tanh(gate) * up)  # (ROWS, COLUMNS)
    target = activated + assignment.to(tl.int64)[:, None] * F + column[None, :]
    tl.store(target, round_to(value, DTYPE), mask=is_row[:, None] & (column < F)[None, :])


@triton.jit
def _down_kernel(
    activated,  # (T * A, F)
    data,  # (E, D, STRIDE)
    group_scale,
    row_scale,
    expert_weight,  # (T * A)
    expert_output,  # (T * A, D)
    row_of_slot,
    expert_of_block,
    num_blocks,
    D: tl.constexpr,
    F: tl.constexpr,
    STRIDE: tl.constexpr,
    FORMAT: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # One program = one block of tokens x COLUMNS of D.
    block = tl.program_id(0)
    if block >= tl.load(num_blocks):
        return
    expert = tl.load(expert_of_block + block).to(tl.int64)
    assignment = tl.load(row_of_slot + block * ROWS + tl.arange(0, ROWS))
    is_row = assignment >= 0
    assignment = tl.where(is_row, assignment, 0)
    rows = activated + assignment.to(tl.int64) * F
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    weight_row = tl.minimum(column, D - 1)
    weights = data_rows(data, expert, weight_row, D, STRIDE)
    scales = scale_rows(group_scale, expert, weight_row, D, F, FORMAT)
    total = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, F, DEPTH):
        if FORMAT == "int4" or FORMAT == "nvfp4":
            low = load_tokens(rows, is_row, start, F, DEPTH // 2, DEPTH)
            high = load_tokens(rows, is_row, start + DEPTH // 2, F, DEPTH // 2, DEPTH)
        else:
            low = load_tokens(rows, is_row, start, F, DEPTH, DEPTH)
            high = low
        total = add_product(total, low, high, weights, scales, start, F, FORMAT, DTYPE, DEPTH)
    total = finish(total, row_scale + expert * D + weight_row, FORMAT)
    share = tl.load(expert_weight + assignment, mask=is_row, other=0.0).to(tl.float32)
    value = tl.trans(total * share[None, :])  # (ROWS, COLUMNS)
    target = expert_output + assignment.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(target, round_to(value, DTYPE), mask=is_row[:, None] & (column < D)[None, :])


@triton.jit
def _combine_kernel(
    expert_output,  # (T * A, D)
    output,  # (T, D)
    TOP_K: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    # One program = COLUMNS of one token: its experts' outputs, summed in the order of the slots.
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < D
    total = tl.zeros([COLUMNS], tl.float32)
    for slot in range(TOP_K):
        source = expert_output + (token * TOP_K + slot) * D + column
        total += tl.load(source, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + token * D + column, round_to(total, DTYPE), mask=mask)
