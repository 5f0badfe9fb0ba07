"""The benchmarks run, refuse a wrong kernel, and write what they measured."""

from __future__ import annotations

import csv
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).parents[2] / "kernels/benchmarks"
TINY = ["--tokens", "3", "--sets", "2", "--repeats", "2", "--without-compile", "--weights", "int8"]
SIZES = {
    "bench_moe_experts.py": ["--size=64", "--inner-size=32", "--experts=3", "--top-k=2"],
    "bench_linear.py": ["--shapes", "48x64"],
}


@pytest.fixture(autouse=True)
def _benchmarks_import_their_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setitem(sys.modules, "common", importlib.import_module("common"))


def run(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark as from the command line, at sizes for the interpreter."""
    monkeypatch.setattr(sys, "argv", [script, *TINY, *SIZES[script], *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_benchmarks_run_and_append_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel and its twin, with the bytes and the share of a copy; the header once."""
    table = tmp_path / "results" / "table.csv"
    for script in SIZES:
        run(script, "--csv", str(table), monkeypatch=monkeypatch)
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    forms = [(row["op"], row["form"]) for row in rows]
    assert forms == [(op, form) for op in ("moe_experts", "linear") for form in ("kernel", "twin")]
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert int(row["bytes"]) > 0
        assert row["commit"]
        assert row["triton"]


def test_a_wrong_kernel_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel that is off by more than rounding ends the benchmark before any time is taken."""
    module = importlib.import_module("dgemma_kernels.linear.kernel")
    right = module.linear_triton

    def wrong(*arguments: Any) -> Any:
        return right(*arguments) * 1.1

    monkeypatch.setattr(module, "linear_triton", wrong)
    with pytest.raises(SystemExit, match="a wrong kernel is not timed"):
        run("bench_linear.py", monkeypatch=monkeypatch)
    assert " ms," not in capsys.readouterr().out


def test_what_gave_way_to_its_twin_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin is right, of course, but it is not what the row would say."""
    module = importlib.import_module("dgemma_kernels.moe_experts.kernel")
    monkeypatch.setattr(module, "why_not_experts", lambda *arguments: "not today")
    with pytest.raises(SystemExit, match=r"no kernel ran .*not today.*nothing is timed"):
        run("bench_moe_experts.py", monkeypatch=monkeypatch)
