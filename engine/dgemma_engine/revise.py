"""A draft that is denoised again: what the model finds least likely in it becomes noise."""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import KVCache
from .canvas import Canvas
from .model import DiffusionGemma
from .sampler import noise


@torch.no_grad()
def renoised(
    model: DiffusionGemma,
    cache: KVCache,
    canvas: Canvas,
    held: Tensor,
    is_draft: Tensor,
    strength: float,
    generator: torch.Generator,
) -> Tensor:
    """What `denoise` begins with; one pass over the draft as it stands says how likely it is.

    Args:
        canvas: of one row.
        held: (1, M) int64, what the canvas' hole slots hold, in their order.
        is_draft: (1, M) bool, at least one; the others are ends, which stay: they may move anyway.
        strength: share of the draft's slots that become noise, at least one slot.
    Returns:
        (1, C) int64.
    """
    slots = canvas.hole_slots()  # (1, M)
    token_ids = canvas.impose(canvas.token_ids.scatter(1, slots, held))
    logits = model.denoise_logits(token_ids, cache, None, slots)
    chances = canvas.part(slots).restrict(logits).softmax(dim=-1)
    likely = chances.gather(-1, held[..., None]).squeeze(-1)  # (1, M)
    likely = likely.masked_fill(~is_draft, 1.0)
    count = max(1, round(strength * int(is_draft.sum())))
    weakest = slots.gather(1, likely.topk(count, largest=False).indices)
    fresh = noise((1, token_ids.shape[1]), model.config.vocab_size, generator)
    return token_ids.scatter(1, weakest, fresh.gather(1, weakest))


def first_step_of(strength: float, num_steps: int) -> int:
    """Where in the schedule a draft begins of which so much is noise."""
    return min(num_steps - 1, round((1.0 - strength) * num_steps))
