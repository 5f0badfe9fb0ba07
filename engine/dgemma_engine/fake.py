"""A scripted engine: the same protocol, no model, no torch.

For tests of whatever sits above the engine, where the text of a fill must be exact.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence

from .errors import HolesTooFarApart
from .lockstep import run_in_step
from .types import (
    Alternative,
    CancellationToken,
    ChatRequest,
    ClientFill,
    Decoder,
    DraftStep,
    DraftToken,
    EngineInfo,
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


class FakeEngine:
    """Answers with `answer(request)` after `num_passes` passes of `pass_seconds` each.

    Claims `confidence` for all of its text. Knows `alternatives` to every line, half as likely
    each, if there are any, as a decoder from left to right does. Fills up to `most_together` holes
    together, if that is more than one. Keeps every request it was given in `requests` and
    `joint_requests`, what it was to encode ahead in `encoded`, how many fills were cancelled in
    `num_cancelled`, which clients left in `forgotten`, and those of each `fill_many` in `batches`;
    a pass of several fills takes as long as one.
    """

    def __init__(
        self,
        answer: Callable[[InfillRequest], str],
        *,
        num_passes: int = 4,
        pass_seconds: float = 0.0,
        confidence: float = 1.0,
        alternatives: Sequence[str] = (),
        most_together: int = 0,
        most_at_once: int = 1,
    ) -> None:
        self._answer = answer
        self._num_passes = num_passes
        self._pass_seconds = pass_seconds
        self._confidence = confidence
        self._alternatives = alternatives
        self._most_together = most_together
        self.most_at_once = most_at_once
        self.requests: list[InfillRequest] = []
        self.joint_requests: list[JointRequest] = []
        self.num_cancelled = 0
        self.encoded: list[InfillRequest] = []
        self.forgotten: list[str] = []
        self.batches: list[tuple[str, ...]] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "fake",
            parameters=0,
            device="none",
            dtype="none",
            strategy="scripted",
            fills_together=self._most_together > 1,
        )

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        return max(1, len(text.split()))

    def render(self, request: InfillRequest) -> str:
        return f"{request.prefix}<hole>{request.suffix}"

    def close(self) -> None:
        pass

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> JointResult:
        """Each hole's answer; its pieces of text are as long as they are."""
        self.joint_requests.append(request)
        if len(request.kinds) > self._most_together:
            raise HolesTooFarApart(f"{len(request.kinds)} holes do not fit; ask for fewer at once")
        steps: list[DraftStep] = []
        results = []
        for index in range(len(request.kinds)):
            results.append(self.fill(request.hole(index), steps.append, cancel))
        if on_step is not None:
            for step in range(self._num_passes):
                on_step(tuple(steps[step :: self._num_passes]))
        return JointResult(
            tuple(result.text for result in results),
            tuple(result.confidence for result in results),
            results[0].num_passes,
            results[0].timings,
            results[0].stop_reason,
        )

    def chat(
        self,
        request: ChatRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        """A reply in two canvases, each of all passes: the answer to the last turn, twice."""
        last = InfillRequest(request.turns[-1][1], "", deadline=request.deadline)
        first = self.fill(last, on_step, cancel)

        def add(step: DraftStep) -> None:
            if on_step is not None:
                on_step(dataclasses.replace(step, text=first.text + step.text))

        second = self.fill(last, add, cancel)
        return dataclasses.replace(second, text=first.text + second.text)

    def forget(self, client: str) -> None:
        self.forgotten.append(client)

    def limit_caches(self, max_bytes: int) -> None:
        pass

    def encode(
        self, request: InfillRequest, cancel: CancellationToken | None = None, *, client: str = ""
    ) -> int:
        """As long as a fill; cancelled between its passes."""
        self.encoded.append(request)
        for _ in range(self._num_passes):
            if cancel is not None:
                cancel.raise_if_cancelled()
            time.sleep(self._pass_seconds)
        return len(request.prefix.split())

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        fill = self._passes(request, on_step, cancel)
        while True:
            try:
                next(fill)
            except StopIteration as end:
                result: InfillResult = end.value
                return result
            time.sleep(self._pass_seconds)

    def fill_many(self, calls: Sequence[ClientFill], on_done: OnFilled) -> None:
        self.batches.append(tuple(call.client for call in calls))

        def answer(passes: list[bool]) -> list[bool]:
            time.sleep(self._pass_seconds)
            return passes

        fills = [self._passes(call.request, call.on_step, call.cancel) for call in calls]
        run_in_step(fills, answer, on_done)

    def _passes(
        self, request: InfillRequest, on_step: OnStep | None, cancel: CancellationToken | None
    ) -> Generator[bool, bool | None, InfillResult]:
        """A fill that yields before each pass."""
        self.requests.append(request)
        text = self._answer(request)
        start = time.monotonic()
        num_passes, stop_reason = self._num_passes, StopReason.CONVERGED
        for step in range(self._num_passes):
            if cancel is not None and cancel.is_cancelled:
                self.num_cancelled += 1
                cancel.raise_if_cancelled()
            if request.deadline is not None and time.monotonic() > request.deadline:
                num_passes, stop_reason = step, StopReason.DEADLINE
                break
            yield True
            if on_step is not None:
                tokens = (DraftToken(text, confidence=1.0, is_accepted=True),)
                on_step(DraftStep(step, self._num_passes, text, tokens, mean_entropy=0.0))
        elapsed_ms = (time.monotonic() - start) * 1000
        others = self._alternatives[: request.num_alternatives]
        return InfillResult(
            text=text,
            token_ids=(),
            token_confidences=(),
            token_ends=(len(text),),
            prefix_confidences=(self._confidence,),
            confidence=self._confidence,
            mean_entropy=0.0,
            decoder=Decoder.LEFT_TO_RIGHT if self._alternatives else Decoder.DIFFUSION,
            num_passes=num_passes,
            num_cached_tokens=0,
            num_context_tokens=0,
            timings=Timings(encode_ms=0.0, denoise_ms=elapsed_ms, total_ms=elapsed_ms),
            stop_reason=stop_reason,
            alternatives=tuple(Alternative(other, self._confidence / 2) for other in others),
        )
