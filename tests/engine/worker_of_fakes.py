"""The far end of an `EngineProcess` with a scripted engine.

    python worker_of_fakes.py ANSWER DEVICE DTYPE QUANTIZATION

An ANSWER of one of these words does what it says instead: in the middle of a fill "exit" ends with
status 3, "kill" is SIGKILL, "raise" an error nobody foresaw; while loading, "die" ends and "refuse"
raises CheckpointError.
"""

from __future__ import annotations

import os
import signal

from dgemma_engine import CheckpointError, InfillRequest
from dgemma_engine.fake import FakeEngine
from dgemma_engine.worker import serve


def load(answer: str, device: str, dtype: str, quantization: str | None) -> FakeEngine:
    if answer == "die":
        os._exit(4)
    if answer == "refuse":
        raise CheckpointError("it has no config.json")

    def respond(request: InfillRequest) -> str:
        print("a library talks")
        os.system("cat")  # which would eat what is asked next
        if answer == "exit":
            os._exit(3)
        if answer == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if answer == "raise":
            raise RuntimeError(request.prefix)
        return answer

    return FakeEngine(respond, num_passes=20, pass_seconds=0.02)


if __name__ == "__main__":
    import sys

    serve(load, *sys.argv[1:])
