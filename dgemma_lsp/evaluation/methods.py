"""The ways to fill a hole that are compared, all with the same weights but for copying.

diffusion                 the product: the model decides the length
diffusion, length known   the same, told how many tokens belong into the hole
left to right             by the encoder, with the suffix in its prompt (fill in the middle)
left to right, no suffix  for blocks, told how many tokens; else it ends at the line's end
copy                      no model: what followed the last place that ended as the prefix does
auto                      what the checkpoint itself chooses
auto, this file alone     the same, without the project's other files to recall from
auto, nothing recalled    the same, by the model alone

`WHILE_TYPING` is `auto` as the server asks unasked: what is too unsure to be shown is not written.
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


@dataclass(frozen=True, slots=True)
class Question:
    """A hole of which the answer is known.

    Attributes:
        request: as the server asks it.
        snapshot, hole: where it is.
        middle: the text that was there.
    """

    request: InfillRequest
    snapshot: DocumentSnapshot
    hole: Hole
    middle: str


# From a question, for an engine, to what the engine is asked.
Method = Callable[[InfillEngine, Question], InfillRequest]


def _diffusion(engine: InfillEngine, question: Question) -> InfillRequest:
    return dataclasses.replace(question.request, decoder=Decoder.DIFFUSION)


def _length_known(engine: InfillEngine, question: Question) -> InfillRequest:
    return _told_the_length(engine, _diffusion(engine, question), question.middle)


def _left_to_right(engine: InfillEngine, question: Question) -> InfillRequest:
    return dataclasses.replace(question.request, decoder=Decoder.LEFT_TO_RIGHT)


def _no_suffix(engine: InfillEngine, question: Question) -> InfillRequest:
    bare = dataclasses.replace(_left_to_right(engine, question), suffix="")
    if bare.kind is HoleKind.LINE:
        return bare
    return _told_the_length(engine, bare, question.middle)


def _told_the_length(engine: InfillEngine, request: InfillRequest, middle: str) -> InfillRequest:
    length = engine.count_tokens(request, middle)
    most = max(request.max_tokens, length)
    return dataclasses.replace(request, num_tokens=length, max_tokens=most)


def _auto(engine: InfillEngine, question: Question) -> InfillRequest:
    return question.request


def _file_alone(engine: InfillEngine, question: Question) -> InfillRequest:
    nearby = rest_of_document(question.snapshot, question.hole, Settings())
    return dataclasses.replace(question.request, nearby=nearby)


def _nothing_recalled(engine: InfillEngine, question: Question) -> InfillRequest:
    return dataclasses.replace(question.request, recall=False)


def _while_typing(engine: InfillEngine, question: Question) -> InfillRequest:
    return dataclasses.replace(question.request, least_confidence=LEAST_CONFIDENCE)


_MODEL_METHODS: dict[str, Method] = {
    "diffusion": _diffusion,
    "diffusion, length known": _length_known,
    "left to right": _left_to_right,
    "left to right, no suffix": _no_suffix,
    "auto": _auto,
    "auto, this file alone": _file_alone,
    "auto, nothing recalled": _nothing_recalled,
}
COPY = "copy"
METHODS = (*_MODEL_METHODS, COPY)
WHILE_TYPING = "while typing"
# The lowest threshold that is looked at: of what is less likely too little is right.
LEAST_CONFIDENCE = 0.2


def answer(method: str, engine: InfillEngine, question: Question) -> Answer:
    """Fill a hole by a method of `METHODS`, or `WHILE_TYPING`."""
    started = time.monotonic()
    result: InfillResult | None = None
    if method == COPY:
        text = copy_from_context(question.request)
    else:
        ask = _while_typing if method == WHILE_TYPING else _MODEL_METHODS[method]
        result = engine.fill(ask(engine, question))
        text = result.text
    elapsed = (time.monotonic() - started) * 1000
    if result is not None:
        elapsed = result.timings.total_ms
    outcome = postprocess(question.snapshot, question.hole, text)
    return Answer(
        text,
        outcome if isinstance(outcome, str) else None,
        result.num_passes if result is not None else 0,
        elapsed,
        result,
    )
