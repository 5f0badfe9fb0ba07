"""The real server over the real stdio, with a scripted engine, for tests that need exact text.

    python fake_server.py [ANSWER [NUM_PASSES [PASS_SECONDS [MOST_TOGETHER [ALTERNATIVES]]]]]

Every fill is ANSWER, in which {seed} is the request's and {draft} what it began with; the words of
ALTERNATIVES are what else the engine knows. One request more than the product has: `test/state`
tells a text, what the engine was asked, and what is held: messages being worked on, tasks, threads,
file descriptors, KiB of memory.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from typing import Any

from dgemma_engine import InfillRequest
from dgemma_engine.fake import FakeEngine
from dgemma_lsp import transport
from dgemma_lsp.scheduler import EngineState
from dgemma_lsp.server import build_server

_KEPT, _DROPPED = 4, InfillRequest("", "")


def main(
    answer: str = "answer",
    num_passes: str = "2",
    pass_seconds: str = "0",
    most_together: str = "0",
    alternatives: str = "",
) -> int:
    def respond(request: InfillRequest) -> str:
        if len(engine.requests) > _KEPT:  # thousands of texts would look like a leak
            engine.requests[-_KEPT - 1] = _DROPPED
        return answer.replace("{seed}", str(request.seed)).replace("{draft}", str(request.draft))

    engine = FakeEngine(
        respond,
        num_passes=int(num_passes),
        pass_seconds=float(pass_seconds),
        most_together=int(most_together),
        alternatives=alternatives.split(),
    )
    server = build_server(lambda settings, on_death: engine)

    @server.feature("test/state")
    def state(params: Any) -> dict[str, Any]:
        uri = getattr(params, "uri", None)
        return {
            "text": server.snapshot(uri).text if uri else None,
            "is_ready": server.filler.scheduler.status.state is EngineState.READY,
            "num_requests": len(engine.requests),
            "num_cancelled": engine.num_cancelled,
            "num_futures": len(server.protocol._request_futures),
            "num_tasks": len(asyncio.all_tasks()),
            "num_threads": threading.active_count(),
            "num_files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
            "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "together": [list(request.texts) for request in engine.joint_requests],
            "prefixes": [request.prefix for request in engine.requests[-_KEPT:]],
            "encoded": [request.prefix for request in engine.encoded[-_KEPT:]],
        }

    status = transport.run_stdio(server.protocol)
    server.filler.scheduler.close()
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
