"""A hole from nothing but noise, on one canvas after another.

    InfillPlan -> which lengths (a first pass) -> denoise -> the draft that fits best -> Fill

`infill.py` calls it once the prompt is encoded; the steps are `loops.py`'s. Where there are several
drafts, the judge chooses among them: half way, which go on, and at the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import KVCache, PrefixCache
from .canvas import Canvas
from .chains import CausalRules, Chain, read_left_to_right
from .config import SamplerConfig
from .denoise import DenoisingStep
from .drafts import Draft, Fill, draft_of, join, mean_log_confidence, read_draft, surest_row
from .judge import Judge, length_posterior
from .loops import Denoise, Denoiser, next_step
from .model import DiffusionGemma
from .passes import InPasses, Pass
from .sampler import noise
from .stopping import criteria
from .strategies import InfillPlan, InfillStrategy
from .texts import Texts
from .types import CancellationToken, InfillRequest, OnStep, StopReason

# Candidate lengths that are denoised to the end after the first pass has ranked them all.
_NUM_REFINED_LENGTHS = 2


class Diffusion:
    """Fills a plan's hole by denoising.

    Attributes:
        prefix_cache: of the client that is served; what goes on over a further canvas is encoded
            there.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        denoiser: Denoiser,
        strategy: InfillStrategy,
        texts: Texts,
        judge: Judge,
    ) -> None:
        self._model = model
        self._denoiser = denoiser
        self._strategy = strategy
        self._texts = texts
        self._judge = judge
        self.prefix_cache = PrefixCache(model)

    @torch.no_grad()
    def fill(
        self,
        cache: KVCache,
        new_ids: list[int],
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: Denoise,
    ) -> InPasses[Fill]:
        """Denoise the hole, from noise.

        Args:
            cache: of the plan's prompt.
            new_ids: of the prompt, what the cache does not hold yet.
            denoise: the denoiser, as it is or with its passes left to whoever runs this.
        """
        config = self._model.sampler_defaults.with_steps(request.max_steps)
        generator = torch.Generator(self._model.device).manual_seed(request.seed)
        canvas, num_passes = plan.canvas, 0
        if plan.rules is None and canvas.token_ids.shape[0] > 1:
            canvas = yield from self._rank_lengths(
                cache, new_ids, canvas, config, generator, cancel, denoise
            )
            num_passes, new_ids = num_passes + 1, []
        elif plan.candidates:
            assert plan.exact_canvas is not None
            lengths = plan.candidates
            if plan.num_drafts < len(lengths):
                lengths = yield from self._likely_lengths(cache, plan, generator)
                num_passes += 1
            canvas = plan.exact_canvas(lengths)

        done = Draft([], [], [], [], has_ended=False)
        while True:
            reason, last = StopReason.MAX_STEPS, None
            steps = denoise(
                cache,
                canvas,
                config,
                generator,
                criteria(config, self._strategy.end_token_ids),
                cancel,
                new_ids=new_ids,
            )
            kept: Tensor | None = None
            while (step := (yield from next_step(steps, kept))) is not None:
                last, kept = step, None
                num_passes += 1
                if on_step is not None:
                    shown = join(done, self._read(last, canvas, surest_row(last, canvas)))
                    on_step(
                        self._texts.step_of(
                            last.step, config.max_denoising_steps, shown, plan, request
                        )
                    )
                reason = last.stop_reason or reason
                if request.deadline is not None and time.monotonic() >= request.deadline:
                    reason = StopReason.DEADLINE if last.stop_reason is None else reason
                    break
                if last.step + 1 == plan.probe_passes and len(canvas.token_ids) > plan.num_refined:
                    kept = self._promising(plan, last, canvas, request)
                    canvas, last = canvas.select(kept), last.select(kept)
                    # If these had finished before the others, there is no further step to say so.
                    reason = StopReason.STABLE if bool(last.is_finished.all()) else reason
            assert last is not None  # there is at least one step
            if plan.rules is not None:
                drafts = [self._read(last, canvas, row) for row in range(len(canvas.token_ids))]
                draft, chain = self._choose(cache, plan, plan.rules, drafts, request)
                return Fill(draft, num_passes, reason, chain)
            done = join(done, self._read(last, canvas, surest_row(last, canvas)))
            is_full = len(done.token_ids) >= request.max_tokens or reason is StopReason.DEADLINE
            if done.has_ended or is_full or not plan.may_continue:
                return Fill(done, num_passes, reason, None)
            cache, _, new_ids = self.prefix_cache.prepare(
                plan.prompt_ids + done.token_ids, self._denoiser.most_new_tokens
            )
            canvas = dataclasses.replace(
                Canvas.open(1, canvas.token_ids.shape[1], self._model.device), banned=canvas.banned
            )

    def _promising(
        self, plan: InfillPlan, step: DenoisingStep, canvas: Canvas, request: InfillRequest
    ) -> Tensor:
        """(N,) the rows whose drafts fit best before the suffix, as they stand."""
        drafts = [self._read(step, canvas, row) for row in range(len(canvas.token_ids))]
        assert plan.judge is not None
        scores = self._judge.scores(plan.judge, self._texts_of(drafts, plan, request))
        best = torch.tensor(scores).topk(plan.num_refined).indices.sort().values
        return best.to(self._model.device)

    def _choose(
        self,
        cache: KVCache,
        plan: InfillPlan,
        rules: CausalRules,
        drafts: list[Draft],
        request: InfillRequest,
    ) -> tuple[Draft, Chain]:
        """The draft that fits best before the suffix; nothing where the encoder expects that."""
        best = drafts[0]
        if len(drafts) > 1:
            assert plan.judge is not None
            best = drafts[self._judge.best(plan.judge, self._texts_of(drafts, plan, request))]
        texts: list[Sequence[int]] = [best.token_ids]
        if rules.empty is not None:
            texts.append(rules.empty)
        chain, *empty = read_left_to_right(
            self._model, cache, plan.prompt_ids, texts, rules, plan.mix
        )
        if empty and empty[0].is_likely:
            return draft_of(empty[0]), empty[0]
        return best, chain

    def _texts_of(
        self, drafts: Sequence[Draft], plan: InfillPlan, request: InfillRequest
    ) -> list[str]:
        return [self._texts.text_of(draft.token_ids, plan, request) for draft in drafts]

    def _likely_lengths(
        self, cache: KVCache, plan: InfillPlan, generator: torch.Generator
    ) -> InPasses[tuple[int, ...]]:
        """The likeliest candidates after one pass over a canvas that leaves the length open."""
        canvas = plan.canvas
        slots = canvas.hole_slots()
        shape = (canvas.token_ids.shape[0], canvas.token_ids.shape[1])
        token_ids = canvas.impose(noise(shape, self._model.config.vocab_size, generator))
        logits = yield Pass(token_ids, cache, None, slots)
        assert logits is not None
        posterior = length_posterior(canvas.part(slots).restrict(logits)[0])
        chances = posterior[torch.tensor(plan.candidates, device=posterior.device)]
        best = chances.topk(min(plan.num_drafts, len(plan.candidates))).indices
        return tuple(sorted(plan.candidates[index] for index in best.tolist()))

    def _rank_lengths(
        self,
        cache: KVCache,
        new_ids: list[int],
        canvas: Canvas,
        config: SamplerConfig,
        generator: torch.Generator,
        cancel: CancellationToken | None,
        denoise: Denoise,
    ) -> InPasses[Canvas]:
        """One pass over all candidate lengths; the rows that promise most."""
        steps = denoise(cache, canvas, config.with_steps(1), generator, [], cancel, new_ids=new_ids)
        step = yield from next_step(steps, None)
        assert step is not None
        scores = mean_log_confidence(step, canvas)
        best = scores.topk(min(_NUM_REFINED_LENGTHS, len(scores))).indices.sort().values
        return canvas.select(best)

    def _read(self, step: DenoisingStep, canvas: Canvas, row: int) -> Draft:
        return read_draft(step, canvas, row, self._strategy.end_token_ids)
