"""The calculation of GPUs: against formulas where they apply, by hand, and the page it is on."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from dgemma_engine.capacity import (
    Assumptions,
    Demand,
    Device,
    FillShape,
    fill_seconds,
    load,
    main,
    plan,
    plan_for,
    table,
)
from dgemma_engine.errors import ConfigError

PAGE = Path(__file__).parents[2] / "engine/DEPLOYMENT.md"
ONE_PASS = FillShape(((1, 1),))


def arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    moments = random.Random(seed)
    now, found = 0.0, []
    for _ in range(count):
        now += moments.expovariate(rate)
        found.append(now)
    return found


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_one_place_waits_as_pollaczek_and_khinchine_say(share: float) -> None:
    """Fixed service, random arrivals, one place: mean wait = load * service / (2 * (1 - load))."""
    device = Device(pass_ms=10.0, ms_per_canvas=0.0, batch=1)
    taken = fill_seconds(arrivals(share / 0.010, 40_000), 1, device, ONE_PASS)
    mean_wait = sum(taken) / len(taken) - 0.010
    assert mean_wait == pytest.approx(share * 0.010 / (2 * (1 - share)), rel=0.08)


def test_a_fill_alone_takes_what_its_passes_take() -> None:
    """Ten canvases on eight places: eight go first, two after them, and then the two best."""
    device = Device(pass_ms=10.0, ms_per_canvas=2.0, batch=8)
    expected = 2 * device.seconds(8) + 2 * device.seconds(2) + 9 * device.seconds(2)
    assert device.seconds(8) == pytest.approx(0.024)
    assert fill_seconds([3.0], 1, device, FillShape()) == [pytest.approx(expected)]
    with_two = 2 * device.seconds(5) + 9 * device.seconds(1)
    assert fill_seconds([3.0], 2, device, FillShape()) == [pytest.approx(with_two)]


def test_a_canvas_joins_between_passes() -> None:
    """Who comes in the middle of a pass waits for its end, and shares the next one."""
    device = Device(pass_ms=10.0, ms_per_canvas=4.0, batch=2)
    first, second = fill_seconds([0.0, 0.005], 1, device, FillShape(((1, 2),)))
    assert first == pytest.approx(0.010 + 0.014)
    assert second == pytest.approx(0.005 + 0.014 + 0.010)


def test_every_fill_is_done() -> None:
    """None is lost, however full the queue."""
    device = Device()
    taken = fill_seconds(arrivals(50.0, 500), 2, device, FillShape())
    assert len(taken) == 500
    assert min(taken) > 0.1


def test_more_gpus_are_faster_and_more_developers_slower() -> None:
    """And the number that is planned is the least that suffices."""
    device, shape = Device(), FillShape()
    found = plan(Demand(100), device, shape, within_ms=500.0)
    assert found.p95_ms <= 500.0
    assert plan_for(found.demand, found.gpus - 1, device, shape).p95_ms > 500.0
    assert plan_for(found.demand, found.gpus + 1, device, shape).p95_ms < found.p95_ms
    assert plan_for(Demand(120), found.gpus, device, shape).p95_ms > found.p95_ms


def test_what_cannot_keep_up_is_said_so() -> None:
    """Above full load there is no time in which fills are done."""
    device, shape = Device(), FillShape()
    assert load(Demand(1000), 1, device, shape) > 1
    assert plan_for(Demand(1000), 1, device, shape).p95_ms == math.inf
    with pytest.raises(ConfigError, match="129 ms cannot be done within 100 ms"):
        plan(Demand(1), device, shape, within_ms=100.0)


@pytest.mark.parametrize("changes", [{"pass_ms": 0.0}, {"ms_per_canvas": 99.0}, {"batch": 0}])
def test_a_device_has_sensible_times(changes: dict[str, float]) -> None:
    """Nonsense is refused with its numbers."""
    with pytest.raises(ConfigError, match="such times"):
        Device(**changes)  # type: ignore[arg-type]


def test_the_page_has_the_table() -> None:
    """DEPLOYMENT.md holds what the calculation gives, and names what it rests on."""
    page = PAGE.read_text("utf-8")
    start, end = (
        "<!-- Made by: python -m dgemma_engine.capacity -->\n",
        "\n<!-- End of what is made. -->",
    )
    made = page.partition(start)[2].partition(end)[0]
    assert made == table(Assumptions())
    assert "not a measurement" in page
    for words in ("11.7 ms a pass", "1,288 tokens", "3 ms more", "8 passes to the end"):
        assert words in page


def test_numbers_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes each of them; what cannot be is an error of usage."""
    main(["--developers", "40", "--pass-ms", "16.8", "--fills-per-minute", "6"])
    out = capsys.readouterr().out
    assert "| 40 | 2.0 |" in out
    assert "16.8 ms over one canvas" in out
    with pytest.raises(SystemExit):
        main(["--within-ms", "1"])
    assert "ask for less" in capsys.readouterr().err
