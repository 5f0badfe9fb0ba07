"""Turns of several clients at once: who is taken, what each gets, what is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from dgemma_engine import (
    Cancelled,
    DGemmaError,
    DraftStep,
    InfillRequest,
    InfillResult,
    RequestError,
    StopReason,
)
from dgemma_engine.fake import FakeEngine
from dgemma_engine.shared.desk import Desk, Job
from dgemma_engine.shared.metrics import metrics_text
from dgemma_engine.shared.server import SharedServer
from dgemma_engine.types import ManyClientEngine

PASS_SECONDS = 0.005


def scripted(most_at_once: int = 4, num_passes: int = 4) -> FakeEngine:
    """Answers with the prefix, or fails as the prefix says."""

    def answer(request: InfillRequest) -> str:
        if request.prefix == "refuse":
            raise RequestError("it is too long")
        if request.prefix == "break":
            raise RuntimeError("nobody foresaw this")
        return request.prefix

    return FakeEngine(
        answer, num_passes=num_passes, pass_seconds=PASS_SECONDS, most_at_once=most_at_once
    )


def at_a_desk(
    scenario: Callable[[Desk], Awaitable[None]], engine: FakeEngine, batch: int | None = None
) -> None:
    """Run a scenario on an event loop with a desk before the engine."""

    def load() -> ManyClientEngine:
        return engine

    async def run() -> None:
        desk = Desk(load, batch)
        await desk.ready
        try:
            await asyncio.wait_for(scenario(desk), 10)
        finally:
            desk.close()

    asyncio.run(run())


@contextmanager
def held(desk: Desk) -> Iterator[None]:
    """The worker is busy while the queues are filled."""
    gate = threading.Event()
    desk.submit("holder", lambda engine, token: gate.wait(10))
    yield
    gate.set()


def fill(desk: Desk, client: str, text: str = "", document: str | None = None) -> Job:
    return desk.submit_fill(client, InfillRequest(text or client, ""), document=document)


async def outcome(job: Job) -> InfillResult | DGemmaError:
    try:
        result: InfillResult = await job.future
    except DGemmaError as error:
        return error
    return result


async def texts(*jobs: Job) -> list[str]:
    """Of fills, or the kind of error."""
    found = [await outcome(job) for job in jobs]
    return [one.text if isinstance(one, InfillResult) else type(one).__name__ for one in found]


def test_the_first_fills_of_several_clients_are_one_turn() -> None:
    """One each, as many as are asked for, and each gets its own text."""
    engine = scripted()

    async def scenario(desk: Desk) -> None:
        with held(desk):
            jobs = [
                fill(desk, client, f"{client}{n}", str(n)) for n in (1, 2) for client in "abcde"
            ]
        assert await texts(*jobs) == ["a1", "b1", "c1", "d1", "e1", "a2", "b2", "c2", "d2", "e2"]
        assert (desk.counts.batches, desk.counts.batched) == (3, 10)
        assert desk.counts.outcomes["filled"] == 11  # and what held the worker

    at_a_desk(scenario, engine)
    # e waited longest when the first turn was over, and is the first of the second.
    assert engine.batches == [tuple("abcd"), tuple("eabc"), tuple("de")]


@pytest.mark.parametrize(("most_at_once", "batch"), [(1, None), (4, 1)])
def test_without_gain_each_has_its_own_turn(most_at_once: int, batch: int | None) -> None:
    """By the engine's own word, or by that of whoever started it."""
    engine = scripted(most_at_once)

    async def scenario(desk: Desk) -> None:
        with held(desk):
            jobs = [fill(desk, client) for client in "abc"]
        assert await texts(*jobs) == ["a", "b", "c"]
        assert desk.counts.batches == 0

    at_a_desk(scenario, engine, batch)
    assert engine.batches == []


def test_it_can_be_asked_for() -> None:
    """Whatever the engine says."""
    engine = scripted(most_at_once=1)

    async def scenario(desk: Desk) -> None:
        with held(desk):
            jobs = [fill(desk, client) for client in "abc"]
        assert await texts(*jobs) == ["a", "b", "c"]

    at_a_desk(scenario, engine, batch=2)
    assert engine.batches == [("a", "b")]


def test_other_work_is_done_alone_and_is_not_overtaken() -> None:
    """It keeps its place: after the turn before it, before the next one."""
    engine, order = scripted(), list[str]()

    async def scenario(desk: Desk) -> None:
        with held(desk):
            first = fill(desk, "a")
            other = desk.submit("b", lambda engine, token: "b")
            jobs = [first, fill(desk, "c"), fill(desk, "a", "a2")]
        other.future.add_done_callback(lambda done: order.append(done.result()))
        for job in jobs:
            job.future.add_done_callback(lambda done: order.append(done.result().text))
        await asyncio.gather(*(job.future for job in (*jobs, other)))

    at_a_desk(scenario, engine)
    assert engine.batches == [("a", "c")]
    assert order == ["a", "c", "b", "a2"]


def test_an_error_and_a_deadline_are_one_clients_own() -> None:
    """The others get their fills."""
    engine = scripted(8, num_passes=100)

    async def scenario(desk: Desk) -> None:
        with held(desk):
            jobs = [fill(desk, "a"), fill(desk, "b", "refuse"), fill(desk, "c", "break")]
            late = InfillRequest("late", "", deadline=time.monotonic())
            soon = InfillRequest("soon", "", deadline=time.monotonic() + 50 * PASS_SECONDS)
            jobs += [desk.submit_fill("d", late), desk.submit_fill("e", soon), fill(desk, "f")]
        assert await texts(*jobs) == ["a", "RequestError", "DGemmaError", "Cancelled", "soon", "f"]
        found = await outcome(jobs[4])
        assert isinstance(found, InfillResult)
        assert found.stop_reason is StopReason.DEADLINE
        assert (await jobs[0].future).stop_reason is StopReason.CONVERGED
        outcomes = dict(desk.counts.outcomes)
        assert outcomes == {"filled": 4, "refused": 1, "failed": 1, "withdrawn": 1}

    at_a_desk(scenario, engine)
    assert engine.batches == [tuple("abcef")]


def test_an_engine_that_fails_as_a_whole_answers_everybody() -> None:
    """Nobody waits for ever; the next turn is another try."""
    engine = scripted()
    plain = engine.fill_many

    def fail_once(calls: object, on_done: object) -> None:
        engine.fill_many = plain  # type: ignore[method-assign]
        raise RuntimeError("the device is gone")

    engine.fill_many = fail_once  # type: ignore[method-assign]

    async def scenario(desk: Desk) -> None:
        for expected in (["DGemmaError"] * 2, ["a", "b"]):
            with held(desk):
                jobs = [fill(desk, client) for client in "ab"]
            assert await texts(*jobs) == expected

    at_a_desk(scenario, engine)


def test_a_client_that_leaves_takes_its_own_fill_along() -> None:
    """In the middle of a turn of three; what the engine held for it is freed after the turn."""
    engine = scripted(num_passes=40)

    async def scenario(desk: Desk) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def show(step: DraftStep) -> None:
            loop.call_soon_threadsafe(begun.set)

        with held(desk):
            jobs = [fill(desk, "a"), desk.submit_fill("b", InfillRequest("b", ""), show)]
            jobs.append(fill(desk, "c"))
        await begun.wait()
        desk.leave("b")
        assert await texts(*jobs) == ["a", "Cancelled", "c"]
        await desk.submit("a", lambda engine, token: None).future

    at_a_desk(scenario, engine)
    assert engine.batches == [tuple("abc")]
    assert (engine.num_cancelled, engine.forgotten) == (1, ["b"])


def test_the_newest_of_a_document_wins_in_a_turn_of_several() -> None:
    """One that runs gives way; the other client's is left alone."""
    engine = scripted(num_passes=40)

    async def scenario(desk: Desk) -> None:
        with held(desk):
            old, other = fill(desk, "a", "old", "x"), fill(desk, "b")
        while not engine.batches:
            await asyncio.sleep(0.001)
        new = fill(desk, "a", "new", "x")
        assert await texts(old, other, new) == ["Cancelled", "b", "new"]

    at_a_desk(scenario, engine)
    assert engine.num_cancelled == 1


def test_who_is_done_is_not_overtaken() -> None:
    """A fill that is answered while others of its turn go on: the next one owes it nothing."""
    engine = scripted(num_passes=100)

    async def scenario(desk: Desk) -> None:
        with held(desk):
            soon = InfillRequest("soon", "", deadline=time.monotonic() + 50 * PASS_SECONDS)
            jobs = [desk.submit_fill("a", soon, document="x"), fill(desk, "b")]
        await jobs[0].future
        assert not jobs[1].future.done()
        jobs.append(fill(desk, "a", "next", "x"))
        while len(engine.requests) < 3:
            await asyncio.sleep(0.001)
        jobs.append(fill(desk, "a", "newest", "x"))
        assert await texts(*jobs) == ["soon", "b", "Cancelled", "newest"]
        assert desk.counts.outcomes["withdrawn"] == 1

    at_a_desk(scenario, engine)


def test_the_end_answers_all_of_a_turn() -> None:
    """Each is told that the engine ends."""
    engine = scripted()

    async def scenario(desk: Desk) -> None:
        jobs = [fill(desk, client) for client in "abc"]
        desk.close()
        for job in jobs:
            with pytest.raises(Cancelled):
                await job.future

    at_a_desk(scenario, engine)


def test_turns_of_several_are_counted_for_whoever_watches() -> None:
    """In the text that Prometheus reads."""

    async def scenario(desk: Desk) -> None:
        with held(desk):
            jobs = [fill(desk, client) for client in "abc"]
        await texts(*jobs)
        server = SimpleNamespace(desk=desk, num_clients=3)
        lines = metrics_text(server).splitlines()  # type: ignore[arg-type]
        assert "dgemma_engine_batches_total 1" in lines
        assert "dgemma_engine_batched_fills_total 3" in lines

    at_a_desk(scenario, scripted())


def test_the_server_hands_the_number_on() -> None:
    """`--batch` reaches the desk."""
    engine = scripted(most_at_once=1)

    def load() -> ManyClientEngine:
        return engine

    async def run() -> None:
        server = SharedServer(load, idle_seconds=None, batch=3)
        await server.desk.ready
        with held(server.desk):
            jobs = [fill(server.desk, client) for client in "abc"]
        await texts(*jobs)
        server.desk.close()

    asyncio.run(run())
    assert engine.batches == [tuple("abc")]
