"""A fill as it forms: `dgemma/canvas` for clients that opted in, progress for what was asked for.

The progress names the pass, and can be cancelled where the client shows a button for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
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
        title: of a progress that may begin; empty for none.
    """

    def __init__(self, server: DGemmaServer, title: str = "") -> None:
        self._server = server
        self._title = title
        self._token: types.ProgressToken | None = None
        self._label = ""
        self._reported = 0.0
        self._cancel: Callable[[], object] = lambda: None

    def begin(self, token: types.ProgressToken) -> None:
        """Show a progress from now on; its being cancelled cancels the present task."""
        progress, loop = self._server.work_done_progress, asyncio.get_running_loop()
        begin = types.WorkDoneProgressBegin(title=self._title, cancellable=True, percentage=0)
        progress.begin(token, begin)
        self._token = token

        def withdrawn(future: object) -> None:
            if progress.tokens.get(token) is future:  # not taken away by `end`
                loop.call_soon(self._cancel)

        progress.tokens[token].add_done_callback(withdrawn)

    def end(self) -> None:
        """The progress is over, if there was one."""
        if self._token is not None:
            self._server.work_done_progress.tokens.pop(self._token, None)
            self._server.work_done_progress.end(self._token, types.WorkDoneProgressEnd())

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """What to do when the progress is cancelled."""
        self._cancel = cancel

    def name(self, label: str) -> None:
        """Say which of several fills is next, as "2 of 3"."""
        self._label = f"{label}: " if label else ""

    @asynccontextmanager
    async def of(self, snapshot: DocumentSnapshot, hole: Hole) -> AsyncIterator[OnStep | None]:
        """Show one fill: gives what to call with each step, None if nobody looks."""
        server, number = self._server, next(_numbers)
        has_canvas = server.opt_ins.canvas
        if not has_canvas and not self._title:
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

    The fill does not wait for ours: some clients answer nothing before they have the fill.

    Args:
        title: of the progress.
        token: the request's `workDoneToken`.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = Watch(server, title)
    watch.on_cancel(task.cancel)
    making: asyncio.Task[None] | None = None
    if token is not None:
        watch.begin(token)
    elif (window := server.client_capabilities.window) and window.work_done_progress:
        making = asyncio.create_task(_begin_with_ours(server, watch))
    try:
        yield watch
    finally:
        if making is not None:
            making.cancel()
        watch.end()


async def _begin_with_ours(server: DGemmaServer, watch: Watch) -> None:
    token = str(uuid4())
    try:
        await server.work_done_progress.create_async(token)
    except JsonRpcException as error:
        logger.warning("the client takes no progress: %s", error)
    else:
        watch.begin(token)
