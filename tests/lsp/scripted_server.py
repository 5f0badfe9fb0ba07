"""The product's own `serve`, with a scripted engine and a scripted start.

    python scripted_server.py [OPTIONS]

OPTIONS is a JSON object, see `main`. `fake_server.py` is for looking into the server; this one is
for how it starts, ends, and fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from dgemma_engine import CheckpointError, EngineUnavailable, InfillRequest, OutOfMemory
from dgemma_engine.fake import FakeEngine
from dgemma_lsp.scheduler import OnDeath
from dgemma_lsp.server import Transport, serve
from dgemma_lsp.settings import Settings


def main(
    answer: str = "answer",
    num_passes: int = 1,
    pass_seconds: float = 0.0,
    load_seconds: float = 0.0,
    models: tuple[str, ...] = ("default",),
    urls: tuple[str, ...] = ("",),
    quantizations: tuple[str, ...] = ("none",),
    fill_error: str | None = None,
    torch_report: str | None = None,
    transport: Transport = "stdio",
    port: int = 0,
) -> int:
    """Serve.

    Args:
        models: that can be loaded; the others raise CheckpointError.
        urls: of `engine_url`, where an engine is; the others raise EngineUnavailable.
        quantizations: that fit; the others raise OutOfMemory.
        fill_error: every fill raises a RuntimeError with this text.
        torch_report: file that says at the end whether torch was imported.
    """

    def respond(request: InfillRequest) -> str:
        print("a library talks")
        os.write(1, b"and so does C code\n")
        os.system("echo and a child process; cat")  # which would also eat the client's messages
        if fill_error is not None:
            raise RuntimeError(fill_error)
        return answer

    def build_engine(settings: Settings, on_death: OnDeath) -> FakeEngine:
        time.sleep(load_seconds)
        if settings.model not in models:
            raise CheckpointError(f"{settings.model} is not a checkpoint; choose another model")
        if settings.engine_url not in urls:
            raise EngineUnavailable(f"there is no engine at {settings.engine_url!r}")
        if settings.quantization not in quantizations:
            raise OutOfMemory(f"{settings.quantization} does not fit; what would fit: int4")
        return FakeEngine(respond, num_passes=num_passes, pass_seconds=pass_seconds)

    status = serve(build_engine, transport=transport, port=port)
    if torch_report is not None:
        Path(torch_report).write_text(str("torch" in sys.modules), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1]) if sys.argv[1:] else {}))
