"""An engine in a process of its own is the engine: same fills, and nothing lost when it dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    DGemmaError,
    DraftStep,
    InfillRequest,
    StopReason,
    load_engine,
)
from dgemma_engine.process import EngineDied, EngineProcess

FAKES = (sys.executable, str(Path(__file__).with_name("worker_of_fakes.py")))
REQUEST = InfillRequest("def area(w, h):\n    return ", "\n", language_id="python")


@pytest.fixture
def fakes() -> Iterator[list[EngineProcess]]:
    started: list[EngineProcess] = []
    yield started
    for engine in started:
        engine.close()
        assert not engine.is_alive


def start(fakes: list[EngineProcess], answer: str = "answer") -> EngineProcess:
    fakes.append(EngineProcess(answer, command=FAKES))
    return fakes[-1]


def test_it_fills_as_the_engine_in_this_process_does() -> None:
    """The same text, tokens and confidences; steps come through; other questions are answered."""
    here, there = load_engine(), EngineProcess()
    steps: list[DraftStep] = []
    expected, actual = here.fill(REQUEST), there.fill(REQUEST, steps.append)
    assert expected.text == actual.text
    assert expected.token_ids == actual.token_ids
    assert expected.prefix_confidences == pytest.approx(actual.prefix_confidences)
    assert steps
    assert here.info == there.info
    assert here.count_tokens(REQUEST, "w * h") == there.count_tokens(REQUEST, "w * h")
    assert here.render(REQUEST) == there.render(REQUEST)
    assert there.encode(REQUEST) <= 1  # all but the token that is read again
    ahead = InfillRequest("class Point:\n    def __init__(self):\n        ", "\n")
    assert there.encode(ahead) > 1
    assert there.fill(ahead).num_cached_tokens == there.fill(ahead).num_context_tokens
    there.close()
    assert not there.is_alive


def test_steps_arrive_while_it_works(fakes: list[EngineProcess]) -> None:
    """Each pass is shown when it is done, not all of them at the end."""
    times: list[float] = []
    start(fakes).fill(REQUEST, lambda step: times.append(time.monotonic()))
    assert len(times) == 20
    assert times[-1] - times[0] > 10 * 0.02


def test_a_withdrawn_fill_ends_within_a_pass(fakes: list[EngineProcess]) -> None:
    """Cancelled is raised soon, and the next fill is done."""
    engine, token = start(fakes), CancellationToken()
    with pytest.raises(Cancelled):
        engine.fill(REQUEST, lambda step: token.cancel(), token)
    assert engine.fill(REQUEST).num_passes == 20


def test_what_is_encoded_ahead_can_be_withdrawn(fakes: list[EngineProcess]) -> None:
    """In its middle; the next fill is done."""
    engine, token = start(fakes), CancellationToken()
    threading.Timer(0.05, token.cancel).start()
    with pytest.raises(Cancelled):
        engine.encode(REQUEST, token)
    assert engine.encode(REQUEST) == 4
    assert engine.fill(REQUEST).num_passes == 20


def test_a_deadline_holds_there(fakes: list[EngineProcess]) -> None:
    """Seconds that are left, not a point in this process's time."""
    engine = start(fakes)
    result = engine.fill(InfillRequest("a", "b", deadline=time.monotonic() + 0.1))
    assert result.stop_reason is StopReason.DEADLINE
    assert 1 <= result.num_passes < 15


def test_errors_come_through(fakes: list[EngineProcess]) -> None:
    """The engine's own as they are; one nobody foresaw by its name, without the user's code."""
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        start(fakes, "refuse")
    engine = start(fakes, "raise")
    for _ in range(2):
        with pytest.raises(DGemmaError, match=r"the fill failed \(RuntimeError\)") as caught:
            engine.fill(REQUEST)
        assert "area" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"), [("exit", "ended with status 3"), ("kill", r"was killed \(SIGKILL\)")]
)
def test_death_in_the_middle_of_a_fill(fakes: list[EngineProcess], how: str, message: str) -> None:
    """The fill is told how the process ended; so is every later one."""
    engine = start(fakes, how)
    with pytest.raises(EngineDied, match=message) as caught:
        engine.fill(REQUEST)
    assert caught.value.was_working
    with pytest.raises(EngineDied, match=message) as caught:
        engine.fill(REQUEST)
    assert not caught.value.was_working


def test_death_while_loading() -> None:
    """The constructor says so."""
    with pytest.raises(EngineDied, match="ended with status 4"):
        EngineProcess("die", command=FAKES)


def test_death_while_nothing_is_asked() -> None:
    """Whoever wants to know is called, once; not when the engine is closed in good order."""
    deaths: list[EngineDied] = []
    heard = threading.Event()

    def on_death(error: EngineDied) -> None:
        deaths.append(error)
        heard.set()

    engine = EngineProcess("answer", command=FAKES, on_death=on_death)
    os.kill(engine.pid, signal.SIGKILL)
    assert heard.wait(10)
    assert "SIGKILL" in str(deaths[0])
    engine.close()
    other = EngineProcess("answer", command=FAKES, on_death=on_death)
    other.close()
    assert len(deaths) == 1


def test_closing_does_not_wait_for_a_fill(fakes: list[EngineProcess]) -> None:
    """The process goes in the middle of what it does."""
    engine = start(fakes)
    failures: list[Exception] = []
    began = threading.Event()

    def fill() -> None:
        try:
            engine.fill(REQUEST, lambda step: began.set())
        except EngineDied as error:
            failures.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    assert began.wait(10)
    engine.close()
    thread.join(5)
    assert [str(error) for error in failures] == ["the engine was closed"]
