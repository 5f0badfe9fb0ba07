"""The ways to fill a hole that are compared, all with the same weights but for copying.

diffusion                 the product: the model decides the length
diffusion, length known   the same, told how many tokens belong into the hole
left to right             by the encoder, with the suffix in its prompt (fill in the middle)
left to right, no suffix  for blocks, told how many tokens; else it ends at the line's end
copy                      no model: what followed the last place that ended as the prefix does
auto                      what the checkpoint itself chooses
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from dgemma_engine.copying import copy_from_context
from dgemma_engine.types import Decoder, HoleKind, InfillEngine, InfillRequest, InfillResult

from ..document import DocumentSnapshot
from ..hole import Hole
from ..postprocess import postprocess


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method put into a hole.

    Attributes:
        text: as it came.
        shown: after the product's filters; None if they refused it.
        num_passes: of the model; 0 without one.
        milliseconds: wall time of the engine.
        result: of the engine, if there was one.
    """

    text: str
    shown: str | None
    num_passes: int
    milliseconds: float
    result: InfillResult | None = None


# The request as the server asks it, and the text that was there.
Method = Callable[[InfillEngine, InfillRequest, str], InfillRequest]


def _diffusion(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    return dataclasses.replace(request, decoder=Decoder.DIFFUSION)


def _length_known(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    length = engine.count_tokens(request, middle)
    return dataclasses.replace(
        request,
        decoder=Decoder.DIFFUSION,
        num_tokens=length,
        max_tokens=max(request.max_tokens, length),
    )


def _left_to_right(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    return dataclasses.replace(request, decoder=Decoder.LEFT_TO_RIGHT)


def _no_suffix(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    bare = dataclasses.replace(request, decoder=Decoder.LEFT_TO_RIGHT, suffix="")
    if request.kind is HoleKind.LINE:
        return bare
    length = engine.count_tokens(request, middle)
    return dataclasses.replace(bare, num_tokens=length, max_tokens=max(request.max_tokens, length))


def _auto(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    return request


_MODEL_METHODS: dict[str, Method] = {
    "diffusion": _diffusion,
    "diffusion, length known": _length_known,
    "left to right": _left_to_right,
    "left to right, no suffix": _no_suffix,
    "auto": _auto,
}
COPY = "copy"
METHODS = (*_MODEL_METHODS, COPY)


def answer(
    method: str,
    engine: InfillEngine,
    request: InfillRequest,
    snapshot: DocumentSnapshot,
    hole: Hole,
    middle: str,
) -> Answer:
    """Fill a hole.

    Args:
        method: of `METHODS`.
        request: as the server asks it.
        snapshot, hole: what the filters look at.
        middle: the text that was there; read by the methods that are told its length.
    """
    started = time.monotonic()
    result: InfillResult | None = None
    if method == COPY:
        text = copy_from_context(request)
    else:
        result = engine.fill(_MODEL_METHODS[method](engine, request, middle))
        text = result.text
    elapsed = (time.monotonic() - started) * 1000
    if result is not None:
        elapsed = result.timings.total_ms
    outcome = postprocess(snapshot, hole, text)
    return Answer(
        text,
        outcome if isinstance(outcome, str) else None,
        result.num_passes if result is not None else 0,
        elapsed,
        result,
    )
