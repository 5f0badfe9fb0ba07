"""The ways to fill a hole that are compared, all with the same weights but for copying.

diffusion                 the product: the model decides the length
diffusion, length known   the same, told how many tokens belong into the hole
left to right             by the encoder, with the suffix in its prompt (fill in the middle)
left to right, no suffix  for blocks, told how many tokens; else it ends at the line's end
copy                      no model: what followed the last place that ended as the prefix does
auto                      what the checkpoint itself chooses
auto, this file alone     the same, without the project's other files to recall from
auto, nothing recalled    the same, by the model alone
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
from ..nearby import rest_of_document
from ..postprocess import postprocess
from ..settings import Settings


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


def _nothing_recalled(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    return dataclasses.replace(request, recall=False)


FILE_ALONE = "auto, this file alone"
_MODEL_METHODS: dict[str, Method] = {
    "diffusion": _diffusion,
    "diffusion, length known": _length_known,
    "left to right": _left_to_right,
    "left to right, no suffix": _no_suffix,
    "auto": _auto,
    FILE_ALONE: _auto,
    "auto, nothing recalled": _nothing_recalled,
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
        if method == FILE_ALONE:
            nearby = rest_of_document(snapshot, hole, Settings())
            request = dataclasses.replace(request, nearby=nearby)
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
