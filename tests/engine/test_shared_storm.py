"""Fifty clients at five requests a second each: all answered, and memory stays flat."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dgemma_engine.shared.client import SharedEngine

from .shared_fixtures import Attach, attach, is_alive, run_folder, wait_for
from .storm import Storm, run_storm

__all__ = ["attach", "run_folder"]  # fixtures

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="/proc tells how much memory a process uses"
)


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def check(storm: Storm) -> None:
    """Every request was filled, or withdrawn with a reason that can be told."""
    assert storm.unanswered == 0
    assert set(storm.outcomes) <= {"filled", "Cancelled"}
    assert set(storm.reasons) <= {
        "a newer request took its place",
        "the engine was busy with others until the time was over",
    }
    assert storm.outcomes.total() == storm.num_sent


async def test_a_short_storm(attach: Attach) -> None:
    """A scripted engine that has time for a part of what is asked: every client gets fills."""
    engine = attach(pass_seconds=0.0005)
    storm = await run_storm(engine.place.socket, clients=50, rate=5.0, seconds=2.0)
    print(storm.report())
    check(storm)
    assert len(storm.filled_clients) == 50
    wait_for(lambda: len(engine.status()["clients"]) == 1)


@pytest.mark.slow
async def test_a_long_storm_of_a_scripted_engine(attach: Attach) -> None:
    """Ten thousand requests; memory is what it was after the first seconds."""
    engine = attach(pass_seconds=0.0)
    await run_storm(engine.place.socket, clients=50, rate=5.0, seconds=5.0)
    before = resident_mib(engine.pid)
    storm = await run_storm(engine.place.socket, clients=50, rate=5.0, seconds=40.0)
    after = resident_mib(engine.pid)
    print(storm.report(), f"{before:.1f} MiB before, {after:.1f} MiB after")
    check(storm)
    assert storm.outcomes["filled"] > 0.2 * storm.num_sent  # all of them on an idle machine
    assert storm.percentile(storm.filled_seconds, 95) < 1.0
    assert after < before + 5


@pytest.mark.slow
async def test_a_storm_of_the_small_model(run_folder: Path) -> None:
    """The shipped model has time for a part of it; the rest is told that it was overtaken."""
    engine = SharedEngine()
    try:
        await run_storm(engine.place.socket, clients=50, rate=5.0, seconds=20.0)
        before = resident_mib(engine.pid)
        storm = await run_storm(engine.place.socket, clients=50, rate=5.0, seconds=40.0)
        after = resident_mib(engine.pid)
        print(storm.report(), f"{before:.1f} MiB before, {after:.1f} MiB after")
        check(storm)
        assert storm.percentile(storm.answered_seconds, 95) < 3.5
        assert after < before + 40
    finally:
        engine.close()
        os.kill(engine.pid, signal.SIGTERM)
        wait_for(lambda: not is_alive(engine.pid))
