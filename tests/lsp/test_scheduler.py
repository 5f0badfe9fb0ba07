"""The queue before the engine: newest first, cancelled soon, recovered from failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from dgemma_engine import Cancelled, CheckpointError, InfillRequest
from dgemma_engine.fake import FakeEngine
from dgemma_lsp.scheduler import EngineLoadFailed, FillScheduler

REQUEST = InfillRequest("a", "b")
PASS_SECONDS = 0.05

StartScheduler = Callable[[FakeEngine], FillScheduler]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[StartScheduler]:
    started: list[FillScheduler] = []

    def start_one(engine: FakeEngine) -> FillScheduler:
        started.append(FillScheduler(lambda: engine))
        return started[-1]

    yield start_one
    for scheduler in started:
        assert scheduler.close(timeout=5)


async def test_the_newest_request_of_a_document_wins(start: StartScheduler) -> None:
    """The one before is answered as cancelled, another document's is not touched."""
    scheduler = start(FakeEngine(lambda _: "x", num_passes=4, pass_seconds=PASS_SECONDS))
    first = asyncio.create_task(scheduler.fill(REQUEST, document="one"))
    other = asyncio.create_task(scheduler.fill(REQUEST, document="two"))
    await asyncio.sleep(0)
    second = asyncio.create_task(scheduler.fill(REQUEST, document="one"))
    with pytest.raises(Cancelled, match="newer request"):
        await first
    assert (await other).text == (await second).text == "x"


async def test_cancelling_frees_the_engine_within_one_pass(start: StartScheduler) -> None:
    """A fill of 100 passes ends soon after its task is cancelled, and the next one runs."""
    engine = FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    began = threading.Event()
    task = asyncio.create_task(scheduler.fill(REQUEST, on_step=lambda _: began.set()))
    assert await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled_at = time.monotonic()
    while engine.num_cancelled == 0:
        assert time.monotonic() - cancelled_at < 5, "the engine goes on"
        await asyncio.sleep(PASS_SECONDS / 5)
    assert len(engine.requests) == 1


async def test_the_engine_is_built_and_run_beside_the_event_loop(start: StartScheduler) -> None:
    """While it loads, the loop goes on."""
    threads: list[int] = []

    def build() -> FakeEngine:
        threads.append(threading.get_ident())
        time.sleep(0.2)
        return FakeEngine(lambda _: str(threading.get_ident()))

    scheduler = FillScheduler(build)
    fill = asyncio.create_task(scheduler.fill(REQUEST))
    ticks = 0
    while not fill.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 5
    assert (await fill).text == str(threads[0])
    assert threads[0] != threading.get_ident()
    assert scheduler.close(timeout=5)


async def test_a_failure_to_load_is_kept_until_another_engine_comes() -> None:
    """Loading is not tried again for every keystroke; a changed setting tries once more."""
    attempts = 0

    def build() -> FakeEngine:
        nonlocal attempts
        attempts += 1
        raise CheckpointError("it has no config.json")

    scheduler = FillScheduler(build)
    for _ in range(3):
        with pytest.raises(EngineLoadFailed, match=r"it has no config\.json"):
            await scheduler.fill(REQUEST)
    assert attempts == 1
    scheduler.use(lambda: FakeEngine(lambda _: "x"))
    assert (await scheduler.fill(REQUEST)).text == "x"
    assert scheduler.close(timeout=5)


async def test_an_unforeseen_failure_names_the_doctor() -> None:
    """Whatever the engine's building raises becomes a message with the next step."""

    def build() -> FakeEngine:
        raise RuntimeError("boom")

    scheduler = FillScheduler(build)
    with pytest.raises(EngineLoadFailed, match=r"RuntimeError: boom.*dgemma-lsp doctor"):
        await scheduler.load()
    assert scheduler.close(timeout=5)


async def test_a_deadline_takes_the_draft(start: StartScheduler) -> None:
    """The limit counts from the moment the engine begins."""
    scheduler = start(FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS))
    result = await scheduler.fill(REQUEST, time_limit=2.5 * PASS_SECONDS)
    assert 1 <= result.num_passes < 50


async def test_closing_is_prompt(start: StartScheduler) -> None:
    """A running fill is withdrawn."""
    engine = FakeEngine(lambda _: "x", num_passes=200, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    task = asyncio.create_task(scheduler.fill(REQUEST))
    await asyncio.sleep(2 * PASS_SECONDS)
    assert scheduler.close(timeout=2)
    with pytest.raises(Cancelled):
        await task
