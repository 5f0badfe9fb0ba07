"""What an engine is asked for one hole, request after request, until there is a text to offer.

The fill as it comes; where that is broken in its place another likely text, its broken part anew, a
start of it. Knows engines by their requests and results only and asks none itself: `fill.py` does
that for the server; the command line and `evaluation/` do it with engines of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import NamedTuple

from dgemma_engine.types import (
    Decoder,
    HoleKind,
    InfillRequest,
    InfillResult,
    StopReason,
    Timings,
)

from .document import DocumentSnapshot
from .hole import Hole
from .postprocess import (
    Rejection,
    RejectReason,
    broken_part,
    confident_starts,
    first_that_fits,
    num_errors_in_place,
    postprocess,
    sound_starts,
)

# Other texts that are tried in the place of one that is broken. Of 475 fills in the middle of lines
# in unseen packages 84 % parsed without, 92 % with 3 of them, 94 % with 7, which take 0.1 s more.
_NUM_TRIED = 7
# A fill that cannot be repaired is cut shorter so often at most.
_MOST_STARTS = 32


class Attempt(NamedTuple):
    """A request, the time that is left for it, and whether its drafts are worth a look."""

    request: InfillRequest
    seconds: float
    is_shown: bool = True


class Outcome(NamedTuple):
    """What to offer, different texts, the best first; or why nothing is.

    `result` is the one that it came from, with the passes and the time of all attempts.
    """

    offer: list[str] | Rejection
    result: InfillResult


Attempts = Generator[Attempt, InfillResult, Outcome]


async def make_attempts(
    attempts: Attempts, fill: Callable[[Attempt], Awaitable[InfillResult]]
) -> Outcome:
    """Make them one after the other, and wait for each."""
    attempt = next(attempts)
    while True:
        result = await fill(attempt)
        try:
            attempt = attempts.send(result)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def make_attempts_at_once(attempts: Attempts, fill: Callable[[Attempt], InfillResult]) -> Outcome:
    """As `make_attempts`, for who has an engine of his own."""
    attempt = next(attempts)
    while True:
        result = fill(attempt)
        try:
            attempt = attempts.send(result)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def attempts_at(
    snapshot: DocumentSnapshot,
    hole: Hole,
    request: InfillRequest,
    repairs: int,
    find_threshold: Callable[[], float] | None = None,
    seconds: float = math.inf,
) -> Attempts:
    """All attempts at a hole; is sent the result of each.

    Args:
        request: the first one.
        repairs: how often a broken part is filled anew.
        find_threshold: while typing, how sure the model has to be of a text, 0 .. 1; called when it
            has answered, for it may name that itself. None where the text was asked for.
        seconds: for all of them.
    """
    results: list[InfillResult] = []

    def ask(
        request: InfillRequest, *, is_shown: bool = True
    ) -> Generator[Attempt, InfillResult, InfillResult]:
        result = yield Attempt(request, seconds - _total(results).total_ms / 1000, is_shown)
        results.append(result)
        return result

    def ended(offer: list[str] | Rejection, result: InfillResult) -> Outcome:
        if isinstance(offer, Rejection) and result.stop_reason is StopReason.DEADLINE:
            detail = f"the time was over after {result.num_passes} passes; {offer.detail}"
            offer = Rejection(RejectReason.DEADLINE, detail)
        return Outcome(offer, _with_totals(result, results))

    # The fill.
    result = others = yield from ask(request)
    first = whole = result.text
    threshold = None if find_threshold is None else find_threshold()
    starts = [whole] if threshold is None else confident_starts(result, threshold)
    if isinstance(starts, Rejection):
        return ended(starts, result)
    text = first_that_fits(snapshot, hole, starts, whole)
    # Another one.
    num_errors = _num_errors(snapshot, hole, text)
    if num_errors and threshold is None and _may_have_others(request, result):
        others = yield from ask(
            dataclasses.replace(request, num_alternatives=_NUM_TRIED), is_shown=False
        )
    sound = _sound_alternatives(snapshot, hole, others)
    for other, instead in sound:
        if num_errors and (fewer := _num_errors(snapshot, hole, other)) < num_errors:
            text, result, num_errors = other, instead, fewer
    # Its broken part anew; where only a start is likely, that may not fit for want of the rest.
    is_whole = starts[0] == whole
    for number in range(1, repairs + 1):
        is_late = _total(results).total_ms / 1000 >= seconds
        if is_late or not is_whole or not _is_broken(text):
            break
        start, end = broken_part(snapshot, hole, whole)
        # The sound part stays: to the model it is text before and after a smaller hole.
        smaller = dataclasses.replace(
            request,
            prefix=request.prefix + whole[:start],
            suffix=whole[end:] + request.suffix,
            seed=request.seed + number,
            draft=None,
            num_alternatives=0,
        )
        result = yield from ask(smaller)
        if threshold is not None and result.confidence < threshold:
            break
        whole = whole[:start] + result.text + whole[end:]
        text = first_that_fits(snapshot, hole, [whole], whole)
    # A start of it.
    if _is_broken(text) and threshold is None and (shorter := sound_starts(first)[:_MOST_STARTS]):
        start_text = first_that_fits(snapshot, hole, shorter, first)
        text = start_text if isinstance(start_text, str) else text
    if isinstance(text, Rejection):
        return ended(text, result)
    return ended(list(dict.fromkeys((text, *(other for other, _ in sound)))), result)


def _may_have_others(request: InfillRequest, result: InfillResult) -> bool:
    """Whether the engine may know other likely texts, and was not asked for them."""
    is_line = request.kind is HoleKind.LINE and request.num_tokens is None
    is_new = request.num_alternatives == 0
    return is_new and is_line and result.decoder is Decoder.LEFT_TO_RIGHT


def _sound_alternatives(
    snapshot: DocumentSnapshot, hole: Hole, result: InfillResult
) -> list[tuple[str, InfillResult]]:
    """What there is to offer of a result's alternatives, each as if it were the fill."""
    outcomes = [
        (postprocess(snapshot, hole, other.text), result.with_instead(other))
        for other in result.alternatives
    ]
    return [(text, instead) for text, instead in outcomes if isinstance(text, str)]


def _num_errors(snapshot: DocumentSnapshot, hole: Hole, text: str | Rejection) -> float:
    """Of the grammar around the hole; more than any number where a text was refused."""
    if isinstance(text, str):
        return num_errors_in_place(snapshot, hole, text)
    return math.inf if _is_broken(text) or text.reason is RejectReason.DUPLICATES_SUFFIX else 0


def _is_broken(text: str | Rejection) -> bool:
    """Whether its broken part may be filled anew."""
    return isinstance(text, Rejection) and text.reason in (
        RejectReason.DOES_NOT_PARSE,
        RejectReason.UNBALANCED,
    )


def _with_totals(result: InfillResult, results: Sequence[InfillResult]) -> InfillResult:
    num_passes = sum(each.num_passes for each in results)
    return dataclasses.replace(result, num_passes=num_passes, timings=_total(results))


def _total(results: Sequence[InfillResult]) -> Timings:
    timings = [result.timings for result in results]
    return Timings(
        sum(each.encode_ms for each in timings),
        sum(each.denoise_ms for each in timings),
        sum(each.total_ms for each in timings),
    )
