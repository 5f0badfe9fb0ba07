"""Holes of every kind in every language, drawn in `holes/*.txt`; how, is in the README there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.hole import Hole, HoleRole, body_hole, docstring_hole, find_holes, select_hole
from dgemma_lsp.languages import LANGUAGES

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
