"""The benchmarks of head, attention and soft embedding run, and refuse a wrong kernel."""

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
TINY = ["--tokens", "3", "--sets", "1", "--repeats", "2", "--without-compile", "--weights", "plain"]
SIZES = {
    "vocab_head": ["--vocab=200", "--size=32"],
    "canvas_attention": ["--tiny", "--prefixes=20"],
    "soft_embedding": ["--vocab=200", "--size=32"],
}


@pytest.fixture(autouse=True)
def _benchmarks_import_their_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setitem(sys.modules, "common", importlib.import_module("common"))


def run(op: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark as from the command line, at sizes for the interpreter."""
    script = f"bench_{op}.py"
    monkeypatch.setattr(sys, "argv", [script, *TINY, *SIZES[op], *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_benchmarks_run_and_append_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel and twin of each, with the bytes and the share of a copy."""
    table = tmp_path / "results" / "table.csv"
    for op in SIZES:
        run(op, "--csv", str(table), monkeypatch=monkeypatch)
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    for op in SIZES:
        assert {"kernel", "twin"} <= {row["form"] for row in rows if row["op"] == op}
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert int(row["bytes"]) > 0
        assert float(row["share_of_copy"]) >= 0


@pytest.mark.parametrize("op", SIZES)
def test_a_wrong_kernel_is_not_timed(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is off by more than rounding ends its benchmark before any time is taken."""
    module = importlib.import_module(f"dgemma_kernels.{op}.kernel")
    right = getattr(module, f"{op}_kernel")

    def wrong(*given: Any, **more: Any) -> Any:
        result = right(*given, **more)
        return result._replace(entropy=result.entropy + 1) if op == "vocab_head" else result * 1.1

    monkeypatch.setattr(module, f"{op}_kernel", wrong)
    with pytest.raises(SystemExit, match="a wrong kernel is not timed"):
        run(op, monkeypatch=monkeypatch)
    assert " ms," not in capsys.readouterr().out


@pytest.mark.parametrize("op", ["canvas_attention", "soft_embedding"])
def test_a_weight_that_is_not_there_is_an_error(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row would say int8, and there was none."""
    with pytest.raises(SystemExit):
        run(op, "--weights", "int8", monkeypatch=monkeypatch)
    assert " ms," not in capsys.readouterr().out
