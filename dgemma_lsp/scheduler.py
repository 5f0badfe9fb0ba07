"""One engine, one worker thread, and a queue before it.

Handlers await `fill`; the newest request of a document takes the place of the one before. The
engine is built in the worker, so the event loop never waits for torch; one that dies is built anew.
It knows no LSP and no documents but by name; `fill.py` calls it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from dgemma_engine.errors import Cancelled, DGemmaError, EngineUnavailable
from dgemma_engine.process import EngineDied
from dgemma_engine.types import (
    CancellationToken,
    EngineInfo,
    InfillEngine,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnJointStep,
    OnStep,
)

logger = logging.getLogger(__name__)

OnDeath = Callable[[EngineDied], None]
# Builds an engine; one that runs elsewhere and ends by itself calls what it was given.
BuildEngine = Callable[[OnDeath], InfillEngine]

# An engine that died so often, and did nothing else, is not started again unasked.
_MOST_DEATHS = 3


class EngineLoadFailed(EngineUnavailable):
    """There is no engine; the message says why and what to do."""


class EngineState(str, Enum):
    """What the engine is doing."""

    UNLOADED = "unloaded"  # nothing was asked of it yet
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's state; with ERROR, `problem` says what happened and what to do.

    `info` is of the engine that is loaded, None without one.
    """

    state: EngineState = EngineState.UNLOADED
    problem: str | None = None
    info: EngineInfo | None = None


@dataclass(eq=False, slots=True)
class _Job:
    """Work for the engine, and where its outcome goes."""

    work: Callable[[InfillEngine, CancellationToken], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    is_idle: bool = False  # done while there is nothing else to do
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


@dataclass(frozen=True, slots=True)
class _Death:
    """An engine that ended while nothing was asked of it; `generation` says which one."""

    generation: int
    error: EngineDied


class FillScheduler:
    """Runs fills one after another on a thread of its own.

    All methods are for the event loop's thread.

    Args:
        build_engine: called in the worker before the first job, and again when the engine died. If
            it raises, every job fails with `EngineLoadFailed` until `use` brings another.

    Attributes:
        status: of the engine.
        on_change: called with each new `status`.
    """

    def __init__(self, build_engine: BuildEngine) -> None:
        self._build_engine = build_engine
        self._engine: InfillEngine | None = None
        self._generation = 0  # counts the engines that were built
        self._num_deaths = 0  # since a job was last done
        self._load_failure: str | None = None
        self._is_restarting = False  # the engine is closed under the worker; `use` follows
        self._queue: queue.SimpleQueue[_Job | BuildEngine | _Death | None] = queue.SimpleQueue()
        self._live: set[_Job] = set()
        self._newest: dict[str, _Job] = {}
        self._idle: _Job | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reported = EngineStatus()  # the worker's side of `status`
        self.status = EngineStatus()
        self.on_change: Callable[[EngineStatus], None] = lambda status: None

    async def fill(
        self,
        request: InfillRequest,
        *,
        document: str,
        while_typing: bool,
        time_limit: float | None = None,
        on_step: OnStep | None = None,
    ) -> InfillResult:
        """Fill a hole when its turn comes.

        Args:
            document: whose hole it is. What was begun while typing in it is withdrawn.
            while_typing: a later call for the document withdraws this one; otherwise only its
                caller may.
            time_limit: seconds from the moment the engine begins; then its draft is taken.
            on_step: called on the event loop's thread.
        Raises:
            Cancelled: a newer request of the document took its place.
            EngineLoadFailed: there is no engine.
            EngineDied: it ended in the middle of this fill.
            DGemmaError: as the engine raises.
        """
        loop = asyncio.get_running_loop()

        def work(engine: InfillEngine, token: CancellationToken) -> InfillResult:
            limited = request
            if time_limit is not None:
                limited = replace(request, deadline=time.monotonic() + time_limit)
            if on_step is None:
                return engine.fill(limited, None, token)
            return engine.fill(limited, lambda step: _call(loop, on_step, step), token)

        self.withdraw(document)
        job = self._submit(work)
        if while_typing:
            self._newest[document] = job
        try:
            result: InfillResult = await self._outcome(job)
        finally:
            if self._newest.get(document) is job:
                del self._newest[document]
        return result

    async def fill_together(
        self, request: JointRequest, *, document: str, on_step: OnJointStep | None = None
    ) -> JointResult:
        """Fill several holes on one canvas when their turn comes; somebody asked for it.

        Raises:
            HolesTooFarApart: they do not fit on one.
            EngineLoadFailed, EngineDied, DGemmaError: as `fill`.
        """
        loop = asyncio.get_running_loop()

        def work(engine: InfillEngine, token: CancellationToken) -> JointResult:
            if on_step is None:
                return engine.fill_together(request, None, token)
            return engine.fill_together(request, lambda steps: _call(loop, on_step, steps), token)

        self.withdraw(document)
        result: JointResult = await self._outcome(self._submit(work))
        return result

    async def encode_ahead(self, request: InfillRequest) -> None:
        """Encode a prompt that a fill will have, if the engine has nothing else to do by now.

        Whatever else is asked of it ends this; nobody is told how it ended.
        """
        if self._live or self.status.state is not EngineState.READY:
            return
        job = self._submit(lambda engine, token: engine.encode(request, token), is_idle=True)
        with contextlib.suppress(DGemmaError):
            await self._outcome(job)

    def withdraw(self, document: str, reason: str = "a newer request took its place") -> None:
        """Withdraw what was begun while typing in a document."""
        if (job := self._newest.pop(document, None)) is not None:
            job.withdraw(reason)

    async def load(self) -> EngineInfo:
        """Build the engine if it is not there yet.

        Raises:
            EngineLoadFailed: it cannot be built.
        """
        info: EngineInfo = await self.ask(lambda engine: engine.info)
        return info

    async def ask(self, question: Callable[[InfillEngine], Any]) -> Any:
        """What the engine says to something else than a fill, when its turn comes.

        Raises:
            EngineLoadFailed: there is no engine.
            DGemmaError: as the engine raises.
        """
        return await self._outcome(self._submit(lambda engine, _: question(engine)))

    def use(self, build_engine: BuildEngine | None = None) -> None:
        """Let the engine go and build another one for the next job, by default one like it."""
        self._queue.put(build_engine or self._build_engine)

    async def restart(self) -> None:
        """Withdraw everything, end the engine in the middle of what it does, and build another one.

        Raises:
            EngineLoadFailed: it cannot be built.
        """
        for job in tuple(self._live):
            job.withdraw("the engine is restarted")
        engine, self._is_restarting = self._engine, True
        self.use()
        if engine is not None:
            await asyncio.to_thread(engine.close)
        await self.load()

    def close(self, timeout: float = 1.0) -> bool:
        """Withdraw everything, let the engine go and end the worker.

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

    def _submit(
        self, work: Callable[[InfillEngine, CancellationToken], Any], *, is_idle: bool = False
    ) -> _Job:
        if self._idle is not None:
            self._idle.withdraw("there is something else to do")
        self._loop = loop = asyncio.get_running_loop()
        job = _Job(work, loop, loop.create_future(), is_idle)
        self._idle = job if is_idle else None
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
            if isinstance(item, _Job):
                if not item.token.is_cancelled:
                    self._run_job(item)
            elif isinstance(item, _Death):
                if item.generation == self._generation and self._engine is not None:
                    self._bury(item.error)
            else:
                self._build_engine, self._load_failure, self._num_deaths = item, None, 0
                self._is_restarting = False
                self._let_go()
                self._report(EngineState.UNLOADED)
        self._let_go()

    def _run_job(self, job: _Job) -> None:
        try:
            outcome = self._work(job)
        except EngineDied as error:
            job.settle(None, error)
            self._bury(error)
            return
        except Exception as error:
            job.settle(None, error)
        else:
            self._num_deaths = 0
            job.settle(outcome)
        if self._engine is not None:
            self._report(EngineState.READY)

    def _work(self, job: _Job) -> Any:
        engine = self._loaded_engine()
        if not job.is_idle:
            self._report(EngineState.BUSY)
        try:
            return job.work(engine, job.token)
        except EngineDied as error:
            if error.was_working:
                raise
            self._let_go()  # it had died before: another one can do it
            engine = self._loaded_engine()
            self._report(EngineState.BUSY)
            return job.work(engine, job.token)

    def _bury(self, error: EngineDied) -> None:
        """Say that the engine died, and build another one unless they all die."""
        self._let_go()
        if self._is_restarting:
            return
        logger.error("%s", error)
        self._num_deaths += 1
        if self._num_deaths >= _MOST_DEATHS:
            self._load_failure = self._too_many_deaths(error)
            self._report(EngineState.ERROR, self._load_failure)
            return
        self._report(EngineState.ERROR, f"{error}; it is being started again")
        with contextlib.suppress(EngineLoadFailed):  # reported there
            self._loaded_engine()
            self._report(EngineState.READY)

    def _too_many_deaths(self, error: EngineDied) -> str:
        return (
            f"{error}, {self._num_deaths} times in a row. Choose a smaller model or another "
            "device, then restart the engine (command dgemma.restart)."
        )

    def _let_go(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _loaded_engine(self) -> InfillEngine:
        if self._engine is None and self._load_failure is None:
            self._load()
        if self._engine is None:
            assert self._load_failure is not None
            raise EngineLoadFailed(self._load_failure)
        return self._engine

    def _load(self) -> None:
        self._report(EngineState.LOADING)
        started = time.monotonic()
        self._generation += 1
        generation = self._generation
        try:
            self._engine = self._build_engine(
                lambda error: self._queue.put(_Death(generation, error))
            )
        except EngineDied as error:
            self._num_deaths += 1
            if self._num_deaths < _MOST_DEATHS:
                self._report(EngineState.ERROR, f"{error}; it is being started again")
                self._load()
                return
            self._load_failure = self._too_many_deaths(error)
        except DGemmaError as error:
            self._load_failure = str(error)
        except Exception as error:
            logger.exception("the engine could not be built")
            self._load_failure = (
                f"the engine could not be loaded ({type(error).__name__}: {error}). "
                "Run `dgemma-lsp doctor` to see what is missing."
            )
        if self._engine is None:
            self._report(EngineState.ERROR, self._load_failure)
            return
        logger.info("engine ready after %.1f s", time.monotonic() - started)

    def _report(self, state: EngineState, problem: str | None = None) -> None:
        info = self._engine.info if self._engine is not None else None
        status = EngineStatus(state, problem, info)
        if status != self._reported and self._loop is not None:
            self._reported = status
            _call(self._loop, self._set_status, status)

    def _set_status(self, status: EngineStatus) -> None:
        """On the loop's thread."""
        self.status = status
        self.on_change(status)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        logger.debug("the event loop was closed before a fill ended")
