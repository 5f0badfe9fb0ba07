"""One engine, one worker thread, and a queue before it.

Handlers await `fill`; the newest request of a document takes the place of the one before. The
engine is built in the worker, so the event loop never waits for torch. It knows no LSP and no
documents but by name; `fill.py` calls it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from dgemma_engine.errors import Cancelled, DGemmaError, EngineUnavailable
from dgemma_engine.types import (
    CancellationToken,
    EngineInfo,
    InfillEngine,
    InfillRequest,
    InfillResult,
    OnStep,
)

logger = logging.getLogger(__name__)

BuildEngine = Callable[[], InfillEngine]


class EngineLoadFailed(EngineUnavailable):
    """The engine could not be built; the message says why and what to do."""


@dataclass(eq=False, slots=True)
class _Job:
    """Work for the engine, and where its outcome goes."""

    work: Callable[[InfillEngine, CancellationToken], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    token: CancellationToken = field(default_factory=CancellationToken)

    def withdraw(self, reason: str) -> None:
        """Answer with Cancelled now; the worker follows within one pass. On the loop's thread."""
        self.token.cancel()
        if not self.future.done():
            self.future.set_exception(Cancelled(reason))

    def settle(self, outcome: Any, error: Exception | None = None) -> None:
        """Hand over the outcome. On the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self._settle, outcome, error)
        except RuntimeError:
            logger.debug("the event loop was closed before a fill ended")

    def _settle(self, outcome: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome)


class FillScheduler:
    """Runs fills one after another on a thread of its own.

    All methods are for the event loop's thread.

    Args:
        build_engine: called in the worker before the first job. If it raises, every job fails with
            `EngineLoadFailed` until `use` brings another.

    Attributes:
        info: of the engine that is loaded; None before.
    """

    def __init__(self, build_engine: BuildEngine) -> None:
        self._build_engine = build_engine
        self._engine: InfillEngine | None = None
        self.info: EngineInfo | None = None
        self._load_failure: str | None = None
        self._queue: queue.SimpleQueue[_Job | BuildEngine | None] = queue.SimpleQueue()
        self._live: set[_Job] = set()
        self._newest: dict[str, _Job] = {}
        self._thread: threading.Thread | None = None

    async def fill(
        self,
        request: InfillRequest,
        *,
        document: str | None = None,
        time_limit: float | None = None,
        on_step: OnStep | None = None,
    ) -> InfillResult:
        """Fill a hole when its turn comes.

        Args:
            document: a later call with the same name withdraws this one; None for a fill that only
                its caller may withdraw.
            time_limit: seconds from the moment the engine begins; then its draft is taken.
            on_step: called on the worker's thread.
        Raises:
            Cancelled: a newer request of the document took its place.
            EngineLoadFailed: there is no engine.
            DGemmaError: as the engine raises.
        """

        def work(engine: InfillEngine, token: CancellationToken) -> InfillResult:
            limited = request
            if time_limit is not None:
                limited = replace(request, deadline=time.monotonic() + time_limit)
            return engine.fill(limited, on_step, token)

        job = self._submit(work)
        if document is not None:
            if (older := self._newest.get(document)) is not None:
                older.withdraw("a newer request of this document took its place")
            self._newest[document] = job
        try:
            result: InfillResult = await self._outcome(job)
        finally:
            if document is not None and self._newest.get(document) is job:
                del self._newest[document]
        return result

    async def load(self) -> EngineInfo:
        """Build the engine if it is not there yet.

        Raises:
            EngineLoadFailed: it cannot be built.
        """
        info: EngineInfo = await self._outcome(self._submit(lambda engine, _: engine.info))
        return info

    def use(self, build_engine: BuildEngine) -> None:
        """Let the engine go and build another one for the next job."""
        self._queue.put(build_engine)

    def close(self, timeout: float = 1.0) -> bool:
        """Withdraw everything and end the worker.

        Returns:
            False if the worker is still busy after `timeout` seconds, as while a checkpoint loads.
        """
        for job in tuple(self._live):
            job.token.cancel()
        self._queue.put(None)
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _submit(self, work: Callable[[InfillEngine, CancellationToken], Any]) -> _Job:
        loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future())
        self._live.add(job)
        if self._thread is None:
            # A daemon: a worker in the middle of loading does not keep the process.
            self._thread = threading.Thread(target=self._run, name="dgemma-engine", daemon=True)
            self._thread.start()
        self._queue.put(job)
        return job

    async def _outcome(self, job: _Job) -> Any:
        try:
            return await job.future
        except asyncio.CancelledError:
            job.token.cancel()
            raise
        finally:
            self._live.discard(job)

    # What follows runs on the worker's thread; it alone touches the engine.

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if not isinstance(item, _Job):
                self._build_engine, self._engine, self._load_failure = item, None, None
                self.info = None
            elif not item.token.is_cancelled:
                self._run_job(item)

    def _run_job(self, job: _Job) -> None:
        try:
            outcome = job.work(self._loaded_engine(), job.token)
        except Exception as error:
            job.settle(None, error)
        else:
            job.settle(outcome)

    def _loaded_engine(self) -> InfillEngine:
        if self._load_failure is not None:
            raise EngineLoadFailed(self._load_failure)
        if self._engine is None:
            started = time.monotonic()
            try:
                self._engine = self._build_engine()
            except DGemmaError as error:
                self._load_failure = str(error)
            except Exception as error:
                logger.exception("the engine could not be built")
                self._load_failure = (
                    f"the engine could not be loaded ({type(error).__name__}: {error}). "
                    "Run `dgemma-lsp doctor` to see what is missing."
                )
            if self._engine is None:
                raise EngineLoadFailed(self._load_failure)
            self.info = self._engine.info
            logger.info("engine ready after %.1f s", time.monotonic() - started)
        return self._engine
