"""Turns: one engine, one worker thread, many clients.

Clients take turns, one job each; of a client's jobs for the same document the newest takes the
place of the one before, where it stands in the queue, or of the one that runs. Who was overtaken so
is served to the end the next time: asking faster than the engine answers, they would get nothing,
and all others would wait for it. Who leaves takes all of theirs along.
`server.py` and `http.py` submit on the event loop's thread; the worker alone touches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled, DGemmaError, EngineUnavailable
from ..types import (
    CancellationToken,
    EngineInfo,
    ManyClientEngine,
)

logger = logging.getLogger(__name__)

LoadEngine = Callable[[], ManyClientEngine]
Work = Callable[[ManyClientEngine, CancellationToken], Any]
Chore = Callable[[ManyClientEngine], None]

# Jobs of one client that may wait, each for another document.
MOST_WAITING = 32
# Bounds of the histogram of waiting and filling, in seconds.
LATENCY_BOUNDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Busy(EngineUnavailable):
    """There is too much before it; the message says how much."""


@dataclass(eq=False, slots=True)
class Job:
    """Work for the engine.

    Attributes:
        document: a newer job of the client with the same one takes its place; None for never.
        on_begin: called on the worker's thread when its turn has come.
        future: its outcome, for the event loop's thread.
    """

    client: str
    document: str | None
    work: Work
    on_begin: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    token: CancellationToken = field(default_factory=CancellationToken)
    submitted: float = field(default_factory=time.monotonic)

    def withdraw(self, reason: str) -> None:
        """Answer with Cancelled now; the worker follows within one pass. On the loop's thread."""
        self.token.cancel()
        if not self.future.done():
            self.future.set_exception(Cancelled(reason))
            self.future.exception()  # whoever asked may be gone: no warning then


@dataclass
class Counts:
    """What happened since the start, for `/metrics`; the worker and the loop write their own."""

    outcomes: Counter[str] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    finished: int = 0

    def took(self, seconds: float) -> None:
        self.seconds += seconds
        self.finished += 1
        for bound in LATENCY_BOUNDS:
            if seconds <= bound:
                self.buckets[bound] += 1


class Desk:
    """Takes jobs, gives turns. All methods are for the event loop's thread.

    Args:
        load: builds the engine, on the worker's thread.

    Attributes:
        ready: what was loaded, or the DGemmaError that it failed with.
        counts: since the start.
    """

    def __init__(self, load: LoadEngine) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self.counts = Counts()
        # Before `_changed`: who is next is first; what is done between turns; what runs.
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()
        self._chores: deque[Chore] = deque()
        self._running: Job | None = None
        # Clients and documents whose next job is not overtaken once it runs.
        self._owed: set[tuple[str, str | None]] = set()
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dgemma-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs whose turn has not come."""
        with self._changed:
            return sum(map(len, self._turns.values()))

    @property
    def is_busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._changed:
            return self._running is not None or bool(self._turns)

    def submit(
        self,
        client: str,
        work: Work,
        *,
        document: str | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> Job:
        """Put work in the client's queue.

        Raises:
            Busy: the client has `MOST_WAITING` jobs waiting already.
        """
        job = Job(client, document, work, on_begin, self._loop, self._loop.create_future())
        with self._changed:
            queue = self._turns.get(client, deque())
            older = self._older(queue, job)
            if older is None and len(queue) >= MOST_WAITING:
                self.counts.outcomes["refused"] += 1
                raise Busy(f"{len(queue)} requests of this client wait already; ask less often")
            if older is not None and older is not self._running:
                queue[queue.index(older)] = job
            else:
                queue.append(job)
            if older is not None and older is self._running:
                self._owed.add((client, document))
            self._turns[client] = queue
            self._changed.notify()
        if older is not None:
            self.withdraw(older, "a newer request took its place")
        return job

    def withdraw(self, job: Job, reason: str) -> None:
        """Take a job back, whether it waits or runs."""
        if not job.future.done():
            self.counts.outcomes["withdrawn"] += 1
        job.withdraw(reason)
        with self._changed:
            queue = self._turns.get(job.client)
            if queue is not None:
                with contextlib.suppress(ValueError):
                    queue.remove(job)
                if not queue:
                    del self._turns[job.client]

    def leave(self, client: str) -> None:
        """A client is gone: take back all of its jobs, free what the engine holds for it."""
        with self._changed:
            jobs = list(self._turns.pop(client, ()))
            if self._running is not None and self._running.client == client:
                jobs.append(self._running)
            self._owed = {owed for owed in self._owed if owed[0] != client}
            self._chores.append(lambda engine: engine.forget(client))
            self._changed.notify()
        for job in jobs:
            self.withdraw(job, "the client is gone")

    def close(self) -> None:
        """End the worker after what it does now, and withdraw the rest."""
        with self._changed:
            self._is_closed = True
            jobs = [job for queue in self._turns.values() for job in queue]
            self._turns.clear()
            if self._running is not None:
                jobs.append(self._running)
            self._changed.notify()
        for job in jobs:
            job.withdraw("the engine ends")

    def _older(self, queue: deque[Job], job: Job) -> Job | None:
        if job.document is None:
            return None
        others, running = list(queue), self._running
        if running is not None and (running.client, running.document) not in self._owed:
            others.append(running)
        for other in others:
            is_alive = not other.token.is_cancelled
            if other.client == job.client and other.document == job.document and is_alive:
                return other
        return None

    # What follows runs on the worker's thread.

    def _run(self) -> None:
        try:
            engine = self._load()
            info = engine.info
        except DGemmaError as error:
            self._call(self._settle, self.ready, None, error)
            return
        except Exception as error:
            logger.exception("the engine could not be built")
            failure = EngineUnavailable(
                f"the engine could not be loaded ({type(error).__name__}); its log has more"
            )
            self._call(self._settle, self.ready, None, failure)
            return
        self._call(self._settle, self.ready, info, None)
        while (task := self._next()) is not None:
            if isinstance(task, Job):
                self._do(engine, task)
            else:
                try:
                    task(engine)
                except Exception:
                    logger.exception("what a client held could not be freed")
        engine.close()

    def _next(self) -> Job | Chore | None:
        """What to do now; None at the end."""
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: bool(self._turns or self._chores or self._is_closed))
            if self._is_closed:
                return None
            if self._chores:
                return self._chores.popleft()
            client, queue = self._turns.popitem(last=False)
            job = queue.popleft()
            if queue:
                self._turns[client] = queue  # behind all others
            self._running = job
            return job

    def _do(self, engine: ManyClientEngine, job: Job) -> None:
        outcome, value = "filled", None
        failure: DGemmaError | None = None
        try:
            job.token.raise_if_cancelled()
            job.on_begin()
            value = job.work(engine, job.token)
        except Cancelled as error:
            outcome, failure = "withdrawn", error
        except DGemmaError as error:
            outcome, failure = "refused", error
        except MemoryError:
            outcome, failure = "failed", EngineUnavailable("the engine is out of memory")
        except Exception as error:
            # The message of an unforeseen error may quote the user's code.
            logger.error("a fill failed: %s", type(error).__name__)
            logger.debug("the trace", exc_info=True)
            text = f"the fill failed ({type(error).__name__}); the engine's log has more"
            outcome, failure = "failed", DGemmaError(text)
        if outcome != "withdrawn":
            with self._changed:
                self._owed.discard((job.client, job.document))
        self._call(self._finish, job, outcome, value, failure)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(function, *arguments)

    # On the loop's thread again.

    def _finish(self, job: Job, outcome: str, value: Any, failure: DGemmaError | None) -> None:
        if job.future.done():  # it was withdrawn, and counted then
            return
        self.counts.outcomes[outcome] += 1
        if outcome == "filled":
            self.counts.took(time.monotonic() - job.submitted)
        self._settle(job.future, value, failure)

    @staticmethod
    def _settle(future: asyncio.Future[Any], value: Any, failure: DGemmaError | None) -> None:
        if future.done():
            return
        if failure is None:
            future.set_result(value)
        else:
            future.set_exception(failure)
            future.exception()  # whoever asked may be gone: no warning then


def check_in_time(deadline: float | None) -> None:
    """For a fill whose turn has come: if its time is over, nobody waits for it any more.

    Raises:
        Cancelled: it is.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise Cancelled("the engine was busy with others until the time was over")
