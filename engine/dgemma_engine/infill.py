"""The engine: a request in, a fill out.

    InfillRequest -> InfillPlan (strategies/) -> encode what is new -> decode -> InfillResult

What decodes: `diffusion.py`, `left_to_right.py`, `revise.py`, and `together.py` for several holes.
Owns the model, the tokenizer and the prefix caches. Knows no files except the checkpoint's.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .balance import Balance
from .batching import rows_that_gain
from .cache import PrefixCaches
from .checkpoint import load_checkpoint, load_configs
from .copying import Copying
from .diffusion import Diffusion
from .errors import CheckpointError, OutOfMemory, RequestError
from .judge import Judge
from .left_to_right import LeftToRight
from .lockstep import run_in_step
from .loops import Denoise, Denoiser, describe_kernels
from .machine import free_memory
from .memory import ran_out
from .model import DiffusionGemma
from .passes import InPasses, together
from .recall import Recall, RecallWeights
from .results import build_result
from .revise import Revision
from .run_form import fastest_dtype
from .scope import Scope
from .special_tokens import LANGUAGE_TAGS
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
    EngineInfo,
    HoleKind,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnFilled,
    OnJointStep,
    OnStep,
    Timings,
)

CHECKPOINTS_FOLDER = Path(__file__).parent / "checkpoints"
DEFAULT_CHECKPOINT = "fill-4m"
# A smaller model than this runs on one CPU thread: its operations are too short to share. Measured
# for 4 M parameters on a busy machine: 118 ms a fill on one thread, 157 ms on two.
_SINGLE_THREAD_PARAMETERS = 16_000_000
# What is filled to warm up, for a client that nobody is.
_SAMPLE = InfillRequest(
    "def area(width, height):\n    return ", "\n", decoder=Decoder.DIFFUSION, max_steps=4
)
_NOBODY = "warming up"


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
    weights = RecallWeights.from_json(infill_config)
    recall = None if weights is None else Recall(tokenizer, weights)
    engine = DiffusionEngine(
        folder.name, loaded, tokenizer, chosen, threshold, languages, recall=recall
    )
    if loaded.device.type == "cuda":
        engine.warm_up()
    return engine


def checkpoint_folder(model: str) -> Path:
    """The folder of a model's name: "default" for the one in this package."""
    if model == "default":
        return CHECKPOINTS_FOLDER / DEFAULT_CHECKPOINT
    return Path(model).expanduser()


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
        recall: Recall | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.strategy = strategy
        self._name = name
        self._confidence_threshold = confidence_threshold
        self._languages = languages
        self.caches = PrefixCaches(model)
        self._recall = recall
        self._balance = Balance(tokenizer, model.config.vocab_size)
        self._judge = Judge(model, tokenizer)
        self._texts = Texts(tokenizer, strategy)
        self._denoise = denoiser or Denoiser(model)
        self._together = Together(model, self._denoise, strategy, self._texts, self._judge)
        self._left_to_right = LeftToRight(model, tokenizer, self._texts, self._judge)
        self._diffusion = Diffusion(model, self._denoise, strategy, self._texts, self._judge)
        self._revision = Revision(model, strategy, self._texts, self._judge, self._left_to_right)
        self._copying = Copying(self._texts, self._judge, self._left_to_right)
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
            recalls=self._recall is not None,
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
        shown = self._texts.render(self.strategy.plan(request))
        if self._recall is None or not request.nearby:
            return shown
        recalled = "".join(
            f"{len(text):>8} characters that begin with {text.lstrip()[:60].splitlines()[0]!r}\n"
            for text in request.nearby
            if text.strip()
        )
        return f"{shown}\nnot read, but recalled from:\n{recalled}"

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

    def encode(
        self, request: InfillRequest, cancel: CancellationToken | None = None, *, client: str = ""
    ) -> int:
        """Encode a prompt, and what its drafts are judged by; see `ManyClientEngine.encode`."""
        plan = self.strategy.plan(request)
        with self._at_work(client, lambda: len(plan.prompt_ids)):
            _, num_cached = self._prefix_cache.encode(plan.prompt_ids, cancel)
            if plan.judge is not None:
                self._judge.encode(plan.judge, cancel)
            if self._recall is not None:
                self._recall.read(request.nearby, cancel)
        return len(plan.prompt_ids) - num_cached

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
        """All parts of the engine look at what this client's last fill left behind."""
        self._prefix_cache, self._judge.prefix_cache = self.caches.of(client)
        self._left_to_right.prefix_cache = self._diffusion.prefix_cache = self._prefix_cache

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

    def _alone(self, fill: InPasses[InfillResult]) -> InfillResult:
        """Do a fill, and every pass that it asks for."""
        answer: Tensor | None = None
        while True:
            try:
                wanted = fill.send(answer)
            except StopIteration as end:
                result: InfillResult = end.value
                return result
            answer = None if wanted is None else wanted.alone(self.model)

    def _beside_others(self, call: ClientFill) -> InPasses[InfillResult]:
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
        model, free = self.model, free_memory(self.model.device)
        available = 0 if free is None else free.free_bytes
        return OutOfMemory(
            ran_out(model.config, model.num_parameters, model.quantization, tokens, available)
        )

    def _fill(
        self,
        plan: InfillPlan | None,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
        denoise: Denoise,
    ) -> InPasses[InfillResult]:
        """Plan, encode, decode; a reply in a conversation brings its own plan."""
        start = time.monotonic()
        plan, decoder = self._plan(plan, request)
        if cancel is not None:
            cancel.raise_if_cancelled()
        most_new = 0
        if decoder is Decoder.DIFFUSION and not request.draft and not plan.candidates:
            most_new = self._denoise.most_new_tokens
        cache, num_cached, new_ids = self._prefix_cache.prepare(plan.prompt_ids, most_new)
        encode_ms = (time.monotonic() - start) * 1000
        if decoder is Decoder.LEFT_TO_RIGHT:
            fill = yield from self._left_to_right.fill(plan, request, on_step, cancel)
        elif request.draft:
            fill = yield from self._revision.fill(cache, plan, request, on_step, cancel, denoise)
        else:
            fill = yield from self._diffusion.fill(
                cache, new_ids, plan, request, on_step, cancel, denoise
            )
        if request.decoder is Decoder.AUTO and not request.draft and not fill.stop_reason.is_early:
            fill = self._copying.instead_of(fill, plan, request)
        total_ms = (time.monotonic() - start) * 1000
        timings = Timings(encode_ms, total_ms - encode_ms, total_ms)
        return build_result(fill, plan, request, self._texts, decoder, num_cached, timings)

    def _plan(self, plan: InfillPlan | None, request: InfillRequest) -> tuple[InfillPlan, Decoder]:
        """What to run, and which decoder runs it.

        Raises:
            RequestError: the strategy cannot decode as the request asks.
        """
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
        if self._recall is not None and request.recall:
            plan = self._recall.into(plan, request)
        # While typing, a name that nobody gave is seldom sure enough to be shown.
        is_asked = request.kind is HoleKind.LINE and not request.least_confidence
        # Canvases and texts whose length is known are not looked through for names.
        is_other = request.decoder is Decoder.DIFFUSION or request.draft or request.num_tokens
        is_python = plan.rules is not None and request.language_id == "python"
        if is_asked and is_python and not is_other:
            scope = Scope.around(request.prefix, request.suffix, request.nearby)
            plan = dataclasses.replace(plan, scope=scope)
        return self._balance.into(plan, request), decoder
