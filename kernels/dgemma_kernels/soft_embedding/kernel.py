"""The soft embedding in Triton: a product split over the vocabulary, added up in fixed order.

The table (V, D) is read as it lies: the vocabulary is the inner dimension of this product, and
neighbouring channels lie side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..splits import splits_for
from ..triton_support import UPCAST, Blocks, launch, round_to
from ..weights import QuantizedWeight


@triton.jit(do_not_specialize=["num_rows"])
def _soft_embedding_kernel(
    masses,  # (N, V): masses, or logits
    log_normalizer,  # (N,) float32 where `masses` are logits, else None
    table,  # (V, D)
    parts,  # (splits, N, D) float32
    num_rows,
    vocab_size,
    hidden_size,
    mass_stride,
    table_stride,
    split_size,  # tokens of one split, a multiple of BLOCK_V
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # One program = one tile of rows times one of channels, over one split of the vocabulary.
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(2)
    is_row = row < num_rows
    is_channel = channel < hidden_size
    mass_rows = masses + row[:, None].to(tl.int64) * mass_stride
    if log_normalizer is not None:
        normalizer = tl.load(log_normalizer + row, mask=is_row, other=0.0)
    mean = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    first = split * split_size
    for start in range(first, tl.minimum(first + split_size, vocab_size), BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        is_token = token < vocab_size
        embedding = tl.load(
            table + token[:, None].to(tl.int64) * table_stride + channel[None, :],
            mask=is_token[:, None] & is_channel[None, :],
            other=0.0,
        )
        is_mass = is_row[:, None] & is_token[None, :]
        if log_normalizer is not None:
            logit = tl.load(mass_rows + token[None, :], mask=is_mass, other=float("-inf"))
            mass = tl.exp(logit.to(tl.float32) - normalizer[:, None])
            mass = round_to(mass, embedding.dtype)
        else:
            mass = tl.load(mass_rows + token[None, :], mask=is_mass, other=0.0)
        if UPCAST:
            mass = mass.to(tl.float32)
            embedding = embedding.to(tl.float32)
        mean = tl.dot(mass, embedding, mean, input_precision="ieee")
    place = (split.to(tl.int64) * num_rows + row[:, None]) * hidden_size + channel[None, :]
    tl.store(parts + place, mean, mask=is_row[:, None] & is_channel[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def _add_splits_kernel(
    parts,  # (splits, N, D) float32
    mass_scale,  # (N,) float32, or None
    output,  # (N, D)
    embedding_scale,
    num_rows,
    hidden_size,
    NUM_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # One program = one row, in the order of the splits.
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, hidden_size, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        is_channel = channel < hidden_size
        total = tl.zeros([BLOCK_D], tl.float32)
        for split in tl.static_range(0, NUM_SPLITS):
            at = (split * num_rows + row) * hidden_size + channel
            total += tl.load(parts + at, mask=is_channel, other=0.0)
        if mass_scale is not None:
            total = total * tl.load(mass_scale + row)
        # The published model rounds the mean, and its product with the scale again.
        rounded = round_to(total, output.dtype.element_ty).to(tl.float32) * embedding_scale
        tl.store(
            output + row * hidden_size + channel,
            round_to(rounded, output.dtype.element_ty),
            mask=is_channel,
        )


def soft_embedding_kernel(
    masses: Tensor, mass_scale: Tensor | None, table: Tensor, *, embedding_scale: float
) -> Tensor:
    """Launch. Arguments as `dgemma_kernels.soft_embedding`; `why_not` lets them pass."""
    num_rows, vocab_size = masses.shape
    hidden_size = table.shape[1]
    log_normalizer = None
    if mass_scale is None:
        log_normalizer = masses.float().logsumexp(dim=-1)
    else:
        mass_scale = mass_scale.contiguous()
    output = torch.empty((num_rows, hidden_size), dtype=table.dtype, device=table.device)
    factor = float(torch.tensor(embedding_scale, dtype=table.dtype))

    def run(blocks: Blocks) -> None:
        tiles = triton.cdiv(num_rows, blocks.rows), triton.cdiv(hidden_size, blocks.columns)
        num_splits = splits_for(
            table.device,
            num_programs=tiles[0] * tiles[1],
            num_steps=triton.cdiv(vocab_size, blocks.depth),
            shortest=_SHORTEST_SPLIT,
            largest=_LARGEST_SPLITS,
        )
        split_size = triton.cdiv(triton.cdiv(vocab_size, num_splits), blocks.depth) * blocks.depth
        shape = (num_splits, num_rows, hidden_size)
        parts = torch.empty(shape, dtype=torch.float32, device=table.device)
        _soft_embedding_kernel[(tiles[0], tiles[1], num_splits)](
            masses,
            log_normalizer,
            table,
            parts,
            num_rows,
            vocab_size,
            hidden_size,
            masses.stride(0),
            table.stride(0),
            split_size,
            BLOCK_T=blocks.rows,
            BLOCK_D=blocks.columns,
            BLOCK_V=blocks.depth,
            **blocks.options(),
        )
        _add_splits_kernel[(num_rows,)](
            parts,
            mass_scale,
            output,
            factor,
            num_rows,
            hidden_size,
            NUM_SPLITS=num_splits,
            BLOCK_D=min(1024, triton.next_power_of_2(hidden_size)),
            num_warps=4,
            enable_fp_fusion=True,
        )

    configs = soft_embedding_configs(num_rows)
    launch(("soft_embedding", configs[0].rows, table.dtype), configs, run)
    return output


def soft_embedding_configs(num_rows: int) -> tuple[Blocks, ...]:
    """Blocks for so many rows, from the best to the smallest (sm_90; 99 KB; float32)."""
    rows = min(128, max(16, triton.next_power_of_2(num_rows)))
    num_warps = 8 if rows >= 64 else 4
    return (
        Blocks(rows=rows, columns=128, depth=64, num_warps=num_warps, num_stages=4),
        Blocks(rows=rows, columns=128, depth=64, num_warps=num_warps, num_stages=3),
        Blocks(rows=rows, columns=128, depth=32, num_warps=num_warps, num_stages=2),
    )


_LARGEST_SPLITS = 24
_SHORTEST_SPLIT = 4  # steps along the vocabulary


def why_not(
    masses: Tensor, mass_scale: Tensor | None, table: Tensor | QuantizedWeight
) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    if isinstance(table, QuantizedWeight):
        return f"a table in {table.format.value}"
    if masses.dtype != table.dtype and mass_scale is not None:
        return f"masses in {masses.dtype} and a table in {table.dtype}"
    if masses.stride(-1) != 1 or table.stride(-1) != 1:
        return "masses or a table that are transposed"
    if masses.numel() == 0:
        return "no rows"
    return None
