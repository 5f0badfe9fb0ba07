"""The vocabulary head in Triton: one pass over the vocabulary, and a merge of what its tiles found.

A program of the first kernel owns one tile of rows times one tile of the vocabulary: it multiplies,
softcaps, and reduces its columns to one number of each kind a row. The second kernel merges the
tiles of one row in fixed order. Sums are relative to each tile's own maximum, so that no
temperature overflows, and a sure row's entropy is exact to 1e-6.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_support import UPCAST, Blocks, launch, round_to, tanh
from ..weights import QuantizedWeight, WeightFormat
from .reference import LARGEST_LOGIT, TILE, HeadOutput, TokenRules

_TILE = tl.constexpr(TILE)
# exp(x) is a normal float32 from -87 to 88. Masses are exp(logit - shift) with |logit| at most
# softcap / temperature, and their sum over 2^18 tokens has to stay finite too: with LARGEST_LOGIT
# this leaves 20 nats.
_LARGEST_EXPONENT = tl.constexpr(68.0)
_NOTHING = tl.constexpr(-1000.0)  # its exponential is 0, and 0 times it is 0


@triton.jit(do_not_specialize=["num_rows"])
def _head_tile_kernel(
    hidden,  # (T, D)
    weight,  # (V, D)
    weight_scale,  # (V,) float32, or None
    rows,  # (N,) int64, rows of `hidden`, or None
    temperature,  # (1,) float32
    banned,  # (V,) uint8, or None
    first_allowed,  # (V,) uint8, or (H, V), or None
    clamped_ids,  # (N,) int64, or None
    is_first,  # (N,) uint8, or None
    holes,  # (N,) int64, rows of `first_allowed`, or None
    draws,  # (N, 2) float32, or None
    tile_maximum,  # (N, tiles) float32
    tile_argmax,  # (N, tiles) int32
    tile_sum,  # (N, tiles) float32: of exp(logit - maximum)
    tile_moment,  # (N, tiles) float32: of (logit - maximum) * exp(logit - maximum)
    tile_sample,  # (N, tiles) int32, or None
    tile_mass,  # (N, tiles) float32: sum of the masses, or None
    masses,  # (N, V), or None
    logits,  # (N, V) float32, or None
    num_rows,
    vocab_size,
    num_tiles,
    hidden_stride,
    weight_stride,
    D: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Row tiles vary fastest: all that read one tile of the weight run side by side.
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    tile = tl.program_id(1)
    token = tile * _TILE + tl.arange(0, _TILE)
    is_row = row < num_rows
    is_token = token < vocab_size
    source = row
    if rows is not None:
        source = tl.load(rows + row, mask=is_row, other=0)
    hidden_rows = hidden + source[:, None].to(tl.int64) * hidden_stride
    weight_rows = weight + token[None, :].to(tl.int64) * weight_stride
    product = tl.zeros([BLOCK_T, _TILE], tl.float32)
    for start in range(0, D, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        is_channel = channel < D
        left = tl.load(
            hidden_rows + channel[None, :], mask=is_row[:, None] & is_channel[None, :], other=0.0
        )
        right = tl.load(
            weight_rows + channel[:, None], mask=is_token[None, :] & is_channel[:, None], other=0.0
        )
        if UPCAST:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        else:
            right = right.to(left.dtype)
        product = tl.dot(left, right, product, input_precision="ieee")
    if weight_scale is not None:
        scale = tl.load(weight_scale + token, mask=is_token, other=0.0)
        product = product * scale[None, :]
    if ROUND:
        product = round_to(product, hidden.dtype.element_ty).to(tl.float32)
    if SOFTCAP is not None:
        product = SOFTCAP * tanh(product * (1.0 / SOFTCAP))
    degree = tl.load(temperature)
    logit = product / degree

    # Rows beyond the last are computed like others and not stored.
    is_allowed = is_token[None, :]
    if banned is not None:
        is_banned = tl.load(banned + token, mask=is_token, other=1) != 0
        is_allowed = (is_banned == 0)[None, :]
    if first_allowed is not None:
        first = tl.load(is_first + row, mask=is_row, other=0) != 0
        if holes is None:
            may_begin = (tl.load(first_allowed + token, mask=is_token, other=0) != 0)[None, :]
        else:
            hole = tl.load(holes + row, mask=first, other=0)
            at = hole[:, None] * vocab_size + token[None, :]
            is_asked = first[:, None] & is_token[None, :]
            may_begin = tl.load(first_allowed + at, mask=is_asked, other=0) != 0
        is_allowed = tl.where(first[:, None], may_begin, is_allowed)
    if clamped_ids is not None:
        clamped = tl.load(clamped_ids + row, mask=is_row, other=-1)
        is_own = clamped[:, None] == token[None, :]
        is_allowed = tl.where((clamped < 0)[:, None], is_allowed, is_own)
        logit = tl.where(is_own, 0.0, logit)
    logit = tl.where(is_allowed, logit, float("-inf"))
    # What is written goes first: after this the logits need no registers beside the masses.
    place = row.to(tl.int64) * num_tiles + tile
    if logits is not None:
        at = row[:, None].to(tl.int64) * vocab_size + token[None, :]
        tl.store(logits + at, logit, mask=is_row[:, None] & is_token[None, :])
    if masses is not None:
        shift = tl.maximum(SOFTCAP / degree - _LARGEST_EXPONENT, 0.0)
        above = logit
        if ROUND:
            above = round_to(above, hidden.dtype.element_ty).to(tl.float32)
        weighed = tl.exp(above - shift)
        tl.store(tile_mass + place, tl.sum(weighed, 1), mask=is_row)
        at = row[:, None].to(tl.int64) * vocab_size + token[None, :]
        tl.store(
            masses + at,
            round_to(weighed, masses.dtype.element_ty),
            mask=is_row[:, None] & is_token[None, :],
        )
    maximum = tl.max(logit, 1)
    column = tl.arange(0, _TILE)
    argmax = tl.min(tl.where(logit == maximum[:, None], column[None, :], _TILE), 1)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)  # a tile may be ruled out altogether
    below = tl.maximum(logit - base[:, None], _NOTHING)
    mass = tl.exp(below)
    total = tl.sum(mass, 1)
    tl.store(tile_maximum + place, maximum, mask=is_row)
    tl.store(tile_argmax + place, tile * _TILE + argmax, mask=is_row)
    tl.store(tile_sum + place, total, mask=is_row)
    tl.store(tile_moment + place, tl.sum(mass * below, 1), mask=is_row)
    if draws is not None:
        draw = tl.load(draws + row * 2 + 1, mask=is_row, other=0.0)
        running = tl.cumsum(mass, 1)
        # The running sum may lose an ulp on its way: a token of mass 0 is passed over even then.
        is_passed = (running > (draw * total)[:, None]) & (mass > 0)
        chosen = tl.min(tl.where(is_passed, column[None, :], _TILE), 1)
        chosen = tl.where(chosen < _TILE, chosen, argmax)
        tl.store(tile_sample + place, tile * _TILE + chosen, mask=is_row)


@triton.jit
def _head_merge_kernel(
    tile_maximum,
    tile_argmax,
    tile_sum,
    tile_moment,
    tile_sample,
    tile_mass,
    draws,
    argmax,  # (N,) int64
    maximum,  # (N,) float32
    log_normalizer,  # (N,) float32
    entropy,  # (N,) float32
    sample,  # (N,) int64, or None
    mass_scale,  # (N,) float32, or None
    num_tiles,
    BLOCK: tl.constexpr,
):
    # One program = one row, all of its tiles at once.
    row = tl.program_id(0)
    tile = tl.arange(0, BLOCK)
    is_tile = tile < num_tiles
    place = row.to(tl.int64) * num_tiles + tile
    top = tl.load(tile_maximum + place, mask=is_tile, other=float("-inf"))
    token = tl.load(tile_argmax + place, mask=is_tile, other=0)
    part = tl.load(tile_sum + place, mask=is_tile, other=0.0)
    moment = tl.load(tile_moment + place, mask=is_tile, other=0.0)
    highest = tl.max(top, 0)
    is_used = part > 0
    below = tl.where(is_used, top - highest, 0.0)
    weight = tl.where(is_used, tl.exp(below), 0.0)
    mass = part * weight
    total = tl.sum(mass, 0)
    moments = tl.sum(weight * moment + below * mass, 0)
    is_highest = is_used & (top == highest)
    tl.store(argmax + row, tl.min(tl.where(is_highest, token, 0x7FFFFFFF), 0).to(tl.int64))
    tl.store(maximum + row, highest)
    log_total = tl.log(total)
    tl.store(log_normalizer + row, highest + log_total)
    tl.store(entropy + row, tl.maximum(log_total - moments / total, 0.0))
    if sample is not None:
        draw = tl.load(draws + row * 2)
        running = tl.cumsum(mass, 0)
        is_passed = (running > draw * total) & (mass > 0)
        chosen = tl.min(tl.where(is_passed, tile, BLOCK), 0)
        # The running sum may end an ulp below the total: then it is the most likely tile.
        most = tl.min(tl.where(mass == tl.max(mass, 0), tile, BLOCK), 0)
        chosen = tl.where(chosen < BLOCK, chosen, most)
        drawn = tl.load(tile_sample + row.to(tl.int64) * num_tiles + chosen)
        tl.store(sample + row, drawn.to(tl.int64))
    if mass_scale is not None:
        masses = tl.load(tile_mass + place, mask=is_tile, other=0.0)
        tl.store(mass_scale + row, 1.0 / tl.sum(masses, 0))


def vocab_head_kernel(
    hidden: Tensor,
    weight: Tensor | QuantizedWeight,
    *,
    softcap: float | None,
    temperature: float | Tensor,
    draws: Tensor | None,
    rows: Tensor | None,
    rules: TokenRules | None,
    round_logits: bool,
    keep_masses: bool,
    keep_logits: bool,
    masses_into: Tensor | None,
) -> HeadOutput:
    """Launch both kernels. Arguments as `dgemma_kernels.vocab_head`; `why_not` lets them pass."""
    device = hidden.device
    num_rows = len(hidden) if rows is None else len(rows)
    vocab_size, hidden_size = weight.shape
    num_tiles = triton.cdiv(vocab_size, TILE)
    codes, scale = weight, None
    if isinstance(weight, QuantizedWeight):
        codes, scale = weight.data, weight.scale
    assert isinstance(codes, Tensor)
    rows, draws = _contiguous(rows), _contiguous(draws)
    rules = rules or TokenRules()
    has_first = rules.first_allowed is not None and rules.is_first is not None
    degree = torch.as_tensor(temperature, dtype=torch.float32).to(device).reshape(1)

    def part(dtype: torch.dtype, wanted: bool = True) -> Tensor | None:
        return torch.empty((num_rows, num_tiles), dtype=dtype, device=device) if wanted else None

    def column(dtype: torch.dtype) -> Tensor:
        return torch.empty(num_rows, dtype=dtype, device=device)

    tiles = (
        part(torch.float32),
        part(torch.int32),
        part(torch.float32),
        part(torch.float32),
        part(torch.int32, draws is not None),
        part(torch.float32, keep_masses),
    )
    shape = (num_rows, vocab_size)
    masses = masses_into if keep_masses else None
    if keep_masses and masses is None:
        masses = torch.empty(shape, dtype=hidden.dtype, device=device)
    logits = torch.empty(shape, dtype=torch.float32, device=device) if keep_logits else None

    def run(blocks: Blocks) -> None:
        _head_tile_kernel[(triton.cdiv(num_rows, blocks.rows), num_tiles)](
            hidden,
            codes,
            scale,
            rows,
            degree,
            _bytes(rules.banned),
            _bytes(rules.first_allowed) if has_first else None,
            _contiguous(rules.clamped_ids),
            _bytes(rules.is_first) if has_first else None,
            _contiguous(rules.holes) if has_first else None,
            draws,
            *tiles,
            masses,
            logits,
            num_rows,
            vocab_size,
            num_tiles,
            hidden.stride(0),
            codes.stride(0),
            D=hidden_size,
            SOFTCAP=softcap,
            ROUND=round_logits and hidden.dtype != torch.float32,
            BLOCK_T=blocks.rows,
            BLOCK_D=blocks.depth,
            **blocks.options(),
        )

    configs = head_configs(num_rows, _capability(device))
    launch(("vocab_head", configs[0].rows, hidden.dtype, codes.dtype), configs, run)
    output = HeadOutput(
        argmax=column(torch.int64),
        maximum=column(torch.float32),
        log_normalizer=column(torch.float32),
        entropy=column(torch.float32),
        sample=None if draws is None else column(torch.int64),
        masses=masses,
        mass_scale=column(torch.float32) if keep_masses else None,
        logits=logits,
    )
    _head_merge_kernel[(num_rows,)](
        *tiles,
        draws,
        output.argmax,
        output.maximum,
        output.log_normalizer,
        output.entropy,
        output.sample,
        output.mass_scale,
        num_tiles,
        BLOCK=triton.next_power_of_2(num_tiles),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return output


def head_configs(num_rows: int, capability: tuple[int, int]) -> tuple[Blocks, ...]:
    """Blocks for so many rows, from the best to the smallest.

    The first takes 128 KB of shared memory on sm_90 and 96 KB elsewhere; the others are for
    float32. 128 rows spill 56 bytes of registers on sm_80, wider tiles of the vocabulary more.
    """
    rows = min(128 if capability > (8, 0) else 64, max(16, triton.next_power_of_2(num_rows)))
    num_warps = 8 if rows >= 64 else 4
    return (
        Blocks(rows=rows, columns=TILE, depth=64, num_warps=num_warps, num_stages=4),
        Blocks(rows=rows, columns=TILE, depth=64, num_warps=num_warps, num_stages=3),
        Blocks(rows=rows, columns=TILE, depth=32, num_warps=num_warps, num_stages=2),
    )


def why_not(
    hidden: Tensor,
    weight: Tensor | QuantizedWeight,
    *,
    softcap: float | None,
    temperature: float | Tensor,
    rows: Tensor | None,
    keep_masses: bool,
) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    if isinstance(weight, QuantizedWeight):
        if weight.format not in (WeightFormat.INT8, WeightFormat.FP8):
            return f"a weight in {weight.format.value}"
        if weight.format is WeightFormat.FP8 and _capability(hidden.device) < (8, 9):
            return "a weight in fp8 on a GPU that does not know it"
    elif weight.dtype != hidden.dtype or weight.stride(-1) != 1:
        return f"a weight in {weight.dtype} that is not as the hidden states, or is transposed"
    if hidden.stride(-1) != 1:
        return "hidden states that are transposed"
    if (len(hidden) if rows is None else len(rows)) == 0:
        return "no rows"
    if keep_masses:
        if softcap is None:
            return "masses of logits without a softcap"
        if hidden.dtype == torch.float16:  # they reach exp(68)
            return "masses in float16"
        if isinstance(temperature, float | int) and softcap / temperature > LARGEST_LOGIT:
            return f"masses at a temperature of {temperature}"
    return None


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def _contiguous(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)
