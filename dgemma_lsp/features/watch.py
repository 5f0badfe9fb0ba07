"""A fill as it forms: `dgemma/canvas` for clients that opted in, progress for what was asked for.

The progress names the pass, and can be cancelled where the client shows a button for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from dgemma_engine.types import DraftStep, OnStep

from ..document import DocumentSnapshot
from ..hole import Hole
from ..protocol import CANVAS, CanvasParams

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)
# Nobody reads faster.
_REPORT_SECONDS = 0.1


class Watch:
    """Where the steps of one or more fills are shown.

    Args:
        token: of a progress that has begun; None shows none.
    """

    def __init__(self, server: DGemmaServer, token: types.ProgressToken | None = None) -> None:
        self._server = server
        self._token = token
        self._label = ""
        self._reported = 0.0

    def name(self, label: str) -> None:
        """Say which of several fills is next, as "2 of 3"."""
        self._label = f"{label}: " if label else ""

    @asynccontextmanager
    async def of(self, snapshot: DocumentSnapshot, hole: Hole) -> AsyncIterator[OnStep | None]:
        """Show one fill: gives what to call with each step, None if nobody looks."""
        server, number = self._server, next(_numbers)
        has_canvas = server.opt_ins.canvas
        if not has_canvas and self._token is None:
            yield None
            return
        replaced = snapshot.range_at(hole.start, hole.end, server.encoding)
        last: DraftStep | None = None

        def send(step: DraftStep | None, *, done: bool) -> None:
            params = CanvasParams(snapshot.uri, snapshot.version, number, replaced, step, done)
            server.protocol.notify(CANVAS, params.to_json())

        def show(step: DraftStep) -> None:
            nonlocal last
            last = step
            if has_canvas:
                send(step, done=False)
            now = time.monotonic()
            if self._token is not None and now - self._reported >= _REPORT_SECONDS:
                self._reported = now
                percent = min(100, 100 * (step.step + 1) // max(1, step.max_steps))
                message = f"{self._label}pass {step.step + 1} of at most {step.max_steps}"
                server.work_done_progress.report(
                    self._token, types.WorkDoneProgressReport(message=message, percentage=percent)
                )

        try:
            yield show
        finally:
            if has_canvas:
                send(last, done=True)


@asynccontextmanager
async def watching(
    server: DGemmaServer, title: str, token: types.ProgressToken | None
) -> AsyncIterator[Watch]:
    """Show what was asked for, with a progress if the client gave a token or takes one of ours.

    Args:
        title: of the progress.
        token: the request's `workDoneToken`.
    """
    token = token if token is not None else await _made_token(server)
    if token is None:
        yield Watch(server)
        return
    task, progress = asyncio.current_task(), server.work_done_progress
    begin = types.WorkDoneProgressBegin(title=title, cancellable=True, percentage=0)
    progress.begin(token, begin)
    assert task is not None
    loop = asyncio.get_running_loop()

    def withdrawn(future: object) -> None:
        if progress.tokens.get(token) is future:  # not taken away below
            loop.call_soon(task.cancel)

    progress.tokens[token].add_done_callback(withdrawn)
    try:
        yield Watch(server, token)
    finally:
        progress.tokens.pop(token, None)
        progress.end(token, types.WorkDoneProgressEnd())


async def _made_token(server: DGemmaServer) -> types.ProgressToken | None:
    window = server.client_capabilities.window
    if not (window and window.work_done_progress):
        return None
    token = str(uuid4())
    try:
        await server.work_done_progress.create_async(token)
    except JsonRpcException as error:
        logger.warning("the client takes no progress: %s", error)
        return None
    return token
