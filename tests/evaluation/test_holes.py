"""Holes are what their bucket says, the same every time, and never on leaked lines."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.evaluation.holes import BUCKETS, read_files, sample_holes
from dgemma_lsp.source_file import InputError

SOURCE = '''"""Shapes, für alle."""


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius = radius
        self.name = str(radius) + "°"

    def area(self, pi: float = 3.14) -> float:
        if self.radius < 0:
            raise ValueError("negative", self.radius)
        return pi * self.radius ** 2


def total(circles):
    result = 0.0
    for circle in circles:
        result += circle.area(pi=3)  # as it was, not "area()"
        print(circle, result)
    return result
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shapes.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (:\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not Python", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("bucket", BUCKETS)
def test_holes_are_what_the_bucket_says(folder: Path, bucket: str) -> None:
    """Text before, in and after is the file; lines are lines, blocks are several."""
    holes = sample_holes(read_files([folder]), bucket, 12)
    assert len(holes) >= 2
    for hole in holes:
        assert hole.before + hole.middle + hole.after == SOURCE
        assert hole.middle.strip()
        assert ("\n" in hole.middle) == (hole.kind is HoleKind.BLOCK)
        rest_of_line = hole.after.partition("\n")[0]
        if bucket in ("rest of line", "whole line", "block"):
            assert not rest_of_line
        is_code = "#" not in hole.before.rpartition("\n")[2] and hole.before.count('"""') % 2 == 0
        assert is_code == (bucket != "prose")
        if bucket == "mid-line":
            assert rest_of_line.strip()
        if bucket == "argument list":
            assert (hole.before[-1], rest_of_line[0]) == ("(", ")")
        if bucket == "expression":
            ast.parse(hole.middle.strip(), mode="eval")
        request = hole.request()
        assert (request.prefix, request.suffix) == (hole.before, hole.after)


def test_the_same_seed_gives_the_same_holes(folder: Path) -> None:
    """And another seed other ones; no hole comes twice."""
    files = read_files([folder])
    first, again, other = (sample_holes(files, "rest of line", 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({(hole.before, hole.middle) for hole in first}) == len(first)


def test_leaked_lines_give_no_holes(folder: Path) -> None:
    """`leaks.json` names the lines that training has seen."""
    leaked = list(range(4, len(SOURCE.splitlines())))
    (folder / "leaks.json").write_text(json.dumps({"shapes.py": leaked}), encoding="utf-8")
    holes = sample_holes(read_files([folder]), "rest of line", 50)
    assert holes
    assert all(hole.before.count("\n") < 4 for hole in holes)


def test_paths_that_give_nothing_are_errors(tmp_path: Path) -> None:
    """Each says what is wrong with which path."""
    with pytest.raises(InputError, match="no such file or folder"):
        read_files([tmp_path / "missing"])
    with pytest.raises(InputError, match="no Python file that can be read"):
        read_files([tmp_path])
