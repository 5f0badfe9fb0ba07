"""The benchmarks of head, attention and soft embedding run, and refuse a wrong kernel."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).parents[2] / "kernels/benchmarks"
TINY = ["--tokens", "3", "--sets", "1", "--repeats", "1", "--without-compile", "--weights", "plain"]
SIZES = {
    "vocab_head": ["--vocab", "200", "--size", "32"],
    "canvas_attention": ["--tiny", "--prefixes", "20"],
    "soft_embedding": ["--vocab", "200", "--size", "32"],
}
# All three in one process: most of a test's time is the import of torch.
RUN = """
import os, runpy, sys
os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, {folder!r})
for op, arguments in {arguments!r}.items():
    {before}
    script = os.path.join({folder!r}, f"bench_{{op}}.py")
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        print("refused:", error)
"""
WRONG = """
    import importlib
    kernel = importlib.import_module(f"dgemma_kernels.{op}.kernel")
    right = getattr(kernel, f"{op}_kernel")
    def wrong(*given, right=right, **more):
        result = right(*given, **more)
        return result * 1.1 if op != "vocab_head" else result._replace(entropy=result.entropy + 1)
    setattr(kernel, f"{op}_kernel", wrong)
"""


def run(*more: str, before: str = "") -> str:
    """What the benchmarks print, one after another, with `before` ahead of each."""
    arguments = {op: [*TINY, *sizes, *more] for op, sizes in SIZES.items()}
    code = RUN.format(folder=str(FOLDER), arguments=arguments, before=before.strip())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_benchmarks_run_and_append_their_rows(tmp_path: Path) -> None:
    """Kernel and twin of each, with the bytes and the share of a copy."""
    table = tmp_path / "results" / "table.csv"
    said = run("--csv", str(table))
    assert "refused" not in said
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    for op in SIZES:
        assert {"kernel", "twin"} <= {row["form"] for row in rows if row["op"] == op}
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert int(row["bytes"]) > 0
        assert float(row["share_of_copy"]) >= 0


def test_wrong_kernels_are_not_timed() -> None:
    """One that is off by more than rounding ends its benchmark before any time is taken."""
    said = run(before=WRONG)
    assert said.count("a wrong kernel is not timed") == len(SIZES)
    assert " ms," not in said
