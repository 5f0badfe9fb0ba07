"""What follows the head in one denoising step, in plain PyTorch: accept, renoise, stop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SlotState(NamedTuple):
    """What a step leaves to the next one, for B canvases of M slots.

    Attributes:
        token_ids: (B, M) int64, what the slots hold: the next pass reads them.
        argmax: (B, M) int64, the draft; -1 before the first step.
        num_unchanged: (B,) int32, for how many steps the draft has stayed the same.
        is_finished: (B,) bool. A finished canvas stays as it is.
    """

    token_ids: Tensor
    argmax: Tensor
    num_unchanged: Tensor
    is_finished: Tensor


class AcceptedStep(NamedTuple):
    """state: after the step; accepted: (B, M) bool; mean_entropy: (B,) float32, of the hole."""

    state: SlotState
    accepted: Tensor
    mean_entropy: Tensor


def entropy_accept_reference(
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
    min_accepted: Tensor | None = None,
    in_place: bool = False,
) -> AcceptedStep:
    """See `dgemma_kernels.entropy_accept`."""
    ordered, order = torch.sort(entropy, dim=-1, stable=True)
    is_within = ordered.cumsum(dim=-1) - ordered <= entropy_bound
    if min_accepted is not None:
        rank = torch.arange(entropy.shape[-1], device=entropy.device)
        is_within |= rank[None, :] < min_accepted[:, None]
    accepted = torch.zeros_like(is_within).scatter(dim=-1, index=order, src=is_within)
    mean_entropy = (entropy * hole_mask).sum(dim=-1) / hole_mask.sum(dim=-1)
    is_same = (argmax == state.argmax).all(dim=-1)
    num_unchanged = torch.where(is_same, state.num_unchanged + 1, 0).int()
    is_settled = (num_unchanged >= stability_threshold) & (mean_entropy < confidence_threshold)
    keep = state.is_finished[:, None]
    after = SlotState(
        torch.where(keep, state.token_ids, torch.where(accepted, candidates, fresh)),
        torch.where(keep, state.argmax, argmax),
        torch.where(state.is_finished, state.num_unchanged, num_unchanged),
        state.is_finished | is_settled,
    )
    if in_place:
        for old, new in zip(state, after, strict=True):
            old.copy_(new)
        after = state
    return AcceptedStep(after, accepted, mean_entropy)
