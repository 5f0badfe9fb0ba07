"""Names that may stand in a hole: those that are given around it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import dgemma_engine
import dgemma_lsp
from dgemma_engine.scope import Scope
from dgemma_lsp.evaluation.holes import BUCKETS, read_files, sample_holes

MODULE = '''"""Shapes, and nothing of words."""
import math
from os import path as paths

LIMIT = 3
if LIMIT:
    fallback = None


class Shape(Base):
    sides = 4

    def area(self, width):
        inner = 2 * width
        ║
        for corner in self.corners:
            grow(corner)

    def other(self, elsewhere):
        hidden = elsewhere


def helper(
    first,
    second,
):
    local = first
'''


def around(text: str) -> Scope | None:
    return Scope.around(*text.split("║"))


def unknown_in(text: str, filled: str) -> str | None:
    scope = around(text)
    assert scope is not None
    return scope.first_unknown(filled)


@pytest.mark.parametrize(
    ("names", "are_known"),
    [
        ("math paths LIMIT fallback Shape helper", True),  # the module's
        ("self width inner corner grow", True),  # the function's, also behind the hole
        ("len None print for __file__", True),  # Python's
        ("elsewhere hidden first second local other sides", False),  # another function's
        ("words corners os2", False),  # a string's, an attribute
    ],
)
def test_names_of_the_module_and_of_the_function_are_known(names: str, are_known: bool) -> None:
    for name in names.split():
        assert unknown_in(MODULE, f"x = {name}") == (None if are_known else name)


@pytest.mark.parametrize(
    "filled",
    [
        "self.anything.else_",
        "grow(anything=1)",
        "'anything' + f'{anything}'  # anything",
        "[each for each in self]",
        "{key: value for key, value in self.pairs()}",
        "max(self, key=lambda each: each[0])",
        "with open(self) as file: file",
        "if (found := self): found",
        "one, two = self",
        "one: int = 3",
        "for each in self:\n            each",
        "import anything\n        anything",
        "def inside(a, b):\n            return a",
        "one = 1\n        one",
        "return self.x(r'anything', b\"anything\")",
    ],
)
def test_what_is_given_in_the_text_is_known(filled: str) -> None:
    assert unknown_in(MODULE, filled) is None


@pytest.mark.parametrize(
    ("line", "filled", "expected"),
    [
        ("return g(║)", "a, made_up, b", "made_up"),
        ("made║", "_up(a)", "made_up"),  # it begins before the hole
        ("return ║de", "ma", "made"),  # or ends behind it
        ("return ║(a)", "g", None),
        ("return [║]", "made for mad in a", "made"),
        ("return g(║=1)", "made", None),
        ("return g(║==1)", "made", "made"),
    ],
)
def test_the_first_unknown_name_is_told(line: str, filled: str, expected: str | None) -> None:
    assert unknown_in(f"def g(a):\n    {line}\n", filled) == expected


@pytest.mark.parametrize(
    "text",
    [
        'def f(a):\n    """Say ║\n    """\n',
        "x = '║'\n",
        "x = 1  # ║\n",
        "def f(║):\n    pass\n",
        "def f(\n    a,\n    ║\n):\n    pass\n",
        "from os import ║\n",
        "from os.path import (\n    ║\n)\n",
        "from os.path import *\n\nx = ║\n",
    ],
)
def test_nothing_is_known_within_quotes_and_headers(text: str) -> None:
    assert around(text) is None


def test_a_prefix_that_was_cut_within_a_docstring_is_read_from_its_end() -> None:
    text = 'of words.\n    """\n    inner = 1\n\n\ndef f():\n    return ║\n'
    assert unknown_in(text, "inner") is None
    assert unknown_in(text, "words") == "words"


def test_names_of_what_was_cut_stand_in_other_texts() -> None:
    """The rest of the document comes first among the texts nearby."""
    nearby = ("import far\n\ndef f(hidden):\n    pass\n",)
    prefix = "x = 1\n" * 800 + "y = "
    for before, names in ((prefix, {"far", "f"}), ("y = ", set())):
        scope = Scope.around(before, "\n", nearby)
        assert scope is not None
        assert scope.names & {"far", "f", "hidden"} == names
    assert Scope.around(prefix, "\n", ("from far import *\n",)) is None


@pytest.mark.parametrize(
    "line", [" " * 8000, "for x, " * 1200, "a, " * 2500, "(" * 8000, "'" * 7999, "lambda " * 1100]
)
@pytest.mark.parametrize("lines", ["", "\n" * 8000, "from x import y\n" * 500])
def test_no_text_takes_long(line: str, lines: str) -> None:
    started = time.monotonic()
    scope = Scope.around(lines + line, " = 1" + line)
    if scope is not None:
        for filled in ("made", "made, " * 60, " " * 300 + "made"):
            scope.first_unknown(filled)
    assert time.monotonic() - started < 1.0


def test_what_stands_in_our_own_files_is_known() -> None:
    """The authors' texts of holes, hardly any of which may be taken for made up."""
    files = read_files([Path(package.__path__[0]) for package in (dgemma_lsp, dgemma_engine)])
    holes = [hole for bucket in BUCKETS for hole in sample_holes(files, bucket, 60, 0)]
    scopes = [Scope.around(hole.before, hole.after) for hole in holes]
    pairs = [(scope, hole) for scope, hole in zip(scopes, holes, strict=True) if scope]
    unknown = [scope.first_unknown(hole.middle) for scope, hole in pairs]
    assert len(pairs) > 200
    assert sum(found is not None for found in unknown) <= len(pairs) // 100, unknown
