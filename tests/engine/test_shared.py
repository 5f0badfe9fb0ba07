"""One engine for many: fair turns, own answers, nothing lost when a client or the engine dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    DGemmaError,
    DraftStep,
    EngineUnavailable,
    HoleKind,
    InfillRequest,
    InfillResult,
    JointRequest,
    RequestError,
    StopReason,
    load_engine,
)
from dgemma_engine.process import EngineDied
from dgemma_engine.shared.client import SharedEngine, running_status
from dgemma_engine.shared.places import FileLock, place_of

from .shared_fixtures import Attach, attach, fakes, is_alive, run_folder, wait_for

__all__ = ["attach", "run_folder"]  # fixtures

REQUEST = InfillRequest("def area(w, h):\n    return ", "\n", language_id="python")


def fill_later(
    engine: SharedEngine, text: str, order: list[str], **options: str
) -> threading.Thread:
    """Fill on a thread of its own; `order` gets the text when the answer is there."""

    def fill() -> None:
        with contextlib.suppress(DGemmaError):
            engine.fill(InfillRequest(text, ""), **options)
            order.append(text)

    thread = threading.Thread(target=fill)
    thread.start()
    return thread


def test_two_clients_share_one_process_and_get_the_private_engines_fills(run_folder: Path) -> None:
    """The shipped model: same text, tokens and confidences, steps, counts; one process holds it."""
    here = load_engine()
    other = InfillRequest("class Point:\n    def __init__(self, x):\n        ", "\n", seed=3)
    one, two = SharedEngine(label="one"), SharedEngine(label="two")
    try:
        assert one.pid == two.pid
        assert one.info == here.info
        steps: list[DraftStep] = []
        for request in (REQUEST, other):
            expected = here.fill(request)
            for engine in (one, two):
                actual = engine.fill(request, steps.append)
                assert expected.text == actual.text
                assert expected.token_ids == actual.token_ids
                assert expected.prefix_confidences == pytest.approx(actual.prefix_confidences)
        assert steps
        several = JointRequest(
            ("a = ", "\nb = ", "\n"), (HoleKind.LINE,) * 2, ("1", "2"), 0.5, "python"
        )
        joint_steps: list[tuple[DraftStep, ...]] = []
        expected_texts = here.fill_together(several).texts
        assert expected_texts == two.fill_together(several, joint_steps.append).texts
        assert {len(drafts) for drafts in joint_steps} == {2}
        assert here.count_tokens(REQUEST, "w * h") == two.count_tokens(REQUEST, "w * h")
        assert here.render(REQUEST) == two.render(REQUEST)
        again = one.fill(other)
        assert again.num_cached_tokens == again.num_context_tokens  # two's fills left it alone
        assert {client["label"] for client in one.status()["clients"]} == {"one", "two"}
    finally:
        one.close()
        two.close()
        os.kill(one.pid, signal.SIGTERM)
        wait_for(lambda: not is_alive(one.pid))


def test_it_starts_once_however_many_ask(attach: Attach) -> None:
    """Eight at once: one process."""
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: attach(), range(8)))
    assert len({engine.pid for engine in engines}) == 1
    assert len(engines[0].status()["clients"]) == 8


def test_an_other_device_is_an_other_engine(attach: Attach) -> None:
    """Model, device and number format tell engines apart; a relative folder does not."""
    assert attach().pid != attach(device="cpu").pid
    assert place_of("weights").name == place_of(str(Path.cwd() / "weights")).name
    assert len({place_of("default", dtype=dtype).name for dtype in ("auto", "float32")}) == 2


def test_it_waits_while_the_model_loads(attach: Attach) -> None:
    """And an error of loading is the one that the engine raised; the next start tries again."""
    start = time.monotonic()
    assert attach("slow").fill(REQUEST).text.startswith("slow")
    assert time.monotonic() - start >= 0.5
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        attach("refuse", device="cpu")
    assert attach("better", device="cpu").fill(REQUEST).text.startswith("better")


def test_a_start_that_fails_says_why(attach: Attach) -> None:
    """The last line of its log, and where the log is."""
    with pytest.raises(EngineDied, match=r"ended with status 4.*no room for the model.*\.log"):
        attach("die")


def test_the_newest_request_of_a_document_wins(attach: Attach) -> None:
    """The older one is answered as withdrawn; another document's is not."""
    engine, order = attach(pass_seconds=0.02), []
    first = fill_later(engine, "old", order, document="a")
    other = fill_later(engine, "other", order, document="b")
    wait_for(lambda: engine.status()["waiting"] == 1)
    assert engine.fill(InfillRequest("new", ""), document="a").text == "answer new"
    first.join()
    other.join()
    assert sorted(order) == ["other"]


def test_who_asks_faster_than_it_answers_gets_answers(attach: Attach) -> None:
    """A fill takes 0.2 s and a request comes every 0.05 s: the second that is begun is finished."""
    engine, order = attach(pass_seconds=0.01), list[str]()
    threads = []
    for index in range(16):
        threads.append(fill_later(engine, str(index), order))
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert len(order) >= 2  # the last one, and at least one before it
    assert "15" in order


def test_clients_take_turns(attach: Attach) -> None:
    """One with many requests does not keep another waiting for all of them."""
    greedy, modest, order = attach(), attach(), list[str]()
    threads = []
    for index in range(6):
        threads.append(fill_later(greedy, f"greedy {index}", order, document=str(index)))
        wait_for(lambda: greedy.status()["waiting"] + len(order) >= len(threads) - 1)
    threads.append(fill_later(modest, "modest", order))
    for thread in threads:
        thread.join()
    assert len(order) == 7
    assert order.index("modest") <= 3


def test_a_withdrawn_fill_ends_within_a_pass(attach: Attach) -> None:
    """Cancelled is raised soon, and the next fill is done."""
    engine, token = attach(pass_seconds=0.02), CancellationToken()
    with pytest.raises(Cancelled):
        engine.fill(REQUEST, lambda step: token.cancel(), token)
    assert engine.fill(REQUEST).num_passes == 20


def test_it_encodes_ahead_while_nobody_asks(attach: Attach) -> None:
    """A fill of anybody ends that; while there are fills it does not begin."""
    one, other = attach(pass_seconds=0.02), attach(pass_seconds=0.02)
    assert one.encode(REQUEST) == 4
    outcomes: list[int | DGemmaError] = []

    def encode() -> None:
        try:
            outcomes.append(one.encode(REQUEST))
        except DGemmaError as error:
            outcomes.append(error)

    def began(step: DraftStep) -> None:
        if step.step == 0:
            during.append(one.encode(REQUEST))

    during: list[int] = []
    ahead = threading.Thread(target=encode)
    ahead.start()
    wait_for(lambda: other.status()["busy"])
    assert other.fill(REQUEST, began).text.startswith("answer")
    ahead.join()
    assert [type(outcome) for outcome in outcomes] == [Cancelled]
    assert during == [0]
    assert other.status()["filled"] == 1  # nothing else is counted


def test_a_deadline_holds_there(attach: Attach) -> None:
    """Seconds that are left; one that is over before its turn is not begun."""
    engine = attach(pass_seconds=0.02)
    result = engine.fill(InfillRequest("a", "b", deadline=time.monotonic() + 0.1))
    assert result.stop_reason is StopReason.DEADLINE
    assert 1 <= result.num_passes < 15
    with pytest.raises(Cancelled, match="busy with others"):
        engine.fill(InfillRequest("a", "b", deadline=time.monotonic() - 1))


def test_errors_come_through(attach: Attach) -> None:
    """By their kind and text; one nobody foresaw by its name, without the user's code."""
    engine = attach("raise")
    with pytest.raises(DGemmaError, match=r"the fill failed \(RuntimeError\)") as caught:
        engine.fill(REQUEST)
    assert "area" not in str(caught.value)
    with pytest.raises(RequestError, match="cannot be written"):
        engine.fill(InfillRequest("\ud800", ""))
    with pytest.raises(RequestError, match="max_tokens must be at most"):
        engine.fill(InfillRequest("", "", max_tokens=1 << 40))
    with pytest.raises(RequestError, match="max_steps must be at most"):
        engine.fill(InfillRequest("", "", max_steps=1 << 40))
    with pytest.raises(RequestError, match="longer than"):
        engine.fill(InfillRequest("x" * (17 << 20), ""))
    assert engine.count_tokens(REQUEST, "w * h") == 3


def test_a_client_that_is_killed_harms_nobody(attach: Attach) -> None:
    """Its fill ends within a pass; the other's is answered; what was held for it is free."""
    engine = attach(pass_seconds=0.05)
    program = (
        "from dgemma_engine import InfillRequest\n"
        "from dgemma_engine.shared.client import SharedEngine\n"
        "engine = SharedEngine(command=None, label='victim')\n"
        "engine.fill(InfillRequest('victim', ''), lambda step: print('step', flush=True))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"step\n"
        victim.kill()
        assert engine.fill(REQUEST).text.startswith("answer")
    assert engine.status()["filled"] == 1  # the victim's was broken off
    assert [client["label"] for client in engine.status()["clients"]] == ["client"]


def test_death_in_the_middle_of_fills(attach: Attach) -> None:
    """Who was served is told so, who waited may ask another; each hears of it once."""
    deaths: list[EngineDied] = []
    served = attach(on_death=deaths.append)
    waiting = attach()
    failures: list[EngineDied] = []

    def wait_in_vain() -> None:
        try:
            waiting.fill(REQUEST)
        except EngineDied as error:
            failures.append(error)

    def kill(step: DraftStep) -> None:
        if step.step == 0:
            thread.start()
            wait_for(lambda: served.status()["waiting"] == 1)
            os.kill(served.pid, signal.SIGKILL)

    thread = threading.Thread(target=wait_in_vain)
    with pytest.raises(EngineDied, match="the shared engine ended") as caught:
        served.fill(InfillRequest("stall", ""), kill)
    assert caught.value.was_working
    thread.join()
    assert [error.was_working for error in failures] == [False]
    with pytest.raises(EngineDied) as caught:
        served.fill(REQUEST)
    assert not caught.value.was_working
    wait_for(lambda: deaths)
    assert len(deaths) == 1
    assert (
        attach().fill(REQUEST).text.startswith("answer")
    )  # what the killed one left is no hindrance


def test_it_ends_when_nobody_is_left(attach: Attach) -> None:
    """After the time it was told, not before; it leaves no socket."""
    engine = attach(idle_minutes=0.005)
    time.sleep(0.5)
    assert is_alive(engine.pid)
    engine.close()
    wait_for(lambda: not is_alive(engine.pid))
    assert not engine.place.socket.exists()
    assert running_status() is None
    with pytest.raises(EngineUnavailable, match="no shared engine runs"):
        SharedEngine(command=None)


def test_loopback_with_a_token(attach: Attach) -> None:
    """The way of Windows: a private file has the port and a token; without it nobody gets in."""
    command = (*fakes(), "serve", "--tcp", "--idle-minutes", "1")
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ) as process:
        place = place_of("default")
        wait_for(place.address.exists)
        assert place.address.stat().st_mode & 0o777 == 0o600
        engine = attach()
        assert engine.pid == process.pid
        assert engine.fill(REQUEST).text.startswith("answer")
        engine.close()
        right = place.address.read_text()
        place.address.write_text(right.replace('"token": "', '"token": "0'))
        with pytest.raises(EngineUnavailable, match="the token is wrong"):
            SharedEngine(command=None)
        place.address.write_text(right)
        process.terminate()


def test_a_stranger_behind_the_address_learns_nothing(attach: Attach) -> None:
    """A server that does not know the token is told no code; one without a lock is not asked."""
    place = place_of("default")
    with socket.create_server(("127.0.0.1", 0)) as stranger, FileLock(place.held) as lock:
        address = f'{{"port": {stranger.getsockname()[1]}, "token": "secret"}}'
        place.address.write_text(address)
        heard: list[bytes] = []

        def listen() -> None:
            connection, _ = stranger.accept()
            with connection:
                from dgemma_engine.shared.wire import PROTOCOL, frame

                connection.sendall(frame({"type": "challenge", "nonce": "n", "protocol": PROTOCOL}))
                heard.append(connection.recv(4096))
                connection.sendall(frame({"type": "welcome", "proof": "guess", "pid": 1}))
                heard.append(connection.recv(4096))

        with pytest.raises(EngineUnavailable, match="no shared engine runs"):
            SharedEngine(command=None)
        assert lock.acquire()
        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(EngineUnavailable, match="not a shared engine"):
            SharedEngine(command=None)
        thread.join()
    assert b"secret" not in heard[0]
    assert heard[1] == b""
    assert attach().fill(REQUEST).text.startswith("answer")


def test_the_command_tells_and_ends(attach: Attach) -> None:
    """Whether one runs, who uses it; and it ends when it is told to."""

    def command(word: str) -> str:
        return subprocess.run(
            [*fakes(), word],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ).stdout

    assert command("stop") == "none runs\n"
    engine = attach(label="somebody")
    told = json.loads(command("status"))
    assert told["pid"] == engine.pid
    assert "somebody" in {client["label"] for client in told["clients"]}
    assert command("stop") == f"process {engine.pid} was told to end\n"
    wait_for(lambda: not is_alive(engine.pid))
    assert not engine.place.socket.exists()


def test_one_takes_the_place_of_another(attach: Attach) -> None:
    """Only if it is told to; windows that used the other find the new one."""
    deaths: list[EngineDied] = []
    old = attach(on_death=deaths.append)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([*fakes("new"), "serve", "--replace"], env=environment) as process:
        wait_for(lambda: deaths)
        engine = attach()
        assert engine.pid == process.pid != old.pid
        assert engine.fill(REQUEST).text == "new"
        process.terminate()


def test_results_are_whole(attach: Attach) -> None:
    """Every field of a result survives the way."""
    result = attach().fill(REQUEST)
    assert isinstance(result, InfillResult)
    assert result.token_ends == (len(result.text),)
    assert isinstance(result.timings.total_ms, float)
