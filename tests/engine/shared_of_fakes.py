"""A shared engine with a scripted model: `dgemma-engine serve` as far as its clients can tell.

    python shared_of_fakes.py ANSWER PASS_SECONDS serve [OPTIONS]

An ANSWER of one of these words does what it says instead: "die" ends with status 4 before anything
listens, "refuse" raises CheckpointError while loading, "raise" fails in every fill with an error
nobody foresaw. Else a fill is ANSWER, with the request's prefix for "{prefix}"; one that begins
with "slow" loads for half a second. A fill whose prefix is "stall" shows its first draft and then
nothing for a minute.
"""

from __future__ import annotations

import os
import sys
import time

from dgemma_engine import CancellationToken, CheckpointError, InfillRequest, InfillResult
from dgemma_engine import __main__ as command
from dgemma_engine.fake import FakeEngine
from dgemma_engine.types import DraftStep, OnStep


class StallingEngine(FakeEngine):
    """A `FakeEngine` that can be killed in mid-fill however late the test's turn comes."""

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        client: str = "",
    ) -> InfillResult:
        def show(step: DraftStep) -> None:
            if on_step is not None:
                on_step(step)
            if request.prefix == "stall":
                time.sleep(60.0)

        return super().fill(request, show, cancel, client=client)


def main(answer: str, pass_seconds: str, *arguments: str) -> None:
    if answer == "die":
        print("no room for the model")
        sys.stdout.flush()
        os._exit(4)

    def respond(request: InfillRequest) -> str:
        if answer == "raise":
            raise RuntimeError(request.prefix)
        if len(engine.requests) > 8:  # thousands of texts would look like a leak
            engine.requests.clear()
        return answer.replace("{prefix}", request.prefix)

    engine = StallingEngine(respond, num_passes=20, pass_seconds=float(pass_seconds))

    def load(model: str, device: str, dtype: str, quantization: str | None) -> FakeEngine:
        if answer == "refuse":
            raise CheckpointError("it has no config.json")
        if answer.startswith("slow"):
            time.sleep(0.5)
        return engine

    import dgemma_engine

    dgemma_engine.load_engine = load
    command.main(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
