"""The end of a denoising step: which candidates are accepted, fresh noise, and whether to stop."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel
from .reference import AcceptedStep, SlotState, entropy_accept_reference

__all__ = ["AcceptedStep", "SlotState", "entropy_accept"]


def entropy_accept(
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
    """Accept the most certain slots within an entropy bound, renoise the others, test for the end.

    Slots are ordered by entropy h, equal ones by place; the first k are accepted while
    sum(h_1..h_k) - h_k <= entropy_bound. A canvas is finished once its draft has stayed the same
    for `stability_threshold` steps and its hole's mean entropy is below `confidence_threshold`.
    Nothing is drawn here: candidates and noise are given, so the same arguments give the same step.

    Args:
        state: what the last step left. Modified with `in_place` only.
        candidates: (B, M) int64, one token drawn for every slot.
        argmax: (B, M) int64, the most likely token of every slot.
        entropy: (B, M) float32, nats, >= 0; 0 at clamped slots, which are thereby accepted.
        fresh: (B, M) int64, noise for the slots that are not accepted.
        hole_mask: (B, M) bool, True at hole slots, of which every canvas has one.
        entropy_bound: nats, > 0.
        stability_threshold: steps, >= 0.
        confidence_threshold: nats.
        min_accepted: (B,) int64; so many slots of a canvas are accepted at least, whatever the
            bound says. None for no such floor.
        in_place: whether to write into `state`, as a captured CUDA graph does.
    Returns:
        the state after the step, who was accepted, and the mean entropy of each hole. For a canvas
        that was finished before, the latter two are of this step and mean nothing.
    Raises:
        ValueError: entropy_bound <= 0 (the message shows it).
    Source: arXiv 2505.24857; transformers 5.23 EntropyBoundSampler and
        StableAndConfidentStoppingCriteria.
    """
    if entropy_bound <= 0:
        raise ValueError(f"entropy_bound must be above 0, got {entropy_bound}")

    def twin() -> AcceptedStep:
        return entropy_accept_reference(
            state,
            candidates,
            argmax,
            entropy,
            fresh,
            hole_mask,
            entropy_bound=entropy_bound,
            stability_threshold=stability_threshold,
            confidence_threshold=confidence_threshold,
            min_accepted=min_accepted,
            in_place=in_place,
        )

    if not wants_kernel("entropy_accept", entropy.device):
        return twin()
    from . import kernel

    return attempt(
        "entropy_accept",
        kernel.why_not(state),
        lambda: kernel.entropy_accept_kernel(
            state,
            candidates,
            argmax,
            entropy,
            fresh,
            hole_mask,
            entropy_bound=entropy_bound,
            stability_threshold=stability_threshold,
            confidence_threshold=confidence_threshold,
            min_accepted=min_accepted,
            in_place=in_place,
        ),
        twin,
    )
