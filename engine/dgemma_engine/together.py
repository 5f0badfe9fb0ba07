"""Several holes on one canvas: denoised at once, so that each is written beside all the others.

    JointRequest -> JointPlan (strategies/) -> prompt encoded -> denoise -> texts

With drafts to begin with, what the model finds least likely in any of them becomes noise; of each
hole the draft stays unless the new text fits better, as the encoder reads the whole.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .cache import KVCache
from .denoise import DenoisingStep
from .drafts import Draft, read_draft
from .judge import Judge
from .loops import Denoiser
from .model import DiffusionGemma
from .revise import first_step_of, renoised
from .stopping import criteria
from .strategies import InfillStrategy, JointPlan
from .texts import Texts
from .types import CancellationToken, JointRequest, OnJointStep, StopReason


class JointFill(NamedTuple):
    """See `JointResult`."""

    texts: tuple[str, ...]
    confidences: tuple[float, ...]
    num_passes: int
    stop_reason: StopReason


class Together:
    """Fills the holes of a plan."""

    def __init__(
        self,
        model: DiffusionGemma,
        denoiser: Denoiser,
        strategy: InfillStrategy,
        texts: Texts,
        judge: Judge,
    ) -> None:
        self._model = model
        self._denoise = denoiser
        self._strategy = strategy
        self._texts = texts
        self._judge = judge

    @torch.no_grad()
    def fill(
        self,
        cache: KVCache,
        plan: JointPlan,
        request: JointRequest,
        on_step: OnJointStep | None,
        cancel: CancellationToken | None,
        new_ids: Sequence[int] = (),
    ) -> JointFill:
        """Denoise the canvas.

        Args:
            cache: of the plan's prompt.
            new_ids: of the prompt, what the cache does not hold yet; none with drafts.
        """
        config = self._model.sampler_defaults.with_steps(request.max_steps)
        ends = self._strategy.end_token_ids
        num_steps = config.max_denoising_steps
        generator = torch.Generator(self._model.device).manual_seed(request.seed)
        initial, first_step, num_passes = None, 0, 0
        if request.drafts is not None and any(request.drafts):
            held, is_draft = self._hold(plan, request.drafts)
            initial = renoised(
                self._model, cache, plan.canvas, held, is_draft, request.strength, generator
            )
            first_step, num_passes = first_step_of(request.strength, num_steps), 1
        holes = [request.hole(index) for index in range(len(request.kinds))]

        def text_of(hole: int, token_ids: list[int]) -> str:
            return self._texts.text(token_ids, plan.healed[hole], holes[hole])

        reason, drafts = StopReason.MAX_STEPS, []
        for step in self._denoise(
            cache,
            plan.canvas,
            config,
            generator,
            criteria(config, ends),
            cancel,
            initial=initial,
            first_step=first_step,
            new_ids=new_ids,
        ):
            num_passes += 1
            drafts = self._read(step, plan)
            if on_step is not None:
                texts = [text_of(hole, draft.token_ids) for hole, draft in enumerate(drafts)]
                on_step(
                    tuple(
                        self._texts.step(step.step, num_steps, draft, healed, text)
                        for draft, healed, text in zip(drafts, plan.healed, texts, strict=True)
                    )
                )
            reason = step.stop_reason or reason
            if request.deadline is not None and time.monotonic() >= request.deadline:
                reason = StopReason.DEADLINE if step.stop_reason is None else reason
                break
        found = tuple(
            text_of(hole, draft.token_ids[: request.max_tokens])
            for hole, draft in enumerate(drafts)
        )
        confidences = tuple(math.prod(draft.confidences) for draft in drafts)
        return JointFill(self._best(plan, request, found), confidences, num_passes, reason)

    def _hold(self, plan: JointPlan, drafts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the hole slots hold: the drafts, each with its end; and which slots are drafts'."""
        ends = self._strategy.end_token_ids
        held: list[int] = []
        is_draft: list[bool] = []
        for draft, healed, slots in zip(drafts, plan.healed, plan.holes, strict=True):
            token_ids = self._texts.draft_ids(draft, healed)
            num_slots = int(slots.sum())
            tail = [*ends[:1], *ends[-1:] * num_slots][: num_slots - len(token_ids)]
            held += token_ids + tail
            is_draft += [True] * len(token_ids) + [False] * len(tail)
        device = self._model.device
        return torch.tensor([held], device=device), torch.tensor([is_draft], device=device)

    def _read(self, step: DenoisingStep, plan: JointPlan) -> list[Draft]:
        return [
            read_draft(
                step,
                dataclasses.replace(plan.canvas, hole_mask=slots[None]),
                0,
                self._strategy.end_token_ids,
            )
            for slots in plan.holes
        ]

    def _best(
        self, plan: JointPlan, request: JointRequest, found: tuple[str, ...]
    ) -> tuple[str, ...]:
        """What was found; with drafts, of each hole what fits better beside the others.

        All drafts, all that is new, and every hole's new text alone among drafts are compared.
        """
        drafts = request.drafts
        if drafts is None or plan.judge is None or found == drafts:
            return found
        candidates = [drafts, found]
        for hole, text in enumerate(found):
            candidates.append((*drafts[:hole], text, *drafts[hole + 1 :]))
        between = (*request.texts[1:-1], "")
        joined = [
            "".join(text + piece for text, piece in zip(texts, between, strict=True))
            for texts in candidates
        ]
        return candidates[self._judge.best(plan.judge, joined)]
