"""Holes of every kind in every language, drawn in `holes/*.txt`; how, is in the README there."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_engine import HoleKind
from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.hole import Hole, HoleRole, body_hole, docstring_hole, find_holes, select_hole
from dgemma_lsp.hole.line import BLANKS
from dgemma_lsp.languages import LANGUAGES
from dgemma_lsp.lazy_tree import LazyTree
from dgemma_lsp.syntax import parse

from .drawn import read_cursor, snapshot

FOLDER = Path(__file__).parent / "holes"
FILL = "■"

KINDS = {
    HoleRole.REST_OF_LINE: {HoleKind.LINE},
    HoleRole.LINES: {HoleKind.BLOCK},
    HoleRole.BODY: {HoleKind.BLOCK},
    HoleRole.ARGUMENTS: {HoleKind.LINE},
    HoleRole.EXPRESSION: {HoleKind.LINE},
    HoleRole.CODE_FROM_COMMENT: {HoleKind.BLOCK},
    HoleRole.DOCSTRING: {HoleKind.LINE, HoleKind.BLOCK},
}


@dataclass(frozen=True)
class Example:
    """One drawing; `roles` and `expected` are empty where no hole is to be found."""

    language_id: str
    asks: str
    roles: list[str]
    drawn: str
    expected: str

    def __str__(self) -> str:
        words = " ".join(self.drawn.split())
        return f"{self.language_id}: {self.asks} {words[:40]}"


def read_examples(path: Path) -> list[Example]:
    """The examples of a file."""
    examples = []
    for block in path.read_text(encoding="utf-8").split("=== ")[1:]:
        title, _, body = block.partition("\n")
        asks, _, roles = title.partition(": ")
        drawn, becomes, expected = body.partition("--- becomes")
        expected = expected[1:] if becomes else drawn.replace("║", FILL)
        is_none = becomes != "" and expected.strip() == "none"
        if "crlf" in roles:
            drawn, expected = (text.replace("\n", "\r\n") for text in (drawn, expected))
        names = [] if is_none else roles.replace("crlf", "").split()
        examples.append(Example(path.stem, asks, names, drawn, "" if is_none else expected))
    return examples


EXAMPLES = [example for path in sorted(FOLDER.glob("*.txt")) for example in read_examples(path)]


def holes_of(example: Example, document: DocumentSnapshot, offset: int) -> list[Hole]:
    if example.asks == "holes":
        return find_holes(document)
    if example.asks in ("typing", "asked"):
        return [select_hole(document, offset, cover_marker=example.asks == "asked")]
    find = {"body": body_hole, "docstring": docstring_hole}[example.asks]
    hole = find(document, offset)
    return [] if hole is None else [hole]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_example(example: Example) -> None:
    """The text after the fill, and what the fill is."""
    text, offset = read_cursor(example.drawn) if "║" in example.drawn else (example.drawn, 0)
    document = snapshot(text, example.language_id)
    holes = holes_of(example, document, offset)
    filled = text
    for hole in reversed(holes):
        filled = filled[: hole.start] + hole.before + FILL + hole.after + filled[hole.end :]
    assert (example.expected or text) == filled
    assert example.roles == [hole.role.value for hole in holes]
    assert all(hole.kind in KINDS[hole.role] for hole in holes)
    if example.asks == "typing":
        assert (offset, "", "") == (holes[0].start, holes[0].before, holes[0].after)
        assert not text[offset : holes[0].end].strip(" \t")


@pytest.mark.parametrize(
    "example", [item for item in EXAMPLES if set(item.roles) == {"body"}], ids=str
)
def test_a_body_that_is_filled_in_parses(example: Example) -> None:
    """What is put around the fill belongs there, in the grammar's opinion too."""
    statement = "x: 1;" if example.language_id == "css" else "x = 1;"
    tree = parse(example.expected.replace(FILL, statement), example.language_id)
    before = parse(example.drawn.replace("║", ""), example.language_id)
    if tree is not None and before is not None:
        assert before.has_errors or not tree.has_errors


@pytest.mark.parametrize("example", [item for item in EXAMPLES if item.asks == "typing"], ids=str)
def test_without_a_tree_only_the_role_differs(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines decide what a cursor's hole covers, so it is the same before the tree is there."""
    text, offset = read_cursor(example.drawn)
    expected = select_hole(snapshot(text, example.language_id), offset)
    monkeypatch.setattr(LazyTree, "now", lambda _: None)
    hole = select_hole(snapshot(text, example.language_id), offset)
    assert (expected.start, expected.end, expected.kind) == (hole.start, hole.end, hole.kind)


PIECES = st.sampled_from(
    [
        *"{}()[]\"'`\t\n\r\x0c#|=,.: 😋x",
        "\r\n",
        '"""',
        "/*",
        "*/",
        "//",
        "<FILL>",
        "{\n}",
        "pass",
        "```",
    ]
)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_text_has_holes_that_fit_it(data: st.DataObject) -> None:
    """No text is too broken: spans are in it, a cursor's stays on its line, none overlap."""
    example = data.draw(st.sampled_from(EXAMPLES))
    text = example.drawn.replace("║", "")
    for _ in range(data.draw(st.integers(0, 4))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        text = text[:start] + data.draw(PIECES) + text[min(end, start + 3) :]
    document = snapshot(text, example.language_id)
    offset = data.draw(st.integers(0, len(text)))
    typed = select_hole(document, offset)
    assert typed.start == offset or text[offset - 1 : offset + 1] == "\r\n"
    assert not text[typed.start : typed.end].strip(BLANKS)
    assert (typed.before, typed.after) == ("", "")
    asked = select_hole(document, offset, cover_marker=True)
    holes = find_holes(document)
    several = [asked, body_hole(document, offset), docstring_hole(document, offset), *holes]
    assert all(hole is None or hole.end <= len(text) for hole in several)
    assert all(first.end <= second.start for first, second in itertools.pairwise(holes))


def test_every_language_with_a_grammar_has_examples() -> None:
    """And the languages of the files are in the table, but for one that has none on purpose."""
    files = {path.stem for path in FOLDER.glob("*.txt")}
    assert {language.name for language in LANGUAGES if language.grammar} <= files
    assert files - {language.name for language in LANGUAGES} == {"cobol"}


def test_examples_are_read_as_drawn() -> None:
    """Every example has a role that exists, and a cursor or a list."""
    for example in EXAMPLES:
        assert ("║" in example.drawn) == (example.asks != "holes"), example
        assert set(example.roles) <= {role.value for role in HoleRole}, example
        assert re.fullmatch("typing|asked|body|docstring|holes", example.asks), example
