"""The denoising loop: from noise to text on one canvas.

                 +--------------------------------------------------+
                 v                                                  |
    noise -> impose clamped -> decoder pass -> / temperature -> restrict
                 ^                                                  |
                 |                              candidates, entropy v
               renoise what was not accepted <--- accept the certain ones

Knows ids and tensors, not text. Nothing is frozen: acceptance is decided anew at every step.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cache import KVCache
from .canvas import Canvas
from .config import SamplerConfig
from .model import DiffusionGemma
from .passes import Pass
from .sampler import Randoms, accept, draw, noise
from .schedule import min_accepted, noise_proportion, temperature
from .stopping import StoppingCriterion
from .types import CancellationToken, StopReason


@dataclass(frozen=True, slots=True)
class DenoisingStep:
    """What one pass found. Rows that had finished before keep their last values.

    Attributes:
        step: counts up from 0.
        noise_proportion: 1 at the first step, falling to 1 / N.
        canvas: (B, C) int64, the input of the next pass.
        argmax_canvas: (B, C) int64, the draft: the most likely token everywhere.
        confidence: (B, C) float32, the draft's probabilities at this step's temperature.
        entropy: (B, C) float32, nats.
        accepted: (B, C) bool.
        is_finished: (B,) bool.
        stop_reason: of the criterion that finished the last row; None while any row goes on.
    """

    step: int
    noise_proportion: float
    canvas: Tensor
    argmax_canvas: Tensor
    confidence: Tensor
    entropy: Tensor
    accepted: Tensor
    is_finished: Tensor
    stop_reason: StopReason | None

    def select(self, rows: Tensor) -> DenoisingStep:
        """The step of some rows: (N,) int64 row numbers."""
        return replace(
            self,
            canvas=self.canvas[rows],
            argmax_canvas=self.argmax_canvas[rows],
            confidence=self.confidence[rows],
            entropy=self.entropy[rows],
            accepted=self.accepted[rows],
            is_finished=self.is_finished[rows],
        )


@torch.no_grad()
def denoise(
    model: DiffusionGemma,
    cache: KVCache,
    canvas: Canvas,
    config: SamplerConfig,
    generator: torch.Generator,
    criteria: Sequence[StoppingCriterion],
    cancel: CancellationToken | None = None,
    *,
    initial: Tensor | None = None,
    first_step: int = 0,
    randoms: Randoms | None = None,
) -> Generator[DenoisingStep, Tensor | None, None]:
    """Denoise a canvas, one step per item, until every row has finished or the steps run out.

    Rows that promise nothing need not be carried on: `steps.send(rows)`, row numbers (N,) int64,
    in the place of `next(steps)`, goes on with these alone, in this order.

    Args:
        model: the model.
        cache: the encoded prefix, one row or as many as the canvas. Only read.
        canvas: holes and clamped tokens.
        config: schedule, bound, candidates.
        generator: source of all noise and draws, on the model's device.
        criteria: a row is finished as soon as one of them says so.
        cancel: looked at before every pass.
        initial: (B, C) int64, what the holes hold at the start; None for noise.
        first_step: of the schedule; an `initial` that is half text begins half way.
        randoms: all noise and draws, in the place of the generator; for tests.
    Yields:
        each step, the last one with `stop_reason` set (`MAX_STEPS` if no criterion was met).
    Raises:
        Cancelled: within one pass of the token being set.
    Source: transformers 5.23 DiffusionGemmaGenerationMixin; the same random stream is drawn in the
        same order, so with nothing clamped and `candidates="sample"` the same tokens come out.
    """
    steps = denoise_in_passes(
        model,
        cache,
        canvas,
        config,
        generator,
        criteria,
        cancel,
        initial=initial,
        first_step=first_step,
        randoms=randoms,
    )
    given: Tensor | None = None
    while True:
        try:
            found = steps.send(given)
        except StopIteration:
            return
        given = found.alone(model) if isinstance(found, Pass) else (yield found)


@torch.no_grad()
def denoise_in_passes(
    model: DiffusionGemma,
    cache: KVCache,
    canvas: Canvas,
    config: SamplerConfig,
    generator: torch.Generator,
    criteria: Sequence[StoppingCriterion],
    cancel: CancellationToken | None = None,
    *,
    initial: Tensor | None = None,
    first_step: int = 0,
    randoms: Randoms | None = None,
) -> Generator[DenoisingStep | Pass, Tensor | None, None]:
    """As `denoise`, with the passes left to whoever runs it.

    Yields:
        before each step the pass that it needs, which `send(logits)` answers; and each step.
    """
    vocab_size = model.config.vocab_size
    shape = (canvas.token_ids.shape[0], canvas.token_ids.shape[1])
    num_slots = canvas.hole_mask.sum(dim=-1)  # (B,)
    if initial is not None:
        token_ids = initial
    else:
        token_ids = noise(shape, vocab_size, generator) if randoms is None else randoms.initial
    self_conditioning_logits: Tensor | None = None
    previous: DenoisingStep | None = None
    is_finished = torch.zeros(shape[0], dtype=torch.bool, device=model.device)
    # Clamped positions are certain: only the hole's are asked about, M of C.
    slots = canvas.hole_slots()
    part = canvas.part(slots)
    for step in range(first_step, config.max_denoising_steps):
        if cancel is not None:
            cancel.raise_if_cancelled()
        token_ids = canvas.impose(token_ids)
        answer = yield Pass(token_ids, cache, self_conditioning_logits, slots)
        assert answer is not None, "a pass has to be answered"
        logits = part.restrict(answer / temperature(step, config))  # (B, M, V)
        argmax = logits.argmax(dim=-1)
        if config.candidates == "argmax":
            candidates = argmax
        else:
            candidates = draw(logits, generator) if randoms is None else randoms.draw(step, logits)
        floor = None
        if config.min_accept:
            # Clamped positions among the M have no entropy and are accepted first.
            floor = (
                slots.shape[1]
                - num_slots
                + torch.tensor(
                    [min_accepted(step, int(slots), config) for slots in num_slots],
                    device=model.device,
                )
            )
        accepted, entropy = accept(logits, entropy_bound=config.entropy_bound, min_accepted=floor)
        confidence = logits.softmax(dim=-1).gather(-1, argmax[..., None]).squeeze(-1)
        fresh = noise(shape, vocab_size, generator) if randoms is None else randoms.fresh[step]
        certain = torch.zeros(shape, device=model.device)
        candidates = canvas.token_ids.scatter(1, slots, candidates)  # from here on (B, C) again
        argmax = canvas.token_ids.scatter(1, slots, argmax)
        accepted = torch.ones_like(canvas.hole_mask).scatter(1, slots, accepted)
        confidence = (certain + 1.0).scatter(1, slots, confidence)
        entropy = certain.scatter(1, slots, entropy)
        next_ids = torch.where(accepted, candidates, fresh)
        if previous is not None and self_conditioning_logits is not None and is_finished.any():
            keep = is_finished[:, None]
            next_ids = torch.where(keep, token_ids, next_ids)
            argmax = torch.where(keep, previous.argmax_canvas, argmax)
            confidence = torch.where(keep, previous.confidence, confidence)
            entropy = torch.where(keep, previous.entropy, entropy)
            accepted = torch.where(keep, previous.accepted, accepted)
            logits = torch.where(keep[..., None], self_conditioning_logits.float(), logits)
        reason = None
        for criterion in criteria:
            met = criterion(argmax, entropy, canvas.hole_mask)
            if bool((met & ~is_finished).any()):
                reason = criterion.reason
            is_finished = is_finished | met
        if not bool(is_finished.all()):
            is_last = step + 1 == config.max_denoising_steps
            reason = StopReason.MAX_STEPS if is_last else None
        previous = DenoisingStep(
            step=step,
            noise_proportion=noise_proportion(step, config.max_denoising_steps),
            canvas=canvas.impose(next_ids),
            argmax_canvas=argmax,
            confidence=confidence,
            entropy=entropy,
            accepted=accepted,
            is_finished=is_finished,
            stop_reason=reason,
        )
        rows = yield previous
        if reason is not None:
            return
        token_ids = next_ids
        self_conditioning_logits = logits.to(model.dtype)
        if rows is not None:
            canvas, part = canvas.select(rows), part.select(rows)
            slots, num_slots, is_finished = slots[rows], num_slots[rows], is_finished[rows]
            token_ids, previous = token_ids[rows], previous.select(rows)
            randoms = None if randoms is None else randoms.select(rows)
            self_conditioning_logits = self_conditioning_logits[rows]
            shape = (len(rows), shape[1])
            for criterion in criteria:
                criterion.select(rows)
            if bool(is_finished.all()):
                return
