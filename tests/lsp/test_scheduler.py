"""The queue before the engine: newest first, cancelled soon, recovered from failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from dgemma_engine import Cancelled, CheckpointError, InfillRequest, InfillResult
from dgemma_engine.fake import FakeEngine
from dgemma_engine.process import EngineDied
from dgemma_lsp.scheduler import EngineLoadFailed, EngineState, EngineStatus, FillScheduler, OnDeath

REQUEST = InfillRequest("a", "b")
PASS_SECONDS = 0.05
ASKED: dict[str, Any] = {"document": "one", "while_typing": False}

StartScheduler = Callable[[FakeEngine], FillScheduler]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[StartScheduler]:
    started: list[FillScheduler] = []

    def start_one(engine: FakeEngine) -> FillScheduler:
        started.append(FillScheduler(lambda on_death: engine))
        return started[-1]

    yield start_one
    for scheduler in started:
        assert scheduler.close(timeout=5)


async def test_the_newest_request_of_a_document_wins(start: StartScheduler) -> None:
    """The one before is answered as cancelled, another document's is not touched."""
    scheduler = start(FakeEngine(lambda _: "x", num_passes=4, pass_seconds=PASS_SECONDS))
    first = asyncio.create_task(scheduler.fill(REQUEST, document="one", while_typing=True))
    other = asyncio.create_task(scheduler.fill(REQUEST, document="two", while_typing=True))
    await asyncio.sleep(0)
    second = asyncio.create_task(scheduler.fill(REQUEST, document="one", while_typing=True))
    with pytest.raises(Cancelled, match="newer request"):
        await first
    assert (await other).text == (await second).text == "x"


async def test_cancelling_frees_the_engine_within_one_pass(start: StartScheduler) -> None:
    """A fill of 100 passes ends soon after its task is cancelled, and the next one runs."""
    engine = FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    began = threading.Event()
    task = asyncio.create_task(scheduler.fill(REQUEST, **ASKED, on_step=lambda _: began.set()))
    assert await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled_at = time.monotonic()
    while engine.num_cancelled == 0:
        assert time.monotonic() - cancelled_at < 5, "the engine goes on"
        await asyncio.sleep(PASS_SECONDS / 5)
    assert len(engine.requests) == 1


async def test_what_is_encoded_ahead_gives_way(start: StartScheduler) -> None:
    """To a fill, which comes in its middle; it does not begin while there is one, nor says busy."""
    engine = FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    await scheduler.encode_ahead(REQUEST)  # no engine is built for that
    assert scheduler.status.state is EngineState.UNLOADED
    await scheduler.load()
    while scheduler.status.state is not EngineState.READY:
        await asyncio.sleep(0.01)
    states: list[EngineState] = []
    scheduler.on_change = lambda status: states.append(status.state)
    ahead = asyncio.create_task(scheduler.encode_ahead(REQUEST))
    while not engine.encoded:
        await asyncio.sleep(0.01)
    assert not states
    began = asyncio.Event()
    fill = asyncio.create_task(scheduler.fill(REQUEST, **ASKED, on_step=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 2)  # of five that it would take
    await ahead
    await scheduler.encode_ahead(REQUEST)
    assert len(engine.encoded) == 1
    fill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fill


async def test_a_pass_that_hangs_does_not_keep_it_from_being_restarted() -> None:
    """Whoever waits is told so; the engine is closed, and another one answers."""
    engines: list[HangingEngine] = []
    states: list[EngineState] = []

    def build(on_death: OnDeath) -> FakeEngine:
        if engines:
            return FakeEngine(lambda _: "x")
        engines.append(HangingEngine())
        return engines[0]

    scheduler = FillScheduler(build)
    scheduler.on_change = lambda status: states.append(status.state)
    fill = asyncio.create_task(scheduler.fill(REQUEST, **ASKED))
    while not (engines and engines[0].hangs):
        await asyncio.sleep(0.01)
    await asyncio.wait_for(scheduler.restart(), 5)
    with pytest.raises(Cancelled, match="restarted"):
        await fill
    assert (await scheduler.fill(REQUEST, **ASKED)).text == "x"
    assert EngineState.ERROR not in states
    assert states.count(EngineState.LOADING) == 2
    assert scheduler.close(timeout=5)


class HangingEngine(FakeEngine):
    """Its first pass ends when it is closed."""

    def __init__(self) -> None:
        super().__init__(lambda _: "never")
        self.hangs = False
        self._closed = threading.Event()

    def fill(self, *arguments: Any, **keywords: Any) -> InfillResult:
        self.hangs = True
        assert self._closed.wait(10)
        raise EngineDied("the engine was closed")

    def close(self) -> None:
        self._closed.set()


async def test_the_engine_is_built_and_run_beside_the_event_loop(start: StartScheduler) -> None:
    """While it loads, the loop goes on."""
    threads: list[int] = []

    def build(on_death: OnDeath) -> FakeEngine:
        threads.append(threading.get_ident())
        time.sleep(0.2)
        return FakeEngine(lambda _: str(threading.get_ident()))

    scheduler = FillScheduler(build)
    fill = asyncio.create_task(scheduler.fill(REQUEST, **ASKED))
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

    def build(on_death: OnDeath) -> FakeEngine:
        nonlocal attempts
        attempts += 1
        raise CheckpointError("it has no config.json")

    scheduler = FillScheduler(build)
    for _ in range(3):
        with pytest.raises(EngineLoadFailed, match=r"it has no config\.json"):
            await scheduler.fill(REQUEST, **ASKED)
    assert attempts == 1
    scheduler.use(lambda on_death: FakeEngine(lambda _: "x"))
    assert (await scheduler.fill(REQUEST, **ASKED)).text == "x"
    assert scheduler.close(timeout=5)


async def test_an_unforeseen_failure_names_the_doctor() -> None:
    """Whatever the engine's building raises becomes a message with the next step."""

    def build(on_death: OnDeath) -> FakeEngine:
        raise RuntimeError("boom")

    scheduler = FillScheduler(build)
    with pytest.raises(EngineLoadFailed, match=r"RuntimeError: boom.*dgemma-lsp doctor"):
        await scheduler.load()
    assert scheduler.close(timeout=5)


async def test_a_deadline_takes_the_draft(start: StartScheduler) -> None:
    """The limit counts from the moment the engine begins."""
    scheduler = start(FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS))
    result = await scheduler.fill(REQUEST, **ASKED, time_limit=2.5 * PASS_SECONDS)
    assert 1 <= result.num_passes < 50


async def test_closing_is_prompt(start: StartScheduler) -> None:
    """A running fill is withdrawn."""
    engine = FakeEngine(lambda _: "x", num_passes=200, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    task = asyncio.create_task(scheduler.fill(REQUEST, **ASKED))
    await asyncio.sleep(2 * PASS_SECONDS)
    assert scheduler.close(timeout=2)
    with pytest.raises(Cancelled):
        await task


async def test_what_was_asked_for_does_not_wait_for_what_was_typed(start: StartScheduler) -> None:
    """The fill of an action takes the place of a suggestion in the same document."""
    engine = FakeEngine(lambda _: "x", num_passes=100, pass_seconds=PASS_SECONDS)
    scheduler = start(engine)
    typed = asyncio.create_task(scheduler.fill(REQUEST, document="one", while_typing=True))
    await asyncio.sleep(2 * PASS_SECONDS)
    asked = asyncio.create_task(scheduler.fill(REQUEST, **ASKED, time_limit=PASS_SECONDS))
    with pytest.raises(Cancelled):
        await typed
    assert (await asked).text == "x"
    assert engine.num_cancelled == 1


def mortal(*lives: int) -> tuple[Callable[[OnDeath], FakeEngine], list[FakeEngine]]:
    """Builds engines that die in the middle of a fill, after so many that went well."""
    built: list[FakeEngine] = []

    def build(on_death: OnDeath) -> FakeEngine:
        life = lives[min(len(built), len(lives) - 1)]

        def answer(_: InfillRequest) -> str:
            if len(engine.requests) > life:
                raise EngineDied("the engine's process was killed")
            return "x"

        engine = FakeEngine(answer)
        built.append(engine)
        return engine

    return build, built


async def test_an_engine_that_died_is_built_anew() -> None:
    """The fill is told why, the state says it, and the next request works."""
    build, built = mortal(1)
    scheduler = FillScheduler(build)
    seen: list[EngineStatus] = []
    scheduler.on_change = seen.append
    for _ in range(5):
        assert (await scheduler.fill(REQUEST, **ASKED)).text == "x"
        with pytest.raises(EngineDied, match="was killed"):
            await scheduler.fill(REQUEST, **ASKED)
    assert (await scheduler.fill(REQUEST, **ASKED)).text == "x"
    assert len(built) == 6
    told = "the engine's process was killed; it is being started again"
    assert seen.count(EngineStatus(EngineState.ERROR, told)) == 5
    assert scheduler.close(timeout=5)


async def test_engines_that_do_nothing_but_die_are_given_up() -> None:
    """No loop of loading and dying; `use` begins again."""
    build, built = mortal(0)
    scheduler = FillScheduler(build)
    for _ in range(3):
        with pytest.raises(EngineDied):
            await scheduler.fill(REQUEST, **ASKED)
    with pytest.raises(EngineLoadFailed, match=r"3 times in a row.*dgemma\.restart"):
        await scheduler.fill(REQUEST, **ASKED)
    assert len(built) == 3
    scheduler.use()
    with pytest.raises(EngineDied):
        await scheduler.fill(REQUEST, **ASKED)
    assert scheduler.close(timeout=5)
