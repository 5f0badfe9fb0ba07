"""A function of buffers that stay where they are, replayed as a CUDA graph.

The first call runs it as it is, which also compiles its kernels; the second captures it; later ones
replay. Where there is no CUDA, or a capture fails, it simply runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

_log = logging.getLogger(__name__)

Run = Callable[[], None]
Capture = Callable[[Run], Run]


def capture_for(device: torch.device) -> Capture | None:
    """How functions are captured on a device; None where nothing can be."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()  # one for all: no two run at once

    def capture(run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Other threads of a server may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        return graph.replay

    return capture


class Replayed:
    """One function, called again and again.

    Args:
        name: for the log.
        run: reads and writes the same memory at every call, and asks the host nothing.
        capture: see `capture_for`.
    """

    def __init__(self, name: str, run: Run, capture: Capture | None) -> None:
        self._name = name
        self._run = run
        self._capture = capture
        self._replay: Run | None = None
        self._has_run = False

    @property
    def is_captured(self) -> bool:
        return self._replay is not None

    def __call__(self) -> None:
        if self._replay is None and self._has_run and self._capture is not None:
            try:
                self._replay = self._capture(self._run)
            except Exception as error:
                self._capture = None
                _log.warning(
                    "%s runs without a CUDA graph: %s: %s", self._name, type(error).__name__, error
                )
        (self._replay or self._run)()
        self._has_run = True
