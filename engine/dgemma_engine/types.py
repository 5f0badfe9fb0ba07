"""What goes into the engine and what comes out, in plain Python.

Standard library only: the language server imports this module before torch is loaded.
It knows text, not Positions, files or editors. Read `infill.py` next: what a request becomes.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from .errors import Cancelled, RequestError


class HoleKind(str, Enum):
    """What the hole is; decides where a fill has to end."""

    LINE = "line"  # the rest of one line: the fill holds no newline
    BLOCK = "block"  # whole lines: a statement, a body
    SELECTION = "selection"  # text that was there is replaced: nothing is known about its shape


class Decoder(str, Enum):
    """How a hole's tokens are found, with the same weights."""

    # The one that the checkpoint's own measurements name for this kind of hole; or, for a line,
    # what followed the last time the text looked like this, where the model finds that likelier.
    AUTO = "auto"
    DIFFUSION = "diffusion"  # all slots at once, in a few passes over the canvas
    LEFT_TO_RIGHT = "left_to_right"  # by the encoder, a token a pass, the suffix in its prompt


class StopReason(str, Enum):
    """Why a decoder ended."""

    CONVERGED = "converged"  # stable and confident, the checkpoint's own criterion
    STABLE = "stable"  # the text up to its end mark did not change any more
    MAX_STEPS = "max_steps"
    DEADLINE = "deadline"  # the best draft so far was taken
    END = "end"  # the end mark or the end of the line came (left to right)
    UNSURE = "unsure"  # whatever came next would be less likely than the request wants

    @property
    def is_early(self) -> bool:
        """Whether it ended for the request's sake, before it was done."""
        return self in (StopReason.DEADLINE, StopReason.UNSURE)


@dataclass(frozen=True, slots=True)
class InfillRequest:
    """A hole between two pieces of text.

    Attributes:
        prefix: text before the hole, as much as the caller wants read. May be empty.
        suffix: text after the hole. May be empty.
        kind: what the hole is (`HoleKind`).
        language_id: LSP language identifier, "python".
        max_tokens: longest fill, in tokens, >= 1.
        num_tokens: exact length of the fill, where the caller knows it; None lets the model decide.
            Counted from the last token edge before the hole.
        decoder: how (`Decoder`).
        seed: of the noise; the same request and seed give the same fill in the same process.
        max_steps: denoising steps at most; None takes the checkpoint's own number.
        deadline: `time.monotonic()` seconds after which the draft at hand is returned, or None.
        least_confidence: 0 .. 1; starts of the fill that are less likely than this to be exactly
            right are of no use (`InfillResult.prefix_confidences`). A decoder that knows how likely
            they are before the rest is there ends with the first such start.
        num_alternatives: how many other texts for the hole are wanted beside the fill, 0 .. 16
            (`InfillResult.alternatives`).
        draft: a text for the hole that is revised, by diffusion: what the model finds least likely
            in it becomes noise and is denoised again. None begins with nothing but noise.
        strength: share of the draft's tokens that become noise, above 0 and at most 1.
        nearby: texts that may hold what belongs here, the rest of the document and files beside it,
            the nearest first. The model does not read them; an engine whose `info.recalls` says so
            recalls from them how code like this went on.
        recall: whether it does, from these texts and those around the hole.

    Raises:
        RequestError: at construction, if a number is out of range; the message shows it.
    """

    prefix: str
    suffix: str
    kind: HoleKind = HoleKind.LINE
    language_id: str = "plaintext"
    max_tokens: int = 64
    num_tokens: int | None = None
    decoder: Decoder = Decoder.AUTO
    seed: int = 0
    max_steps: int | None = None
    deadline: float | None = None
    least_confidence: float = 0.0
    num_alternatives: int = 0
    draft: str | None = None
    strength: float = 1.0
    nearby: tuple[str, ...] = ()
    recall: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.num_tokens is not None and not 1 <= self.num_tokens <= self.max_tokens:
            raise RequestError(
                f"num_tokens must be in 1 .. max_tokens ({self.max_tokens}), got {self.num_tokens}"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise RequestError(f"max_steps must be at least 1, got {self.max_steps}")
        if not 0 <= self.least_confidence <= 1:
            raise RequestError(f"least_confidence must be in 0 .. 1, got {self.least_confidence}")
        if not 0 <= self.num_alternatives <= 16:
            raise RequestError(f"num_alternatives must be in 0 .. 16, got {self.num_alternatives}")
        if not 0 < self.strength <= 1:
            raise RequestError(f"strength must be above 0 and at most 1, got {self.strength}")
        if self.draft is not None and self.decoder is Decoder.LEFT_TO_RIGHT:
            raise RequestError("a draft can be revised by diffusion only, not left to right")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must be in 0 .. 2**63 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True)
class JointRequest:
    """Several holes of one text, filled together on one canvas, so that they agree.

    Attributes:
        texts: one more than there are holes: before the first, between them, after the last.
        kinds: of each hole.
        drafts: a text for each hole to begin with, as `InfillRequest.draft`; None for noise.
        strength: share of the drafts' tokens that become noise, above 0 and at most 1.
        max_tokens: longest fill of one hole.
        language_id, seed, max_steps, deadline: as of an InfillRequest.

    Raises:
        RequestError: at construction, if the numbers do not belong together or are out of range.
    """

    texts: tuple[str, ...]
    kinds: tuple[HoleKind, ...]
    drafts: tuple[str, ...] | None = None
    strength: float = 1.0
    language_id: str = "plaintext"
    max_tokens: int = 64
    seed: int = 0
    max_steps: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not self.kinds or len(self.texts) != len(self.kinds) + 1:
            raise RequestError(
                f"{len(self.kinds)} holes need one text more than that, got {len(self.texts)}"
            )
        if self.drafts is not None and len(self.drafts) != len(self.kinds):
            raise RequestError(f"{len(self.kinds)} holes got {len(self.drafts)} drafts")
        for index in range(len(self.kinds)):
            self.hole(index)  # the same limits

    def hole(self, index: int) -> InfillRequest:
        """One of the holes on its own, the drafts of the others in place."""
        drafts = self.drafts or ("",) * len(self.kinds)
        pieces = [piece for pair in zip(self.texts, (*drafts, ""), strict=True) for piece in pair]
        return InfillRequest(
            prefix="".join(pieces[: 2 * index + 1]),
            suffix="".join(pieces[2 * index + 2 :]),
            kind=self.kinds[index],
            language_id=self.language_id,
            max_tokens=self.max_tokens,
            seed=self.seed,
            max_steps=self.max_steps,
            deadline=self.deadline,
            draft=None if self.drafts is None else self.drafts[index],
            strength=self.strength,
        )


@dataclass(frozen=True, slots=True)
class DraftToken:
    """One hole slot of a draft: text, the model's probability for it, whether it was accepted."""

    text: str
    confidence: float  # 0 .. 1, at the step's temperature
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class DraftStep:
    """The hole after one denoising step, as a caller may show it.

    Attributes:
        step: counts up from 0.
        max_steps: the most there will be.
        text: the draft as it would be inserted if denoising ended here.
        tokens: every slot of the hole up to the draft's end mark.
        mean_entropy: nats, over the hole's slots.
    """

    step: int
    max_steps: int
    text: str
    tokens: tuple[DraftToken, ...]
    mean_entropy: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time of one fill, in milliseconds."""

    encode_ms: float  # tokenising and encoding the part of the context that was not cached
    denoise_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text for a hole; `confidence` is how likely it is to be exactly right, 0 .. 1."""

    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class InfillResult:
    """A filled hole.

    Attributes:
        text: what goes between prefix and suffix.
        token_ids: the fill's tokens, end mark excluded. Where a token was cut by the cursor, the
            first one begins before the hole; `text` does not.
        token_confidences: the decoder's probability of each token at the last step, 0 .. 1.
        token_ends: where in `text` each token ends, in characters.
        prefix_confidences: for each token, how likely the text up to its end is to be exactly
            right, 0 .. 1, falling. Where the checkpoint's encoder can read the fill, its chain of
            probabilities; else the product of `token_confidences`, which is too sure.
        confidence: how likely `text` is to be exactly right and complete; of a fill that ended
            because it was unsure, that it is the start of what is right.
        mean_entropy: nats, over the fill's tokens at the last step.
        decoder: which one it was.
        num_passes: forward passes over the canvas, or over the encoder left to right.
        num_cached_tokens: context tokens that did not have to be encoded again.
        num_context_tokens: context tokens in all.
        timings: wall time.
        stop_reason: why denoising ended.
        alternatives: the likeliest other texts, the best first, as many as were wanted at most.
            Of lines that were written left to right, whose length nobody told; else none.
    """

    text: str
    token_ids: tuple[int, ...]
    token_confidences: tuple[float, ...]
    token_ends: tuple[int, ...]
    prefix_confidences: tuple[float, ...]
    confidence: float
    mean_entropy: float
    decoder: Decoder
    num_passes: int
    num_cached_tokens: int
    num_context_tokens: int
    timings: Timings
    stop_reason: StopReason
    alternatives: tuple[Alternative, ...] = ()

    def with_instead(self, alternative: Alternative) -> InfillResult:
        """As if this were the fill; of its tokens nothing is known."""
        return dataclasses.replace(
            self,
            text=alternative.text,
            token_ids=(),
            token_confidences=(),
            token_ends=(len(alternative.text),),
            prefix_confidences=(alternative.confidence,),
            confidence=alternative.confidence,
        )


@dataclass(frozen=True, slots=True)
class JointResult:
    """Holes that were filled together.

    Attributes:
        texts: of each hole.
        confidences: of each hole, the product of its tokens' probabilities at the last step.
        num_passes: over the canvas that they share.
        timings: wall time of all.
        stop_reason: why denoising ended.
    """

    texts: tuple[str, ...]
    confidences: tuple[float, ...]
    num_passes: int
    timings: Timings
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on, for status lines and `dgemma-lsp doctor`.

    `confidence_threshold` is what its checkpoint asks of a text nobody asked for: starts of fills
    with at least this `prefix_confidences` are worth showing, 0 .. 1. `languages` are the LSP
    identifiers of those it was trained on; empty where it does not say. `quantization` names the
    formats of the weights that are held in few bits; None where none are. `fills_together` is
    whether `fill_together` can be asked, `recalls` whether `InfillRequest.nearby` is used. `loop`
    and `kernels` say which denoising loop runs and which ops run by their kernels, as far as that
    is known; on a GPU it is.
    """

    model: str
    parameters: int
    device: str
    dtype: str
    strategy: str
    confidence_threshold: float = 0.0
    languages: tuple[str, ...] = ()
    fills_together: bool = False
    recalls: bool = False
    quantization: str | None = None
    loop: str = ""
    kernels: str = ""


class CancellationToken:
    """Set by whoever asked, looked at before every denoising step by whoever works. Thread-safe."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if `cancel()` was called."""
        if self._event.is_set():
            raise Cancelled("the request was withdrawn")


OnStep = Callable[[DraftStep], None]
OnJointStep = Callable[[tuple[DraftStep, ...]], None]


class InfillEngine(Protocol):
    """Whatever fills holes: the real engine, a remote one, the scripted one of the tests.

    One fill at a time: a caller with several threads brings its own queue.
    """

    @property
    def info(self) -> EngineInfo: ...

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        """How many tokens `text` would be in the request's hole: what `num_tokens` counts."""
        ...

    def render(self, request: InfillRequest) -> str:
        """Exactly what the model would read, special tokens and canvas included, for a person."""
        ...

    def encode(self, request: InfillRequest, cancel: CancellationToken | None = None) -> int:
        """Encode a prompt ahead, so that the fill which comes finds it done.

        Returns:
            how many tokens were encoded; 0 also of an engine that cannot.
        Raises:
            Cancelled: soon after `cancel.cancel()`; what was encoded by then stays.
            RequestError: as `fill`.
        """
        ...

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> InfillResult:
        """Fill the hole.

        Args:
            request: the hole.
            on_step: called after every denoising step, on the thread that called `fill`.
            cancel: looked at before every pass.
        Returns:
            the fill; its text may be empty.
        Raises:
            Cancelled: within one pass of `cancel.cancel()`.
            RequestError: the request cannot be served (`ContextTooLong` among them).
        """
        ...

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> JointResult:
        """Fill several holes on one canvas.

        Args:
            request: the holes.
            on_step: called after every pass with each hole's draft.
            cancel: looked at before every pass.
        Raises:
            HolesTooFarApart: they do not fit on one canvas; ask for fewer at once.
            Cancelled, RequestError: as `fill`; the latter from every engine whose
                `info.fills_together` is False.
        """
        ...

    def close(self) -> None:
        """Let go of everything; no call may follow."""
        ...


class Role(str, Enum):
    """Who says something in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation that the model is to go on with.

    Attributes:
        turns: role and text of each, the oldest first; the last one is the user's.
        max_tokens: longest reply, >= 1.
        seed: of the noise.
        deadline: `time.monotonic()` seconds after which the draft at hand is returned, or None.

    Raises:
        RequestError: at construction, if there is no turn, or the last is not the user's.
    """

    turns: tuple[tuple[Role, str], ...]
    max_tokens: int = 256
    seed: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1][0] is not Role.USER:
            raise RequestError("the last turn of a conversation must be the user's")


@dataclass(frozen=True, slots=True)
class ClientFill:
    """The arguments of a `ManyClientEngine.fill`, for one of many."""

    client: str
    request: InfillRequest
    on_step: OnStep | None = None
    cancel: CancellationToken | None = None


OnFilled = Callable[[int, InfillResult | Exception], None]


class ManyClientEngine(InfillEngine, Protocol):
    """An engine that remembers the last prompt of each of many clients."""

    @property
    def most_at_once(self) -> int:
        """As many fills are faster with `fill_many` than one after the other; 1 for never."""
        ...

    def fill_many(self, calls: Sequence[ClientFill], on_done: OnFilled) -> None:
        """Fill holes of several clients at once, each as `fill` would alone, up to rounding.

        What ends one of them, its token, its deadline or an error, does not concern the others.

        Args:
            calls: each of another client.
            on_done: called with the number of each call as soon as it has its result, or what
                `fill` would have raised.
        """
        ...

    def chat(
        self,
        request: ChatRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        """Reply. Arguments and errors as for `fill`.

        A long reply is written canvas by canvas: the text before a step 0 does not change any more.

        Raises:
            RequestError: also if the model fills holes only.
        """
        ...

    def encode(
        self, request: InfillRequest, cancel: CancellationToken | None = None, *, client: str = ""
    ) -> int:
        """As `InfillEngine.encode`, into what is kept for `client`."""
        ...

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        """As `InfillEngine.fill`, beside what the last prompt of `client` left behind."""
        ...

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> JointResult:
        """As `InfillEngine.fill_together`, beside what the last prompt of `client` left behind."""
        ...

    def forget(self, client: str) -> None:
        """Free what is held for a client. Waits for a fill that runs."""
        ...

    def limit_caches(self, max_bytes: int) -> None:
        """Hold no more than this for all clients together, from the next fill on."""
        ...
