"""What benchmarks of kernels share: time, bandwidth, the check before them, the rows they write.

A form is what computes an op: "kernel", "twin", or "compiled", which is the twin by torch.compile.
Nothing here asserts anything about time. Without a GPU the kernels run in Triton's interpreter, at
sizes that say nothing about speed: that a benchmark runs at all can then be tested.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

from torch import Tensor

from dgemma_kernels.backend import Backend, report, use_backend
from dgemma_kernels.testing import assert_close
from dgemma_kernels.weights import WeightFormat

_WARM_UP = 5
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 16 << 20}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement. Milliseconds are of one call; bytes are the least that it has to move."""

    op: str
    form: str
    weights: str
    dtype: str
    tokens: int
    shape: str
    ms_p20: float
    ms_p50: float
    ms_p80: float
    bytes: int
    gigabytes_a_second: float
    share_of_copy: float


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = ["plain", *(format.value for format in WeightFormat)]
    result.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128, 256])
    result.add_argument("--weights", nargs="+", choices=formats, default=formats)
    result.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    result.add_argument(
        "--sets", type=int, default=3, help="sets of weights, taken in turn: caches hold none"
    )
    result.add_argument("--repeats", type=int, default=50)
    result.add_argument("--without-compile", action="store_true", help="leave torch.compile out")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--csv", type=Path, help="append the rows to this file")
    return result


def refuse_if_red(name: str, expected: Tensor, kernel: Run) -> None:
    """Run a kernel once and end the program unless it did run and is right."""
    op = name.split()[0]
    with use_backend(Backend.TRITON):
        actual = kernel()
    if report().get(op) != Backend.TRITON.value:
        raise SystemExit(f"{name}: no kernel ran ({report().get(op)}); nothing is timed")
    try:
        assert_close(name, expected, actual)
    except AssertionError as error:
        raise SystemExit(f"{error}; a wrong kernel is not timed") from None


def measure(runs: Sequence[Run], backend: Backend, repeats: int) -> tuple[float, float, float]:
    """Milliseconds of one call, p20, p50 and p80.

    Args:
        runs: the same call with other weights, taken in turn.
        backend: which form ops take inside. Kernels are timed as they are used, in a CUDA graph.
        repeats: how many measurements of all runs together.
    """
    with use_backend(backend):
        for _ in range(_WARM_UP if torch.cuda.is_available() else 1):
            for run in runs:
                run()
        if not torch.cuda.is_available():
            times = [_seconds_on_cpu(runs) * 1000 for _ in range(repeats)]
        else:
            times = _milliseconds_on_gpu(runs, backend is Backend.TRITON, repeats)
    each = [milliseconds / len(runs) for milliseconds in times]
    if len(each) == 1:
        each = each * 2
    p20, _, _, p80 = statistics.quantiles(each, n=5, method="inclusive")
    return p20, statistics.median(each), p80


def copy_bandwidth() -> float:
    """Bytes a second that one tensor is copied into another: what is read and what is written."""
    place = device()
    source = torch.empty(_COPY_BYTES[place.type] // 2, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    _, median, _ = measure([copy], Backend.REFERENCE, 20)
    return 2 * source.nbytes / (median / 1000)


def row_of(
    op: str,
    form: str,
    weights: str,
    dtype: str,
    tokens: int,
    shape: str,
    milliseconds: tuple[float, float, float],
    moved: int,
    bandwidth: float,
) -> Row:
    """A measurement with what follows from it."""
    rate = moved / (milliseconds[1] / 1000)
    return Row(
        op,
        form,
        weights,
        dtype,
        tokens,
        shape,
        *(round(value, 5) for value in milliseconds),
        moved,
        round(rate / 1e9, 1),
        round(rate / bandwidth, 3),
    )


def run(options: argparse.Namespace, points: Callable[[float], Iterable[list[Row]]]) -> None:
    """Measure, and append what was found to the CSV that the options name.

    Args:
        options: of `parser`.
        points: the rows of every point that is measured, given the bandwidth of a copy.
    """
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e9:.0f} GB/s")
    rows = [row for found in points(bandwidth) for row in found]
    if options.csv:
        append_csv(options.csv, rows, options.seed)


def show(row: Row) -> None:
    """One line."""
    print(
        f"{row.op} {row.form:8} {row.weights:9} {row.dtype} {row.tokens:4} tokens {row.shape}: "
        f"{row.ms_p20:.4f} {row.ms_p50:.4f} {row.ms_p80:.4f} ms, {row.gigabytes_a_second:.0f} GB/s,"
        f" {row.share_of_copy:.0%} of a copy",
        flush=True,
    )


def append_csv(path: Path, rows: Sequence[Row], seed: int) -> None:
    """Rows with where they were measured; the header once."""
    where = {
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, interpreted",
        "torch": torch.__version__,
        "triton": _triton_version(),
        "seed": seed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        records = [where | asdict(row) for row in rows]
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(records)


def _seconds_on_cpu(runs: Sequence[Run]) -> float:
    started = time.perf_counter()
    for run in runs:
        run()
    return time.perf_counter() - started


def _milliseconds_on_gpu(runs: Sequence[Run], in_graph: bool, repeats: int) -> list[float]:
    def all_runs() -> None:
        for run in runs:
            run()

    step: Callable[[], None] = all_runs
    if in_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_runs()
        step = graph.replay
    times = []
    for _ in range(_WARM_UP + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times[_WARM_UP:]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _triton_version() -> str:
    import triton

    return str(triton.__version__)
