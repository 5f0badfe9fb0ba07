"""The real server over the real stdio, with a scripted engine, for tests that need exact text.

    python fake_server.py [ANSWER [NUM_PASSES [PASS_SECONDS]]]

Every fill is ANSWER. One request more than the product has: `test/state` tells the text of a
document, what the engine was asked, and how many messages are still being worked on.
"""

from __future__ import annotations

import sys
from typing import Any

from dgemma_engine.fake import FakeEngine
from dgemma_lsp import transport
from dgemma_lsp.server import build_server


def main(answer: str = "answer", num_passes: str = "2", pass_seconds: str = "0") -> int:
    engine = FakeEngine(
        lambda request: answer, num_passes=int(num_passes), pass_seconds=float(pass_seconds)
    )
    server = build_server(lambda settings, on_death: engine)

    @server.feature("test/state")
    def state(params: Any) -> dict[str, Any]:
        uri = getattr(params, "uri", None)
        return {
            "text": server.snapshot(uri).text if uri else None,
            "num_requests": len(engine.requests),
            "num_cancelled": engine.num_cancelled,
            "num_futures": len(server.protocol._request_futures),
        }

    status = transport.run_stdio(server.protocol)
    server.filler.scheduler.close()
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
