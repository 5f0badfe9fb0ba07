"""The benchmarks run, refuse a wrong kernel, and write what they measured."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).parents[2] / "kernels/benchmarks"
TINY = ["--tokens", "3", "--sets", "2", "--repeats", "2", "--without-compile", "--weights", "int8"]
SIZES = {
    "bench_moe_experts.py": ["--size=64", "--inner-size=32", "--experts=3", "--top-k=2"],
    "bench_linear.py": ["--shapes", "48x64"],
}


def run(
    scripts: list[str], *arguments: str, first: str = "pass"
) -> subprocess.CompletedProcess[str]:
    """Benchmarks one after another in a process of their own, after the code `first`."""
    lines = ["import runpy, sys", f"sys.path.insert(0, {str(FOLDER)!r})", first]
    for script in scripts:
        lines.append(f"sys.argv[1:] = {[*TINY, *SIZES[script], *arguments]!r}")
        lines.append(f"runpy.run_path({str(FOLDER / script)!r}, run_name='__main__')")
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_benchmarks_run_and_append_their_rows(tmp_path: Path) -> None:
    """The kernel and its twin, with the bytes and the share of a copy; the header once."""
    table = tmp_path / "results" / "table.csv"
    done = run([*SIZES], "--csv", str(table))
    assert done.returncode == 0, done.stderr
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    forms = [(row["op"], row["form"]) for row in rows]
    assert forms == [(op, form) for op in ("moe_experts", "linear") for form in ("kernel", "twin")]
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert int(row["bytes"]) > 0
        assert row["commit"]
        assert row["triton"]


def test_a_wrong_kernel_is_not_timed() -> None:
    """A kernel that is off by more than rounding ends the benchmark before any time is taken."""
    first = (
        "import common, importlib; k = importlib.import_module('dgemma_kernels.linear.kernel');"
        " right = k.linear_triton;"
        " k.linear_triton = lambda *a: right(*a) * 1.1"
    )
    done = run(["bench_linear.py"], first=first)
    assert done.returncode != 0
    assert "a wrong kernel is not timed" in done.stderr
    assert " ms," not in done.stdout
