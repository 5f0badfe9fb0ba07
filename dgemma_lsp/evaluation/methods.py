"""The ways to fill a hole that are compared, all with the same weights but for copying.

diffusion                 the product: the model decides the length
diffusion, length known   the same, told how many tokens belong into the hole
left to right             by the encoder, with the suffix in its prompt (fill in the middle)
left to right, no suffix  for blocks, told how many tokens; else it ends at the line's end
copy                      no model: what followed the last place that ended as the prefix does
auto                      what the product offers who asks for a fill
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

from ..attempts import attempts_at, make_attempts_at_once
from ..document import DocumentSnapshot
from ..hole import Hole
from ..nearby import rest_of_document
from ..postprocess import Rejection, postprocess
from ..settings import Settings


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method put into a hole.

    Attributes:
        text: as it came; of `auto` what is offered, if anything is.
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
# All that the server tries for a text that was asked for is tried; its answer is what is offered.
_AS_PRODUCT = ("auto", "auto, this file alone", "auto, nothing recalled")
COPY = "copy"
METHODS = (*_MODEL_METHODS, COPY)
WHILE_TYPING = "while typing"
# The lowest threshold that is looked at: of what is less likely too little is right.
LEAST_CONFIDENCE = 0.2


def answer(method: str, engine: InfillEngine, question: Question) -> Answer:
    """Fill a hole by a method of `METHODS`, or `WHILE_TYPING`."""
    snapshot, hole = question.snapshot, question.hole
    if method == COPY:
        started = time.monotonic()
        text = copy_from_context(question.request)
        elapsed = (time.monotonic() - started) * 1000
        outcome = postprocess(snapshot, hole, text)
        return Answer(text, outcome if isinstance(outcome, str) else None, 0, elapsed)
    ask = _while_typing if method == WHILE_TYPING else _MODEL_METHODS[method]
    request = ask(engine, question)
    shown: str | None = None
    if method in _AS_PRODUCT:
        attempts = attempts_at(snapshot, hole, request, Settings().repairs)
        offer, result = make_attempts_at_once(
            attempts, lambda attempt: engine.fill(attempt.request)
        )
        shown = None if isinstance(offer, Rejection) else offer[0]
        text = result.text if shown is None else shown
    else:
        result = engine.fill(request)
        text = result.text
        outcome = postprocess(snapshot, hole, text)
        shown = outcome if isinstance(outcome, str) else None
    return Answer(text, shown, result.num_passes, result.timings.total_ms, result)
