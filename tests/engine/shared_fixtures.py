"""What tests of the shared engine begin with: a folder of their own, an end of all they start."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgemma_engine.shared.client import SharedEngine

SCRIPT = str(Path(__file__).with_name("shared_of_fakes.py"))
Attach = Callable[..., SharedEngine]


def fakes(answer: str = "answer {prefix}", pass_seconds: float = 0.005) -> tuple[str, ...]:
    """The command of a scripted engine."""
    return (sys.executable, SCRIPT, answer, str(pass_seconds))


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shared engines are, for this test alone."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def attach(run_folder: Path) -> Iterator[Attach]:
    """Builds clients of scripted engines; ends them, and the engines."""
    engines: list[SharedEngine] = []
    pids: set[int] = set()

    def build(
        answer: str = "answer {prefix}", pass_seconds: float = 0.005, **options: object
    ) -> SharedEngine:
        arguments = {"command": fakes(answer, pass_seconds), **options}
        engine = SharedEngine(**arguments)  # type: ignore[arg-type]
        engines.append(engine)
        pids.add(engine.pid)
        return engine

    yield build
    for engine in engines:
        engine.close()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not any(map(is_alive, pids)))
