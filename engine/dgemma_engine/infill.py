"""The engine: a request in, a fill out.

    InfillRequest -> InfillPlan (strategies/) -> encode what is new -> denoise -> InfillResult

Owns the model, the tokenizer and the prefix caches. Knows no files except the checkpoint's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .batching import rows_that_gain
from .cache import KVCache, PrefixCaches
from .canvas import Canvas
from .chains import CausalRules, Chain, read_left_to_right
from .checkpoint import load_checkpoint, load_configs
from .config import SamplerConfig
from .copying import copy_from_context
from .denoise import DenoisingStep
from .drafts import Draft, binary_entropy, join, mean_log_confidence, read_draft, surest_row
from .errors import CheckpointError, OutOfMemory, RequestError
from .judge import Judge, length_posterior
from .left_to_right import decode_left_to_right
from .lockstep import run_in_step
from .loops import Denoiser, describe_kernels
from .machine import free_memory
from .memory import QUANTIZATIONS, memory_plan
from .model import DiffusionGemma
from .passes import Pass, together
from .revise import first_step_of, renoised
from .run_form import fastest_dtype
from .sampler import noise
from .special_tokens import LANGUAGE_TAGS
from .stopping import criteria
from .strategies import ChatStrategy, InfillPlan, InfillStrategy, choose_strategy
from .tensor_files import read_json
from .texts import Texts
from .together import Together
from .tokenizer import Tokenizer
from .types import (
    CancellationToken,
    ChatRequest,
    ClientFill,
    Decoder,
    DraftStep,
    EngineInfo,
    HoleKind,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnFilled,
    OnJointStep,
    OnStep,
    StopReason,
    Timings,
)

CHECKPOINTS_FOLDER = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = "fill-4m"
# A smaller model than this runs on one CPU thread: its operations are too short to share. Measured
# for 4 M parameters on a busy machine: 118 ms a fill on one thread, 157 ms on two.
_SINGLE_THREAD_PARAMETERS = 16_000_000
# Candidate lengths that are denoised to the end after the first pass has ranked them all.
_NUM_REFINED_LENGTHS = 2
_LEAST_PROBABILITY = 1e-30
# What is filled to warm up, for a client that nobody is.
_SAMPLE = InfillRequest(
    "def area(width, height):\n    return ", "\n", decoder=Decoder.DIFFUSION, max_steps=4
)
_NOBODY = "warming up"
# Starts of a fill that are compared where the line goes on behind the hole.
_MOST_CUTS = 16

_T = TypeVar("_T")
# Work that may ask for passes, or let others on with None, and be answered with the logits.
_InPasses = Generator[Pass | None, Tensor | None, _T]
_Steps = (
    Generator[DenoisingStep, Tensor | None, None]
    | Generator[DenoisingStep | Pass, Tensor | None, None]
)
_Denoise = Callable[..., _Steps]


def build_engine(
    model: str = "default",
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    strategy: str = "auto",
) -> DiffusionEngine:
    """Load a checkpoint and the strategy that suits it; see `dgemma_engine.load_engine`.

    For a small model on a CPU this sets torch to one thread, for the whole process; a larger one
    runs there in float32 or bfloat16, whichever is faster (`dtype="auto"`).

    Args:
        strategy: see `choose_strategy`.
    """
    folder = checkpoint_folder(model)
    config, _ = load_configs(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only "
            f"{config.vocab_size}; they do not belong together"
        )
    loaded = load_checkpoint(folder, device, dtype, quantization)
    if loaded.device.type == "cpu":
        if loaded.num_parameters < _SINGLE_THREAD_PARAMETERS:
            torch.set_num_threads(1)
        elif dtype == "auto" and loaded.dtype is torch.float32 and loaded.quantization is None:
            loaded.to(fastest_dtype(loaded))
    infill_path = folder / "infill_config.json"
    infill_config = read_json(infill_path) if infill_path.exists() else {}
    chosen = choose_strategy(strategy, tokenizer, config, infill_config, loaded.device)
    threshold = float(infill_config.get("confidence_threshold", 0.0))
    learned = {LANGUAGE_TAGS.get(name) for name in infill_config.get("languages", ())}
    languages = tuple(name for name, tag in LANGUAGE_TAGS.items() if tag in learned)
    engine = DiffusionEngine(folder.name, loaded, tokenizer, chosen, threshold, languages)
    if loaded.device.type == "cuda":
        engine.warm_up()
    return engine


def checkpoint_folder(model: str) -> Path:
    """The folder of a model's name: "default" for the one in this package."""
    if model == "default":
        return CHECKPOINTS_FOLDER / DEFAULT_CHECKPOINT
    return Path(model).expanduser()


class _Fill(NamedTuple):
    """What a decoder came to; `chain` is None where nothing can read it from left to right."""

    draft: Draft
    num_passes: int
    stop_reason: StopReason
    chain: Chain | None


class DiffusionEngine:
    """Fills holes with a diffusion model. One fill at a time; a second caller waits.

    Attributes:
        caches: what the last prompt of each client left behind.
    """

    def __init__(
        self,
        name: str,
        model: DiffusionGemma,
        tokenizer: Tokenizer,
        strategy: InfillStrategy,
        confidence_threshold: float = 0.0,
        languages: tuple[str, ...] = (),
        denoiser: Denoiser | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.strategy = strategy
        self._name = name
        self._confidence_threshold = confidence_threshold
        self._languages = languages
        self.caches = PrefixCaches(model)
        self._judge = Judge(model, tokenizer)
        self._texts = Texts(tokenizer, strategy)
        self._denoise = denoiser or Denoiser(model)
        self._together = Together(model, self._denoise, strategy, self._texts, self._judge)
        self._lock = threading.Lock()
        self._serve("")

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self._name,
            parameters=self.model.num_parameters,
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            strategy=self.strategy.name,
            confidence_threshold=self._confidence_threshold,
            languages=self._languages,
            fills_together=self.strategy.fills_together,
            quantization=self.model.quantization,
            loop=self._denoise.describe(),
            kernels=describe_kernels(),
        )

    def warm_up(self) -> None:
        """Compile the kernels of a fill, and find out which of them run: `info` tells then.

        The first keystrokes would else wait for that, a minute on a new machine.
        """
        for _ in range(2):  # of a CUDA graph the second one captures what the first one ran
            self.fill(_SAMPLE, client=_NOBODY)
        self.forget(_NOBODY)

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        """See `InfillEngine.count_tokens`."""
        healed = self.strategy.plan(request).healed.decode("utf-8", errors="ignore")
        return len(self.tokenizer.encode(healed + text))

    def render(self, request: InfillRequest) -> str:
        """See `InfillEngine.render`."""
        plan = self.strategy.plan(request)
        token_ids, hole = plan.canvas.token_ids[0].tolist(), plan.canvas.hole_mask[0].tolist()
        canvas = ""
        for is_hole, slots in itertools.groupby(range(len(hole)), hole.__getitem__):
            part = list(slots)
            clamped = self.tokenizer.render(token_ids[slot] for slot in part)
            canvas += f"⟨{len(part)} slots to fill⟩" if is_hole else clamped
        prompt = self.tokenizer.render(plan.prompt_ids)
        healed = plan.healed.decode("utf-8", errors="replace")
        start = f"the first slot begins with {healed!r}, taken back from the prefix\n"
        return (
            f"prompt ({len(plan.prompt_ids)} tokens):\n{prompt}\n\n"
            f"canvas:\n{canvas}\n{start if healed else ''}"
        )

    def close(self) -> None:
        """Nothing to do: the memory goes with the engine."""

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> JointResult:
        """Fill several holes on one canvas; see `ManyClientEngine.fill_together`."""
        plan = self.strategy.plan_together(request)
        with self._at_work(client, lambda: len(plan.prompt_ids)):
            started = time.monotonic()
            if cancel is not None:
                cancel.raise_if_cancelled()
            most_new = 0 if request.drafts is not None else self._denoise.most_new_tokens
            prepared = self._prefix_cache.prepare(plan.prompt_ids, most_new)
            encode_ms = (time.monotonic() - started) * 1000
            fill = self._together.fill(
                prepared.cache, plan, request, on_step, cancel, prepared.new_ids
            )
            total_ms = (time.monotonic() - started) * 1000
        timings = Timings(encode_ms, total_ms - encode_ms, total_ms)
        return JointResult(fill.texts, fill.confidences, fill.num_passes, timings, fill.stop_reason)

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        """Fill a hole; see `ManyClientEngine.fill`."""
        with self._at_work(client, lambda: len(self.strategy.plan(request).prompt_ids)):
            return self._alone(self._fill(None, request, on_step, cancel, self._denoise))

    @property
    def most_at_once(self) -> int:
        """See `ManyClientEngine.most_at_once`."""
        return rows_that_gain(self.model)

    def fill_many(self, calls: Sequence[ClientFill], on_done: OnFilled) -> None:
        """Fill holes of several clients at once; see `ManyClientEngine.fill_many`.

        All do as they would alone, in step: the passes that they need at a time are one pass.
        Prompts are encoded, tokens written left to right and texts judged one after the other.
        The next one begins when the prompts of those before are within the caches' plan.
        """
        if len({call.client for call in calls}) < len(calls):
            raise ValueError("two of the fills are of one client; its cache holds one prompt")

        def may_begin(num_begun: int) -> bool:
            self.caches.trim(num_begun)
            return self.caches.num_bytes <= self.caches.max_bytes

        with self._lock:
            try:
                run_in_step(
                    [self._beside_others(call) for call in calls],
                    lambda passes: together(self.model, passes),
                    on_done,
                    may_begin=may_begin,
                )
            finally:
                self.caches.trim()

    def chat(
        self,
        request: ChatRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        """Reply in a conversation; see `ManyClientEngine.chat`."""
        if not isinstance(self.strategy, ChatStrategy):
            raise RequestError(
                f"the model {self._name} fills holes and does not chat; ask for a completion, or "
                "choose an instruction-tuned model"
            )
        plan = self.strategy.plan_reply(request)
        hole = InfillRequest(
            "",
            "",
            kind=HoleKind.SELECTION,
            max_tokens=request.max_tokens,
            seed=request.seed,
            deadline=request.deadline,
        )
        with self._at_work(client, lambda: len(plan.prompt_ids)):
            return self._alone(self._fill(plan, hole, on_step, cancel, self._denoise))

    def forget(self, client: str) -> None:
        """See `ManyClientEngine.forget`."""
        with self._lock:
            self.caches.forget(client)
            self._serve("")

    def _serve(self, client: str) -> None:
        self._prefix_cache, self._judge.prefix_cache = self.caches.of(client)

    def limit_caches(self, max_bytes: int) -> None:
        """See `ManyClientEngine.limit_caches`."""
        self.caches.max_bytes = max_bytes

    @contextmanager
    def _at_work(self, client: str, count_tokens: Callable[[], int]) -> Iterator[None]:
        """The engine works for a client, alone, beside what its last prompt left behind.

        Args:
            count_tokens: of the prompt; asked if the memory is not enough.
        Raises:
            OutOfMemory: it is not.
        """
        with self._lock:
            self._serve(client)
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(client, count_tokens()) from error
            finally:
                self.caches.trim()

    def _alone(self, fill: _InPasses[InfillResult]) -> InfillResult:
        """Do a fill, and every pass that it asks for."""
        answer: Tensor | None = None
        while True:
            try:
                wanted = fill.send(answer)
            except StopIteration as end:
                result: InfillResult = end.value
                return result
            answer = None if wanted is None else wanted.alone(self.model)

    def _beside_others(self, call: ClientFill) -> _InPasses[InfillResult]:
        """A fill between whose passes the engine works for other clients.

        Raises:
            OutOfMemory: as `_at_work`.
        """
        fill = self._fill(None, call.request, call.on_step, call.cancel, self._denoise.in_passes)
        answer: Tensor | None = None
        try:
            while True:
                self._serve(call.client)
                answer = yield fill.send(answer)
        except StopIteration as end:
            result: InfillResult = end.value
            return result
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(
                call.client, len(self.strategy.plan(call.request).prompt_ids)
            ) from error

    def _out_of_memory(self, client: str, tokens: int) -> OutOfMemory:
        """Free what the client held, and say what would fit."""
        self.caches.forget(client)
        self._serve("")
        return OutOfMemory(self._fitting(tokens))

    def _fitting(self, tokens: int) -> str:
        """What to say when a fill with so many tokens of context ran out of memory."""
        held = f" in {self.model.quantization}" if self.model.quantization else ""
        free = free_memory(self.model.device)
        most = 0
        if free is not None:
            plan = memory_plan(self.model.config, None, tokens)
            most = tokens * free.free_bytes // (plan.cache_bytes + plan.work_bytes)
        return (
            f"out of memory in a fill with {tokens:,} tokens of context, beside a model of "
            f"{self.model.num_parameters / 1e9:.1f} B parameters{held}; about "
            f"{min(tokens // 2, most):,} tokens would fit: lower prefixChars, suffixChars or "
            f"contextChars, or load the model with --quantization {' or '.join(QUANTIZATIONS)}"
        )

    def _fill(
        self,
        plan: InfillPlan | None,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: _Denoise,
    ) -> _InPasses[InfillResult]:
        start = time.monotonic()
        plan = plan or self.strategy.plan(request)
        decoder = request.decoder if request.decoder is not Decoder.AUTO else plan.decoder
        if request.draft:
            decoder = Decoder.DIFFUSION
            if not self.strategy.end_token_ids:  # a canvas without end marks has to fit exactly
                length = len(self._texts.draft_ids(request.draft, plan.healed))
                most = max(length, request.max_tokens)
                exact = dataclasses.replace(request, num_tokens=length, max_tokens=most)
                plan = self.strategy.plan(exact)
        if decoder is Decoder.LEFT_TO_RIGHT and plan.rules is None:
            raise RequestError(
                f"strategy {self.strategy.name!r} cannot decode left to right; "
                "ask for the decoder 'diffusion' or 'auto'"
            )
        if cancel is not None:
            cancel.raise_if_cancelled()
        most_new = 0
        if decoder is Decoder.DIFFUSION and not request.draft and not plan.candidates:
            most_new = self._denoise.most_new_tokens
        cache, num_cached, new_ids = self._prefix_cache.prepare(plan.prompt_ids, most_new)
        encode_ms = (time.monotonic() - start) * 1000
        if decoder is Decoder.LEFT_TO_RIGHT:
            fill = yield from self._write(plan, request, on_step, cancel)
        elif request.draft:
            fill = yield from self._revise(cache, plan, request, on_step, cancel, denoise)
        else:
            fill = yield from self._diffuse(cache, new_ids, plan, request, on_step, cancel, denoise)
        if (
            request.decoder is Decoder.AUTO
            and not request.draft
            and fill.stop_reason is not StopReason.DEADLINE
        ):
            fill = self._or_copied(plan, request, fill)
        total_ms = (time.monotonic() - start) * 1000
        token_ids = fill.draft.token_ids[: request.max_tokens]
        confidences = fill.draft.confidences[: len(token_ids)]
        entropies = fill.draft.entropies[: max(1, len(token_ids))]
        text = self._text(token_ids, plan, request)
        chances = [math.log(max(value, _LEAST_PROBABILITY)) for value in confidences]
        end = 0.0
        if fill.chain is not None:
            chances = list(fill.chain.log_probabilities[: len(token_ids)])
            end = fill.chain.end_log_probability
        chain = list(itertools.accumulate(chances))
        return InfillResult(
            text=text,
            token_ids=tuple(token_ids),
            token_confidences=tuple(confidences),
            token_ends=tuple(self._texts.token_ends(token_ids, plan.healed, text)),
            prefix_confidences=tuple(map(math.exp, chain)),
            confidence=math.exp((chain[-1] if chain else 0.0) + end),
            mean_entropy=sum(entropies) / len(entropies),
            decoder=decoder,
            num_passes=fill.num_passes,
            num_cached_tokens=num_cached,
            num_context_tokens=len(plan.prompt_ids),
            timings=Timings(encode_ms, total_ms - encode_ms, total_ms),
            stop_reason=fill.stop_reason,
        )

    def _or_copied(self, plan: InfillPlan, request: InfillRequest, fill: _Fill) -> _Fill:
        """The fill, or what the text did before if that fits better before the suffix."""
        if plan.rules is None or plan.judge is None or request.kind is not HoleKind.LINE:
            return fill
        copied = copy_from_context(request)
        text = self._text(fill.draft.token_ids, plan, request)
        token_ids = self.tokenizer.encode(plan.judge.healed + copied)
        if copied in ("", text) or request.num_tokens or len(token_ids) > request.max_tokens:
            return fill
        scores = self._judge.scores(plan.judge, [text, copied])
        if scores[0] >= scores[1]:
            return fill
        draft, chain = self._as_it_stands(plan, plan.rules, token_ids)
        return fill._replace(draft=draft, chain=chain)

    def _as_it_stands(
        self, plan: InfillPlan, rules: CausalRules, token_ids: list[int]
    ) -> tuple[Draft, Chain]:
        """A text that no decoder wrote, as the encoder reads it."""
        cache, _ = self._prefix_cache.encode(plan.prompt_ids)
        (chain,) = read_left_to_right(self.model, cache, plan.prompt_ids, [token_ids], rules)
        confidences = [math.exp(value) for value in chain.log_probabilities]
        entropies = [binary_entropy(value) for value in confidences]
        accepted = [True] * len(token_ids)
        return Draft(token_ids, confidences, entropies, accepted, has_ended=True), chain

    # --- left to right ---

    def _write(
        self,
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
    ) -> _InPasses[_Fill]:
        assert plan.rules is not None
        reason = StopReason.END
        num_passes, draft = 0, Draft([], [], [0.0], [], has_ended=False)
        chain = Chain((), (), 0.0)
        for chain in decode_left_to_right(
            self._prefix_cache,
            plan.prompt_ids,
            plan.rules,
            request.max_tokens,
            request.num_tokens,
            cancel,
        ):
            confidences = [math.exp(value) for value in chain.log_probabilities]
            # The entropy of two outcomes, this token and any other: a lower bound of the true one.
            entropies = [binary_entropy(value) for value in confidences] or [0.0]
            has_written = len(chain.token_ids) > len(draft.token_ids)
            draft = Draft(
                list(chain.token_ids), confidences, entropies, [True] * len(confidences), True
            )
            num_passes += 1
            if on_step is not None and has_written:
                on_step(self._show(num_passes - 1, request.max_tokens, draft, plan, request))
            if request.deadline is not None and time.monotonic() >= request.deadline:
                reason = StopReason.DEADLINE
                break
            yield None
        if reason is StopReason.END and len(draft.token_ids) == request.max_tokens:
            reason = StopReason.MAX_STEPS
        if reason is not StopReason.DEADLINE and request.num_tokens is None:
            draft, chain = self._cut_before_suffix(plan, plan.rules, draft, chain, request)
        return _Fill(draft, num_passes, reason, chain)

    def _cut_before_suffix(
        self,
        plan: InfillPlan,
        rules: CausalRules,
        draft: Draft,
        chain: Chain,
        request: InfillRequest,
    ) -> tuple[Draft, Chain]:
        """The start of the fill that fits best before the suffix.

        Left to right tends to write a line to its end, whatever follows on it, and a block on and
        on. A line is cut anywhere if it goes on behind the hole; a block at the ends of its lines.
        """
        length = len(draft.token_ids)
        is_line = request.kind is HoleKind.LINE
        if plan.judge is None or (is_line and not request.suffix.partition("\n")[0].strip()):
            return draft, chain
        sizes = [
            size
            for size in range(1, length + 1)
            if is_line or size == length or self._starts_line(draft.token_ids[size])
        ][-_MOST_CUTS:]
        if len(sizes) < 2:
            return draft, chain
        texts = [self._text(draft.token_ids[:size], plan, request) for size in sizes]
        scores = self._judge.scores(plan.judge, texts)
        size = sizes[max(range(len(scores)), key=scores.__getitem__)]
        if size == length:
            return draft, chain
        cut = draft.start(size)
        (again,) = read_left_to_right(
            self.model,
            self._prefix_cache.encode(plan.prompt_ids)[0],
            plan.prompt_ids,
            [cut.token_ids],
            rules,
        )
        return cut, again

    def _starts_line(self, token_id: int) -> bool:
        return self.tokenizer.token_bytes(token_id).startswith(b"\n")

    # --- diffusion ---

    @torch.no_grad()
    def _diffuse(
        self,
        cache: KVCache,
        new_ids: list[int],
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: _Denoise,
    ) -> _InPasses[_Fill]:
        config = self.model.sampler_defaults
        if request.max_steps is not None:
            config = dataclasses.replace(config, max_denoising_steps=request.max_steps)
        generator = torch.Generator(self.model.device).manual_seed(request.seed)
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
                criteria(config, self.strategy.end_token_ids),
                cancel,
                new_ids=new_ids,
            )
            kept: Tensor | None = None
            while (step := (yield from _next(steps, kept))) is not None:
                last, kept = step, None
                num_passes += 1
                if on_step is not None:
                    shown = join(done, self._read(last, canvas, surest_row(last, canvas)))
                    on_step(self._show(last.step, config.max_denoising_steps, shown, plan, request))
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
                return _Fill(draft, num_passes, reason, chain)
            done = join(done, self._read(last, canvas, surest_row(last, canvas)))
            is_full = len(done.token_ids) >= request.max_tokens or reason is StopReason.DEADLINE
            if done.has_ended or is_full or not plan.may_continue:
                return _Fill(done, num_passes, reason, None)
            cache, _, new_ids = self._prefix_cache.prepare(
                plan.prompt_ids + done.token_ids, self._denoise.most_new_tokens
            )
            canvas = dataclasses.replace(
                Canvas.open(1, canvas.token_ids.shape[1], self.model.device), banned=canvas.banned
            )

    @torch.no_grad()
    def _revise(
        self,
        cache: KVCache,
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: _Denoise,
    ) -> _InPasses[_Fill]:
        """Denoise a draft again: its least likely tokens become noise, the others stay to begin.

        One pass over the draft as it stands says how likely each token is. What comes out is the
        draft, unless the new text fits better before the suffix or all of it was to be new.
        """
        config = self.model.sampler_defaults
        if request.max_steps is not None:
            config = dataclasses.replace(config, max_denoising_steps=request.max_steps)
        generator = torch.Generator(self.model.device).manual_seed(request.seed)
        assert request.draft is not None
        canvas = plan.canvas.select(torch.zeros(1, dtype=torch.int64, device=self.model.device))
        draft_ids = self._texts.draft_ids(request.draft, plan.healed)
        num_slots, ends = int(canvas.hole_mask.sum()), self.strategy.end_token_ids
        most = num_slots - 1 if ends else num_slots
        if len(draft_ids) > most:
            raise RequestError(
                f"the text to revise has {len(draft_ids)} tokens, the canvas holds {most}; "
                "choose a shorter one"
            )
        tail = [*ends[:1], *ends[-1:] * num_slots][: num_slots - len(draft_ids)]
        held = torch.tensor([draft_ids + tail], device=self.model.device)
        is_draft = torch.arange(num_slots, device=self.model.device)[None] < len(draft_ids)
        initial = renoised(self.model, cache, canvas, held, is_draft, request.strength, generator)
        num_steps = config.max_denoising_steps
        reason, num_passes = StopReason.MAX_STEPS, 1
        last: DenoisingStep | None = None
        steps = denoise(
            cache,
            canvas,
            config,
            generator,
            criteria(config, self.strategy.end_token_ids),
            cancel,
            initial=initial,
            first_step=first_step_of(request.strength, num_steps),
        )
        while (step := (yield from _next(steps, None))) is not None:
            last = step
            num_passes += 1
            if on_step is not None:
                draft = self._read(last, canvas, 0)
                on_step(self._show(last.step, num_steps, draft, plan, request))
            reason = last.stop_reason or reason
            if request.deadline is not None and time.monotonic() >= request.deadline:
                reason = StopReason.DEADLINE if last.stop_reason is None else reason
                break
        assert last is not None
        done = self._read(last, canvas, 0)
        if plan.rules is None or not done.token_ids:
            return _Fill(done, num_passes, reason, None)
        best = done.token_ids
        if plan.judge is not None and request.strength < 1.0:
            revised = self._text(best, plan, request)
            scores = self._judge.scores(plan.judge, [request.draft, revised])
            best = draft_ids if scores[0] >= scores[1] else best
        written, chain = self._as_it_stands(plan, plan.rules, best)
        return _Fill(written, num_passes, reason, chain)

    def _promising(
        self, plan: InfillPlan, step: DenoisingStep, canvas: Canvas, request: InfillRequest
    ) -> Tensor:
        """(N,) the rows whose drafts fit best before the suffix, as they stand."""
        assert plan.judge is not None
        drafts = [self._read(step, canvas, row) for row in range(len(canvas.token_ids))]
        texts = [self._text(draft.token_ids, plan, request) for draft in drafts]
        scores = torch.tensor(self._judge.scores(plan.judge, texts))
        best = scores.topk(plan.num_refined).indices.sort().values
        return best.to(self.model.device)

    def _choose(
        self,
        cache: KVCache,
        plan: InfillPlan,
        rules: CausalRules,
        drafts: list[Draft],
        request: InfillRequest,
    ) -> tuple[Draft, Chain]:
        """The draft that fits best before the suffix; an empty one only if there is no other."""
        own = [draft for draft in drafts if draft.token_ids] or drafts[:1]
        best = own[0]
        if len(own) > 1:
            assert plan.judge is not None
            texts = [self._text(draft.token_ids, plan, request) for draft in own]
            scores = self._judge.scores(plan.judge, texts)
            best = own[max(range(len(own)), key=scores.__getitem__)]
        (chain,) = read_left_to_right(self.model, cache, plan.prompt_ids, [best.token_ids], rules)
        return best, chain

    def _likely_lengths(
        self, cache: KVCache, plan: InfillPlan, generator: torch.Generator
    ) -> _InPasses[tuple[int, ...]]:
        """The likeliest candidates after one pass over a canvas that leaves the length open."""
        canvas = plan.canvas
        slots = canvas.hole_slots()
        shape = (canvas.token_ids.shape[0], canvas.token_ids.shape[1])
        token_ids = canvas.impose(noise(shape, self.model.config.vocab_size, generator))
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
        denoise: _Denoise,
    ) -> _InPasses[Canvas]:
        """One pass over all candidate lengths; the rows that promise most."""
        once = dataclasses.replace(config, max_denoising_steps=1)
        steps = denoise(cache, canvas, once, generator, [], cancel, new_ids=new_ids)
        step = yield from _next(steps, None)
        assert step is not None
        scores = mean_log_confidence(step, canvas)
        best = scores.topk(min(_NUM_REFINED_LENGTHS, len(scores))).indices.sort().values
        return canvas.select(best)

    def _read(self, step: DenoisingStep, canvas: Canvas, row: int) -> Draft:
        return read_draft(step, canvas, row, self.strategy.end_token_ids)

    def _text(self, token_ids: list[int], plan: InfillPlan, request: InfillRequest) -> str:
        return self._texts.text(token_ids, plan.healed, request, is_reply=plan.is_reply)

    def _show(
        self, step: int, max_steps: int, draft: Draft, plan: InfillPlan, request: InfillRequest
    ) -> DraftStep:
        text = self._text(draft.token_ids, plan, request)
        return self._texts.step(step, max_steps, draft, plan.healed, text)


def _next(steps: _Steps, rows: Tensor | None) -> _InPasses[DenoisingStep | None]:
    """The next step, of these rows alone if any are named; None after the last one."""
    given = rows
    while True:
        try:
            found = steps.send(given)
        except StopIteration:
            return None
        if isinstance(found, DenoisingStep):
            return found
        given = yield found
