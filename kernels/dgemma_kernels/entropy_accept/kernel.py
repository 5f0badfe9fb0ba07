"""Acceptance, fresh noise and the stop test in Triton: one program a canvas, one launch a step.

Slots are not sorted: each adds up the entropies of all that come before it in the order, by
comparing itself with every other slot. That is 65,536 comparisons for 256 slots, and no exchange.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import AcceptedStep, SlotState

MOST_SLOTS = 1024
_CHUNK = tl.constexpr(16)


@triton.jit
def _entropy_accept_kernel(
    token_ids,  # (B, M) int64
    previous_argmax,  # (B, M) int64
    previous_unchanged,  # (B,) int32
    was_finished,  # (B,) uint8
    candidates,  # (B, M) int64
    argmax,  # (B, M) int64
    entropy,  # (B, M) float32
    fresh,  # (B, M) int64
    hole_mask,  # (B, M) uint8
    min_accepted,  # (B,) int64, or None
    next_ids,  # (B, M) int64
    next_argmax,  # (B, M) int64
    num_unchanged,  # (B,) int32
    is_finished,  # (B,) uint8
    accepted,  # (B, M) uint8
    mean_entropy,  # (B,) float32
    entropy_bound,
    confidence_threshold,
    stability_threshold,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program = one canvas. All is read before anything is written: it may work in place.
    canvas = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, BLOCK)
    is_slot = slot < M
    at = canvas * M + slot
    own = tl.load(entropy + at, mask=is_slot, other=0.0)
    before = tl.zeros([BLOCK], tl.float32)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, M, _CHUNK):
        other = start + tl.arange(0, _CHUNK)
        is_other = other < M
        theirs = tl.load(entropy + canvas * M + other, mask=is_other, other=0.0)
        is_lower = theirs[None, :] < own[:, None]
        is_earlier = (theirs[None, :] == own[:, None]) & (other[None, :] < slot[:, None])
        comes_before = (is_lower | is_earlier) & is_other[None, :]
        before += tl.sum(tl.where(comes_before, theirs[None, :], 0.0), 1)
        rank += tl.sum(comes_before.to(tl.int32), 1)
    is_accepted = before <= entropy_bound
    if min_accepted is not None:
        is_accepted = is_accepted | (rank < tl.load(min_accepted + canvas))

    candidate = tl.load(candidates + at, mask=is_slot, other=0)
    noise = tl.load(fresh + at, mask=is_slot, other=0)
    held = tl.load(token_ids + at, mask=is_slot, other=0)
    draft = tl.load(argmax + at, mask=is_slot, other=0)
    earlier = tl.load(previous_argmax + at, mask=is_slot, other=0)
    is_hole = tl.load(hole_mask + at, mask=is_slot, other=0) != 0
    unchanged = tl.load(previous_unchanged + canvas)
    stays = tl.load(was_finished + canvas) != 0

    num_slots = tl.sum(is_hole.to(tl.float32), 0)
    mean = tl.sum(tl.where(is_hole, own, 0.0), 0) / num_slots
    num_changed = tl.sum(((draft != earlier) & is_slot).to(tl.int32), 0)
    count = tl.where(num_changed == 0, unchanged + 1, 0)
    is_settled = (count >= stability_threshold) & (mean < confidence_threshold)

    tl.store(next_ids + at, tl.where(stays, held, tl.where(is_accepted, candidate, noise)), is_slot)
    tl.store(next_argmax + at, tl.where(stays, earlier, draft), is_slot)
    tl.store(accepted + at, is_accepted.to(tl.uint8), is_slot)
    tl.store(num_unchanged + canvas, tl.where(stays, unchanged, count))
    tl.store(is_finished + canvas, (stays | is_settled).to(tl.uint8))
    tl.store(mean_entropy + canvas, mean)


def entropy_accept_kernel(
    state: SlotState,
    candidates: Tensor,
    argmax: Tensor,
    entropy: Tensor,
    fresh: Tensor,
    hole_mask: Tensor,
    *,
    entropy_bound: float,
    stability_threshold: int,
    confidence_threshold: float,
    min_accepted: Tensor | None,
    in_place: bool,
) -> AcceptedStep:
    """Launch. Arguments as `dgemma_kernels.entropy_accept`; `why_not` lets them pass."""
    batch, num_slots = entropy.shape
    after = state
    if not in_place:
        after = SlotState(*map(torch.empty_like, state))
    accepted = torch.empty(entropy.shape, dtype=torch.bool, device=entropy.device)
    mean_entropy = torch.empty(batch, dtype=torch.float32, device=entropy.device)
    block = triton.next_power_of_2(num_slots)
    _entropy_accept_kernel[(batch,)](
        state.token_ids,
        state.argmax,
        state.num_unchanged,
        state.is_finished.view(torch.uint8),
        candidates.contiguous(),
        argmax.contiguous(),
        entropy.contiguous(),
        fresh.contiguous(),
        hole_mask.contiguous().view(torch.uint8),
        None if min_accepted is None else min_accepted.contiguous(),
        after.token_ids,
        after.argmax,
        after.num_unchanged,
        after.is_finished.view(torch.uint8),
        accepted.view(torch.uint8),
        mean_entropy,
        entropy_bound,
        confidence_threshold,
        stability_threshold,
        M=num_slots,
        BLOCK=block,
        num_warps=accept_warps(block),
        enable_fp_fusion=True,
    )
    return AcceptedStep(after, accepted, mean_entropy)


def accept_warps(block: int) -> int:
    """Warps of a program: one slot a thread, up to 8 warps."""
    return min(8, max(1, block // 32))


def why_not(state: SlotState) -> str | None:
    """Why the kernel does not support these arguments; None if it does."""
    batch, num_slots = state.token_ids.shape
    if batch == 0 or not 0 < num_slots <= MOST_SLOTS:
        return f"{num_slots} slots"
    if not all(part.is_contiguous() for part in state):
        return "a state that is not contiguous"
    return None
