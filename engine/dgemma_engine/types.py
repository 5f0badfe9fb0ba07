"""What goes into the engine and what comes out, in plain Python.

Standard library only: the language server imports this module before torch is loaded.
It knows text, not Positions, files or editors. Read `infill.py` next: what a request becomes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
        seed: of the noise; the same request and seed give the same fill on the same machine.
        max_steps: denoising steps at most; None takes the checkpoint's own number.
        deadline: `time.monotonic()` seconds after which the draft at hand is returned, or None.
        draft: a text for the hole that is revised, by diffusion: what the model finds least likely
            in it becomes noise and is denoised again. None begins with nothing but noise.
        strength: share of the draft's tokens that become noise, above 0 and at most 1.

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
    draft: str | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.num_tokens is not None and not 1 <= self.num_tokens <= self.max_tokens:
            raise RequestError(
                f"num_tokens must be in 1 .. max_tokens ({self.max_tokens}), got {self.num_tokens}"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise RequestError(f"max_steps must be at least 1, got {self.max_steps}")
        if not 0 < self.strength <= 1:
            raise RequestError(f"strength must be above 0 and at most 1, got {self.strength}")
        if self.draft is not None and self.decoder is Decoder.LEFT_TO_RIGHT:
            raise RequestError("a draft can be revised by diffusion only, not left to right")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed must be in 0 .. 2**63 - 1, got {self.seed}")


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
        confidence: how likely `text` is to be exactly right and complete.
        mean_entropy: nats, over the fill's tokens at the last step.
        decoder: which one it was.
        num_passes: forward passes over the canvas, or over the encoder left to right.
        num_cached_tokens: context tokens that did not have to be encoded again.
        num_context_tokens: context tokens in all.
        timings: wall time.
        stop_reason: why denoising ended.
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


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on, for status lines and `dgemma-lsp doctor`.

    `confidence_threshold` is what its checkpoint asks of a text nobody asked for: starts of fills
    with at least this `prefix_confidences` are worth showing, 0 .. 1. `languages` are the LSP
    identifiers of those it was trained on; empty where it does not say. `quantization` names the
    formats of the weights that are held in few bits; None where none are.
    """

    model: str
    parameters: int
    device: str
    dtype: str
    strategy: str
    confidence_threshold: float = 0.0
    languages: tuple[str, ...] = ()
    quantization: str | None = None


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

    def close(self) -> None:
        """Let go of everything; no call may follow."""
        ...
