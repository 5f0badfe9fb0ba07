"""The benchmark: files as published, tests in a guarded process."""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.evaluation.humaneval import Problem, read_problems
from dgemma_lsp.evaluation.sandbox import network_guard, passes, protections
from dgemma_lsp.source_file import InputError

PROBLEMS = [
    Problem(
        "SingleLineInfilling/Own/0",
        "double",
        "def double(x):\n",
        "\n",
        "    return x * 2",
        "def check(candidate):\n    assert candidate(3) == 6\n",
    ),
    Problem(
        "RandomSpanInfilling/Own/1",
        "total",
        "def total(xs):\n    result = 0\n    for x in x",
        " += x\n    return result\n",
        "s:\n        result",
        "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
    ),
]


def write(path: Path, problems: list[Problem]) -> Path:
    fields = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")
    rows = [{name: getattr(problem, name) for name in fields} for problem in problems]
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_files_are_read_as_published(tmp_path: Path, name: str) -> None:
    """Plain or gzipped; the task's name says what kind of hole it is."""
    assert read_problems(write(tmp_path / name, PROBLEMS)) == PROBLEMS
    assert [problem.kind for problem in PROBLEMS] == [HoleKind.LINE, HoleKind.SELECTION]


def test_bad_files_are_named(tmp_path: Path) -> None:
    """Missing, empty, no JSON, or another dataset: which file, which line, what it should hold."""
    with pytest.raises(InputError, match="no such file"):
        read_problems(tmp_path / "missing.jsonl")
    path = tmp_path / "bad.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no problems"):
        read_problems(path)
    path.write_text('{"task_id": "x"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.jsonl:1 is not a HumanEval-Infilling problem"):
        read_problems(path)
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_problems(tmp_path / "bad.gz")


def test_tests_tell_right_from_wrong() -> None:
    """The true text passes, another one does not, and neither does one that does not parse."""
    for problem in PROBLEMS:
        assert problem.is_solved_by(problem.canonical_solution)
    assert not PROBLEMS[0].is_solved_by("    return x * 3")
    assert not PROBLEMS[1].is_solved_by("s: (")


def test_a_program_that_does_not_end_is_ended() -> None:
    """It, and what it started, within its time."""
    started = time.monotonic()
    assert not passes("import subprocess\nsubprocess.run(['sleep', '60'])", seconds=1.0)
    assert not passes("while True: pass", seconds=1.0)
    assert time.monotonic() - started < 15


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_a_program_gets_no_more_than_its_share(tmp_path: Path) -> None:
    """No memory beyond the limit, no large file, nothing of the user's environment."""
    assert not passes("x = bytearray(1 << 31)")
    assert passes("x = bytearray(1 << 20)")
    assert not passes("open('big', 'wb').write(bytes(1 << 22))")
    assert passes(
        "import os\nassert 'PYTHONPATH' not in os.environ and os.listdir() == ['program.py']"
    )
    assert passes("raise SystemExit(0)")
    assert not passes("raise SystemExit(3)")


def test_the_network_is_away_where_it_can_be() -> None:
    """And the sentence for the user says which it is."""
    program = (
        "import socket\nserver = socket.socket()\nserver.bind(('127.0.0.1', 0))\nserver.listen()\n"
        "socket.create_connection(server.getsockname(), timeout=2)\n"
    )
    has_network = passes(program)
    assert has_network == (not network_guard())
    assert ("NOT" in protections()) == has_network
