"""Two editors' servers on one engine process: both answered, one killed and the other unharmed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from dgemma_engine import DGemmaError, InfillRequest
from dgemma_engine.process import EngineDied
from dgemma_engine.shared.client import SharedEngine, running_status
from dgemma_lsp.doctor import _where
from dgemma_lsp.engines import build_engine
from dgemma_lsp.scheduler import EngineState, EngineStatus, FillScheduler, OnDeath
from dgemma_lsp.settings import Settings

from .json_rpc import RawClient

FAKES = str(Path(__file__).parent.parent / "engine" / "shared_of_fakes.py")
URI = "file:///a.py"
TEXT = "def area(width, height):\n    return \n\n\nprint(area(2, 3))\n"
INLINE = {
    "textDocument": {"uri": URI},
    "position": {"line": 1, "character": 11},
    "context": {"triggerKind": 1},
}
SERVE = ("-m", "dgemma_lsp", "serve", "--engine", "shared", "--device", "cpu")


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    return tmp_path


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ask(client: RawClient) -> list[dict[str, object]]:
    answer = client.request("textDocument/inlineCompletion", INLINE)
    items: list[dict[str, object]] = answer["items"] if isinstance(answer, dict) else answer
    return items


def test_two_servers_attach_to_the_engine_that_runs(run_folder: Path) -> None:
    """Both are answered by it, one is killed, the other and the engine live on."""
    command = (sys.executable, FAKES, "width * height", "0.001")
    starter = SharedEngine(device="cpu", command=command)
    with RawClient(*SERVE) as one, RawClient(*SERVE) as two:
        for client in (one, two):
            client.initialize(textDocument={"inlineCompletion": {}})
            client.open(URI, TEXT)
        for client in (one, two):
            assert [item["insertText"] for item in ask(client)] == ["width * height"]
        users = {client["pid"] for client in starter.status()["clients"]} - {os.getpid()}
        assert users == {one.process.pid, two.process.pid}
        one.process.kill()
        one.process.wait()
        assert [item["insertText"] for item in ask(two)] == ["width * height"]
        assert two.close() == 0
    assert is_alive(starter.pid)
    starter.close()
    os.kill(starter.pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who uses how much memory")
def test_two_servers_one_engine(run_folder: Path) -> None:
    """The shipped model, over stdio: the memory of one model, the same answers, one killed."""
    with RawClient(*SERVE) as one, RawClient(*SERVE) as two:
        for client in (one, two):
            client.initialize(textDocument={"inlineCompletion": {}})
            client.open(URI, TEXT)
        answers = [ask(one), ask(two)]
        assert answers[0]
        assert answers[0] == answers[1]
        status = running_status(device="cpu")
        assert status is not None
        engine = status["pid"]
        users = {client["pid"] for client in status["clients"]} - {os.getpid()}
        assert users == {one.process.pid, two.process.pid}
        servers = [resident_kib(client.process.pid) for client in (one, two)]
        assert max(servers) < resident_kib(engine) / 2  # torch and the model are there, not here
        one.process.kill()
        one.process.wait()
        assert ask(two) == answers[1]
        assert is_alive(engine)
        assert two.close() == 0
    os.kill(engine, signal.SIGTERM)


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_the_engine_is_killed_in_mid_fill(run_folder: Path, times: int) -> None:
    """Each time the status says so and the next request is answered, by another process."""
    pids: list[int] = []
    statuses: list[EngineStatus] = []

    def build(on_death: OnDeath) -> SharedEngine:
        command = (sys.executable, FAKES, "answer {prefix}", "0.01")
        engine = SharedEngine(on_death=on_death, command=command)
        pids.append(engine.pid)
        return engine

    scheduler = FillScheduler(build)
    scheduler.on_change = statuses.append
    request, stalling = InfillRequest("x = ", ""), InfillRequest("stall", "")
    for index in range(times):
        killed: list[int] = []

        def kill(step: object, killed: list[int] = killed) -> None:
            if not killed:
                killed.append(pids[-1])
                os.kill(pids[-1], signal.SIGKILL)

        with pytest.raises(EngineDied, match="the shared engine ended"):
            await scheduler.fill(stalling, document="a", while_typing=True, on_step=kill)
        result = await scheduler.fill(request, document="a", while_typing=True)
        assert result.text == "answer x = "
        assert len(set(pids)) == index + 2
    problems = [status.problem for status in statuses if status.state is EngineState.ERROR]
    assert len(problems) == times
    assert all(problem and "it is being started again" in problem for problem in problems)
    await scheduler.load()
    await asyncio.sleep(0.1)
    assert scheduler.status.state is EngineState.READY
    assert await asyncio.to_thread(scheduler.close)
    os.kill(pids[-1], signal.SIGTERM)


def test_doctor_says_which_engine_and_who_uses_it(run_folder: Path) -> None:
    """Its process, its log, and the other clients by name."""
    command = (sys.executable, FAKES, "answer", "0")
    other = SharedEngine(label="dgemma-lsp in /home/ada", command=command)
    engine = SharedEngine(label="doctor", command=command)
    told = _where(engine, Settings(engine="shared"))
    other.close()
    engine.close()
    os.kill(engine.pid, signal.SIGTERM)
    assert told.startswith(f"process {engine.pid}, shared with ")
    assert "dgemma-lsp in /home/ada" in told
    assert str(engine.place.log) in told


def test_an_engine_that_cannot_be_had_says_why(run_folder: Path) -> None:
    """In one sentence, whichever was chosen."""
    with pytest.raises(DGemmaError, match="set engineUrl"):
        build_engine(Settings(engine="vllm"), lambda error: None)
    (run_folder / "dgemma-lsp").mkdir(mode=0o755)
    with pytest.raises(DGemmaError, match="can be opened by others"):
        build_engine(Settings(engine="shared"), lambda error: None)
