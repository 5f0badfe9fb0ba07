"""A draft that is denoised again: what the model finds least likely in it becomes noise.

`infill.py` has one hole's draft revised, `together.py` those of several holes.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .cache import KVCache
from .canvas import Canvas
from .denoise import DenoisingStep
from .drafts import Fill, read_draft
from .errors import RequestError
from .judge import Judge
from .left_to_right import LeftToRight
from .loops import Denoise, next_step
from .model import DiffusionGemma
from .passes import InPasses
from .sampler import noise
from .stopping import criteria
from .strategies import InfillPlan, InfillStrategy
from .texts import Texts
from .types import CancellationToken, InfillRequest, OnStep, StopReason


class Revision:
    """Revises a request's draft."""

    def __init__(
        self,
        model: DiffusionGemma,
        strategy: InfillStrategy,
        texts: Texts,
        judge: Judge,
        left_to_right: LeftToRight,
    ) -> None:
        self._model = model
        self._strategy = strategy
        self._texts = texts
        self._judge = judge
        self._left_to_right = left_to_right

    @torch.no_grad()
    def fill(
        self,
        cache: KVCache,
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: Denoise,
    ) -> InPasses[Fill]:
        """Denoise a draft again: its least likely tokens become noise, the others stay to begin.

        One pass over the draft as it stands says how likely each token is. What comes out is the
        draft, unless the new text fits better before the suffix or all of it was to be new.
        """
        config = self._model.sampler_defaults.with_steps(request.max_steps)
        generator = torch.Generator(self._model.device).manual_seed(request.seed)
        assert request.draft is not None
        canvas = plan.canvas.select(torch.zeros(1, dtype=torch.int64, device=self._model.device))
        draft_ids = self._texts.draft_ids(request.draft, plan.healed)
        num_slots, ends = int(canvas.hole_mask.sum()), self._strategy.end_token_ids
        most = num_slots - 1 if ends else num_slots
        if len(draft_ids) > most:
            raise RequestError(
                f"the text to revise has {len(draft_ids)} tokens, the canvas holds {most}; "
                "choose a shorter one"
            )
        tail = [*ends[:1], *ends[-1:] * num_slots][: num_slots - len(draft_ids)]
        held = torch.tensor([draft_ids + tail], device=self._model.device)
        is_draft = torch.arange(num_slots, device=self._model.device)[None] < len(draft_ids)
        initial = renoised(self._model, cache, canvas, held, is_draft, request.strength, generator)
        num_steps = config.max_denoising_steps
        reason, num_passes = StopReason.MAX_STEPS, 1
        last: DenoisingStep | None = None
        steps = denoise(
            cache,
            canvas,
            config,
            generator,
            criteria(config, ends),
            cancel,
            initial=initial,
            first_step=first_step_of(request.strength, num_steps),
        )
        while (step := (yield from next_step(steps, None))) is not None:
            last = step
            num_passes += 1
            if on_step is not None:
                draft = read_draft(last, canvas, 0, ends)
                on_step(self._texts.step_of(last.step, num_steps, draft, plan, request))
            reason = last.stop_reason or reason
            if request.deadline is not None and time.monotonic() >= request.deadline:
                reason = StopReason.DEADLINE if last.stop_reason is None else reason
                break
        assert last is not None
        done = read_draft(last, canvas, 0, ends)
        if plan.rules is None:
            return Fill(done, num_passes, reason, None)
        best = done.token_ids
        if plan.judge is not None and request.strength < 1.0:
            revised = self._texts.text_of(best, plan, request)
            is_new = self._judge.best(plan.judge, [request.draft, revised]) == 1
            best = best if is_new else draft_ids
        written, chain = self._left_to_right.read(plan, plan.rules, best)
        return Fill(written, num_passes, reason, chain)


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
