"""`dgemma-lsp eval`, as typed, with the shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dgemma_lsp.evaluation.coverage import THRESHOLDS

from .test_holes import SOURCE
from .test_humaneval import PROBLEMS, write


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dgemma_lsp", "eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_holes_are_measured_end_to_end(tmp_path: Path) -> None:
    """Tables on the terminal, everything in JSON, a picture."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "shapes.py").write_text(SOURCE, encoding="utf-8")
    out, picture = tmp_path / "out.json", tmp_path / "curve.png"
    done = run(
        "holes", tmp_path / "own", "--count", 2, "--bucket", "rest of line", "--bucket", "block",
        "--json", out, "--plot", picture, "--examples", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text("utf-8"))
    assert set(results["buckets"]) == {"rest of line", "block"}
    assert len(results["buckets"]["block"]) == 8
    assert [item["threshold"] for item in results["coverage"]["curve"]] == list(THRESHOLDS)
    assert picture.read_bytes().startswith(b"\x89PNG")
    for expected in ("| rest of line (2) | diffusion, length known |", "| copy |", "║"):
        assert expected in done.stdout


def test_model_code_runs_only_if_that_is_said(tmp_path: Path) -> None:
    """The error says what guards there are; with the flag, tests decide."""
    path = write(tmp_path / "own.jsonl", PROBLEMS)
    refused = run("humaneval", path)
    assert refused.returncode == 2
    assert "--allow-code-execution" in refused.stderr
    done = run("humaneval", path, "--allow-code-execution", "--method", "copy", "--method", "auto")
    assert done.returncode == 0, done.stderr
    assert "own solutions pass: 100.0 %" in done.stdout
    assert "| own.jsonl (2) | copy |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["holes", "missing"], "no such file or folder: missing"),
        (["humaneval", "missing.jsonl"], "no such file: missing.jsonl"),
        (["holes", ".", "--bucket", "nonsense"], "'nonsense' is not one of"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], expected: str) -> None:
    """With status 2, before any model is loaded."""
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
