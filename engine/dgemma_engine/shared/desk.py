"""Turns: one engine, one worker thread, many clients.

Clients take turns, one job each; of a client's jobs for the same document the newest takes the
place of the one before, where it stands in the queue, or of the one that runs. Who was overtaken so
is served to the end the next time: asking faster than the engine answers, they would get nothing,
and all others would wait for it. Who leaves takes all of theirs along.
Where the engine gains by it, the first fills of several clients are one turn. What a client wants
encoded ahead is done while nobody wants anything else.
`server.py` and `http.py` submit on the event loop's thread; the worker alone touches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Cancelled, DGemmaError, EngineUnavailable
from ..types import (
    CancellationToken,
    ClientFill,
    EngineInfo,
    InfillRequest,
    InfillResult,
    ManyClientEngine,
    OnStep,
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
        fill: what `work` does, for a turn of several; None for a turn of its own.
        is_idle: it is done while there is nothing else, and not counted.
    """

    client: str
    document: str | None
    work: Work
    on_begin: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    token: CancellationToken
    fill: ClientFill | None = None
    is_idle: bool = False
    submitted: float = field(default_factory=time.monotonic)

    def withdraw(self, reason: str) -> None:
        """Answer with Cancelled now; the worker follows within one pass. On the loop's thread."""
        self.token.cancel()
        if not self.future.done():
            self.future.set_exception(Cancelled(reason))
            self.future.exception()  # whoever asked may be gone: no warning then


@dataclass
class Counts:
    """What happened since the start, for `/metrics`; the worker and the loop write their own.

    `batches` are turns of several fills, `batched` the fills in them.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    finished: int = 0
    batches: int = 0
    batched: int = 0

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
        batch: fills of so many clients may be one turn; None for as many as the engine gains by.

    Attributes:
        ready: what was loaded, or the DGemmaError that it failed with.
        counts: since the start.
    """

    def __init__(self, load: LoadEngine, batch: int | None = None) -> None:
        self._load = load
        self._batch = batch
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self.counts = Counts()
        # Before `_changed`: who is next is first; what is done between turns; what runs.
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()
        self._chores: deque[Chore] = deque()
        self._running: list[Job] = []
        self._idle: Job | None = None  # the last that was submitted for when there is nothing else
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
            return bool(self._running or self._turns)

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
        future = self._loop.create_future()
        return self._enqueue(
            Job(client, document, work, on_begin, self._loop, future, CancellationToken())
        )

    def submit_fill(
        self,
        client: str,
        request: InfillRequest,
        on_step: OnStep | None = None,
        *,
        document: str | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> Job:
        """Put a fill in the client's queue; it may be done at once with those of others.

        Raises:
            Busy: as `submit`.
        """
        token = CancellationToken()
        fill = ClientFill(client, request, on_step, token)

        def work(engine: ManyClientEngine, token: CancellationToken) -> InfillResult:
            return engine.fill(request, on_step, token, client=client)

        def begin() -> None:
            on_begin()
            check_in_time(request.deadline)

        future = self._loop.create_future()
        return self._enqueue(Job(client, document, work, begin, self._loop, future, token, fill))

    def submit_idle(self, client: str, work: Work, *, otherwise: Any) -> Job:
        """Do work if there is nothing else to do; whatever is submitted next ends it.

        Args:
            otherwise: its outcome if there is.
        """
        future = self._loop.create_future()
        token = CancellationToken()
        job = Job(client, None, work, lambda: None, self._loop, future, token, is_idle=True)
        if self.is_busy:
            future.set_result(otherwise)
        else:
            self._idle = self._enqueue(job)
        return job

    def _enqueue(self, job: Job) -> Job:
        if self._idle is not None:
            self.withdraw(self._idle, "there is something else to do")
            self._idle = None
        client, document = job.client, job.document
        with self._changed:
            queue = self._turns.get(client, deque())
            older = self._older(queue, job)
            if older is None and len(queue) >= MOST_WAITING:
                self.counts.outcomes["refused"] += 1
                raise Busy(f"{len(queue)} requests of this client wait already; ask less often")
            if older is not None and older not in self._running:
                queue[queue.index(older)] = job
            else:
                queue.append(job)
            if older is not None and older in self._running:
                self._owed.add((client, document))
            self._turns[client] = queue
            self._changed.notify()
        if older is not None:
            self.withdraw(older, "a newer request took its place")
        return job

    def withdraw(self, job: Job, reason: str) -> None:
        """Take a job back, whether it waits or runs."""
        if not job.future.done() and not job.is_idle:
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
            jobs += [job for job in self._running if job.client == client]
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
            jobs += self._running
            self._changed.notify()
        for job in jobs:
            job.withdraw("the engine ends")

    def _older(self, queue: deque[Job], job: Job) -> Job | None:
        if job.document is None:
            return None
        others = list(queue)
        for running in self._running:
            if (running.client, running.document) not in self._owed:
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
            most = engine.most_at_once if self._batch is None else self._batch
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
        while (task := self._next(most)) is not None:
            if isinstance(task, list):
                self._do(engine, task)
            else:
                try:
                    task(engine)
                except Exception:
                    logger.exception("what a client held could not be freed")
        engine.close()

    def _next(self, most: int) -> list[Job] | Chore | None:
        """What to do now, fills of `most` clients at most; None at the end."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: bool(self._turns or self._chores or self._is_closed))
            if self._is_closed:
                return None
            if self._chores:
                return self._chores.popleft()
            self._running = self._take_turn(most)
            return list(self._running)

    def _take_turn(self, most: int) -> list[Job]:
        """The first job; if it is a fill, with the first jobs of others that are fills too."""
        jobs: list[Job] = []
        for client, queue in list(self._turns.items()):
            if jobs and (len(jobs) == most or queue[0].fill is None):
                continue
            jobs.append(queue.popleft())
            if queue:
                self._turns.move_to_end(client)  # behind all others
            else:
                del self._turns[client]
            if jobs[0].fill is None:
                break
        return jobs

    def _do(self, engine: ManyClientEngine, jobs: list[Job]) -> None:
        begun: list[Job] = []
        for job in jobs:  # several only if all are fills
            try:
                job.token.raise_if_cancelled()
                job.on_begin()
                begun.append(job)
            except Exception as error:
                self._done(job, error)
        fills = [job.fill for job in begun if job.fill is not None]
        if len(begun) > 1:
            self._do_at_once(engine, begun, fills)
            return
        for job in begun:
            try:
                self._done(job, job.work(engine, job.token))
            except Exception as error:
                self._done(job, error)

    def _do_at_once(
        self, engine: ManyClientEngine, jobs: list[Job], fills: Sequence[ClientFill]
    ) -> None:
        self.counts.batches += 1
        self.counts.batched += len(jobs)
        left = set(range(len(jobs)))

        def done(index: int, outcome: InfillResult | Exception) -> None:
            left.discard(index)
            self._done(jobs[index], outcome)

        try:
            engine.fill_many(fills, done)
        except Exception as error:
            for index in sorted(left):
                self._done(jobs[index], error)

    def _done(self, job: Job, value: Any) -> None:
        """Pass on what a job came to: a result, or the error that it ended with."""
        outcome, failure = _judged(value) if isinstance(value, Exception) else ("filled", None)
        with self._changed:
            self._running = [other for other in self._running if other is not job]
            if outcome != "withdrawn":
                self._owed.discard((job.client, job.document))
        self._call(self._finish, job, outcome, None if failure else value, failure)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(function, *arguments)

    # On the loop's thread again.

    def _finish(self, job: Job, outcome: str, value: Any, failure: DGemmaError | None) -> None:
        if job.future.done():  # it was withdrawn, and counted then
            return
        if not job.is_idle:
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


def _judged(error: Exception) -> tuple[str, DGemmaError]:
    """How an error counts, and what the client is told."""
    if isinstance(error, Cancelled):
        return "withdrawn", error
    if isinstance(error, DGemmaError):
        return "refused", error
    if isinstance(error, MemoryError):
        return "failed", EngineUnavailable("the engine is out of memory")
    # The message of an unforeseen error may quote the user's code.
    logger.error("a fill failed: %s", type(error).__name__)
    logger.debug("the trace", exc_info=error)
    text = f"the fill failed ({type(error).__name__}); the engine's log has more"
    return "failed", DGemmaError(text)


def check_in_time(deadline: float | None) -> None:
    """For a fill whose turn has come: if its time is over, nobody waits for it any more.

    Raises:
        Cancelled: it is.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise Cancelled("the engine was busy with others until the time was over")
