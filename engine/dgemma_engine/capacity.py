"""How many GPUs a team needs: a small simulation of the queue before them, and its table.

    python -m dgemma_engine.capacity [--pass-ms 11.7] [--fills-per-minute 10] ...

A GPU denoises several canvases side by side, in passes that take longer the more there are, and
canvases come and go between passes. Fills come at random moments, and each comes in bursts: all
candidate lengths at once, then the best two to the end. A canvas goes to the GPU that has the
fewest, as a router sends it that looks at their load. Formulas for queues suppose that arrivals
come one by one, and promise too much here; the tests hold the simulation against one where it
applies.

Knows numbers only; what they rest on stands beside each of them. Standard library.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import ConfigError

# Published for vLLM on an H200, FP8, one request at a time: 1,288 tokens a second. Google's model
# card says 15 to 20 tokens a pass: 15 make 11.7 ms a pass. Inferred, not measured by us.
_PASS_MS = 11.7
# Of these, what each canvas of the batch adds: 2.34 TFLOP at 40 % of the 1,979 TFLOP/s that an H200
# has in FP8. The rest reads the weights, once for all. Inferred, not measured by us.
_MS_PER_CANVAS = 3.0
# Of the simulated time, and how much of its start is left out, while the queue fills.
_SECONDS, _WARM_UP_SECONDS = 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the group of GPUs that one replica of the model runs on.

    Attributes:
        pass_ms: of one pass over one canvas.
        ms_per_canvas: of these, what each further canvas in the batch adds too.
        batch: canvases side by side at most: vLLM's `--max-num-seqs`, 8 by default, since more do
            not fit an H200.
    Raises:
        ConfigError: the numbers make no pass.
    """

    pass_ms: float = _PASS_MS
    ms_per_canvas: float = _MS_PER_CANVAS
    batch: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.ms_per_canvas <= self.pass_ms or self.pass_ms <= 0 or self.batch < 1:
            raise ConfigError(f"a pass cannot take such times: {self}")

    def seconds(self, canvases: int) -> float:
        """Of a pass over so many."""
        return (self.pass_ms + (canvases - 1) * self.ms_per_canvas) / 1000


@dataclass(frozen=True, slots=True)
class FillShape:
    """What a fill asks of the server, as rounds of (canvases, passes of each).

    One pass of each canvas encodes what is new of the prompt. A first round drafts ten lengths in
    one pass; in the second, two go on to the end: reported are 4 to 12 passes for short holes
    between pinned code, of which this takes 8 (not measured by us).
    """

    rounds: tuple[tuple[int, int], ...] = ((10, 2), (2, 9))

    @property
    def canvases(self) -> int:
        return sum(count for count, _ in self.rounds)

    @property
    def canvas_passes(self) -> int:
        return sum(count * passes for count, passes in self.rounds)


@dataclass(frozen=True, slots=True)
class Demand:
    """What developers do; assumed, and worth counting at your place.

    Attributes:
        developers: with the server set up.
        active_share: of them, who type at the busiest time of a day.
        fills_per_minute: of one who types: pauses in which a suggestion is asked for, and what is
            not answered from memory.
    """

    developers: int
    active_share: float = 0.5
    fills_per_minute: float = 10.0

    @property
    def fills_per_second(self) -> float:
        return self.developers * self.active_share * self.fills_per_minute / 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a number of GPUs makes of a demand.

    Attributes:
        gpus: replicas, one GPU each at the default `Device`.
        load: share of what all GPUs do with full batches.
        median_ms: half of the fills are done in this time on the server.
        p95_ms: 95 of 100 are.
    """

    demand: Demand
    gpus: int
    load: float
    median_ms: float
    p95_ms: float


@dataclass(slots=True)
class _Gpu:
    """Canvases as (fill, passes that are left): those of the running pass, those that wait."""

    running: list[tuple[int, int]] = field(default_factory=list)
    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    is_in_pass: bool = False

    @property
    def present(self) -> int:
        return len(self.running) + len(self.waiting)


class _Queue:
    """The simulation; `run` gives how long each fill took."""

    def __init__(
        self, arrivals: Sequence[float], gpus: int, device: Device, shape: FillShape
    ) -> None:
        self._arrivals = arrivals
        self._device = device
        self._shape = shape
        self._gpus = [_Gpu() for _ in range(gpus)]
        self._round_of = [0] * len(arrivals)
        self._left_of = [0] * len(arrivals)  # canvases of the round that are not done
        self._taken = [0.0] * len(arrivals)
        self._ends: list[tuple[float, int]] = []  # when passes end, and whose

    def run(self) -> list[float]:
        for fill, now in enumerate(self._arrivals):
            self._end_passes(now)
            self._begin_round(now, fill)
        self._end_passes(math.inf)
        return self._taken

    def _end_passes(self, until: float) -> None:
        while self._ends and self._ends[0][0] <= until:
            now, index = heapq.heappop(self._ends)
            gpu = self._gpus[index]
            done = [fill for fill, passes in gpu.running if passes == 1]
            gpu.running = [(fill, passes - 1) for fill, passes in gpu.running if passes > 1]
            for fill in done:
                self._end_canvas(now, fill)
            gpu.is_in_pass = False
            self._begin_pass(now, index)

    def _end_canvas(self, now: float, fill: int) -> None:
        self._left_of[fill] -= 1
        if self._left_of[fill] > 0:
            return
        self._round_of[fill] += 1
        if self._round_of[fill] < len(self._shape.rounds):
            self._begin_round(now, fill)
        else:
            self._taken[fill] = now - self._arrivals[fill]

    def _begin_round(self, now: float, fill: int) -> None:
        count, passes = self._shape.rounds[self._round_of[fill]]
        self._left_of[fill] = count
        for _ in range(count):
            fewest = min(self._gpus, key=lambda gpu: gpu.present)
            fewest.waiting.append((fill, passes))
        for index, gpu in enumerate(self._gpus):
            if not gpu.is_in_pass:
                self._begin_pass(now, index)

    def _begin_pass(self, now: float, index: int) -> None:
        gpu = self._gpus[index]
        while gpu.waiting and len(gpu.running) < self._device.batch:
            gpu.running.append(gpu.waiting.popleft())
        if gpu.running:
            gpu.is_in_pass = True
            heapq.heappush(self._ends, (now + self._device.seconds(len(gpu.running)), index))


def fill_seconds(
    arrivals: Sequence[float], gpus: int, device: Device, shape: FillShape
) -> list[float]:
    """How long each fill takes on the server, in the order of their arrival.

    Args:
        arrivals: when each fill comes, in seconds, ascending.
    """
    return _Queue(arrivals, gpus, device, shape).run()


def load(demand: Demand, gpus: int, device: Device, shape: FillShape) -> float:
    """Share of what the GPUs do with full batches; from 1 on the queue only grows."""
    passes = demand.fills_per_second * shape.canvas_passes
    return passes * device.seconds(device.batch) / device.batch / gpus


def plan_for(demand: Demand, gpus: int, device: Device, shape: FillShape, *, seed: int = 0) -> Plan:
    """What these GPUs make of it, in a simulated minute."""
    share = load(demand, gpus, device, shape)
    if share >= 1.0:
        return Plan(demand, gpus, share, math.inf, math.inf)
    moments = random.Random(seed)
    arrivals = [moments.expovariate(demand.fills_per_second)]
    # A small team sends few fills in a minute: simulate longer, for at least 2,000.
    end = max(_SECONDS, 2000 / demand.fills_per_second)
    while arrivals[-1] < end:
        arrivals.append(arrivals[-1] + moments.expovariate(demand.fills_per_second))
    taken = fill_seconds(arrivals, gpus, device, shape)
    warm = [
        seconds for when, seconds in zip(arrivals, taken, strict=True) if when > _WARM_UP_SECONDS
    ]
    warm.sort()
    return Plan(
        demand,
        gpus,
        share,
        1000 * warm[len(warm) // 2],
        1000 * warm[math.ceil(0.95 * len(warm)) - 1],
    )


def plan(demand: Demand, device: Device, shape: FillShape, within_ms: float) -> Plan:
    """The fewest GPUs with which 95 of 100 fills are done in time.

    Raises:
        ConfigError: no number of GPUs does that, since a fill takes longer without any wait.
    """
    alone = sum(passes for _, passes in shape.rounds) * device.pass_ms
    if alone > within_ms:
        raise ConfigError(
            f"a fill of {alone:.0f} ms cannot be done within {within_ms:g} ms; ask for less"
        )
    gpus = max(1, math.ceil(load(demand, 1, device, shape)))
    while (found := plan_for(demand, gpus, device, shape)).p95_ms > within_ms:
        gpus += 1
    return found


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Everything that the table rests on."""

    device: Device = field(default_factory=Device)
    shape: FillShape = field(default_factory=FillShape)
    within_ms: float = 500.0
    active_share: float = 0.5
    fills_per_minute: float = 10.0

    def plan(self, developers: int) -> Plan:
        demand = Demand(developers, self.active_share, self.fills_per_minute)
        return plan(demand, self.device, self.shape, self.within_ms)


def table(assumptions: Assumptions, developers: Sequence[int] = (10, 100, 1000)) -> str:
    """A table in Markdown, and the sentences that it rests on."""
    device, shape = assumptions.device, assumptions.shape
    rows = [
        "| developers | fills a second at peak | canvases a second | GPUs | load | half within | "
        "95 of 100 within |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for number in developers:
        made = assumptions.plan(number)
        fills = made.demand.fills_per_second
        rows.append(
            f"| {number:,} | {fills:.1f} | {fills * shape.canvases:,.0f} | {made.gpus} | "
            f"{made.load:.0%} | {made.median_ms:.0f} ms | {made.p95_ms:.0f} ms |"
        )
    rounds = ", then ".join(f"{count} canvases of {passes}" for count, passes in shape.rounds)
    full_ms = 1000 * device.seconds(device.batch)
    return "\n".join(
        [
            *rows,
            "",
            f"A pass: {device.pass_ms:g} ms over one canvas, {full_ms:.1f} ms over "
            f"{device.batch}, which is the most.",
            f"A fill: {rounds} passes. 95 of 100 fills are to be done within "
            f"{assumptions.within_ms:g} ms, the network not counted.",
            f"Developers: {assumptions.active_share:.0%} type at the busiest time, with "
            f"{assumptions.fills_per_minute:g} fills a minute each.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    default = Assumptions()
    parser = argparse.ArgumentParser(
        prog="python -m dgemma_engine.capacity", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--developers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--pass-ms", type=float, default=default.device.pass_ms)
    parser.add_argument("--ms-per-canvas", type=float, default=default.device.ms_per_canvas)
    parser.add_argument("--batch", type=int, default=default.device.batch)
    parser.add_argument("--fills-per-minute", type=float, default=default.fills_per_minute)
    parser.add_argument("--active-share", type=float, default=default.active_share)
    parser.add_argument("--within-ms", type=float, default=default.within_ms)
    parser.add_argument(
        "--passes", type=int, default=8, help="of a canvas to its end, the encoding not counted"
    )
    given = parser.parse_args(arguments)
    (drafts, (best, _)) = default.shape.rounds
    try:
        assumptions = dataclasses.replace(
            default,
            device=Device(given.pass_ms, given.ms_per_canvas, given.batch),
            shape=FillShape((drafts, (best, given.passes + 1))),
            within_ms=given.within_ms,
            active_share=given.active_share,
            fills_per_minute=given.fills_per_minute,
        )
        print(table(assumptions, given.developers))
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
