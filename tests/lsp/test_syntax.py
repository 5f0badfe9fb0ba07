"""Syntax trees speak characters, whatever the bytes."""

from __future__ import annotations

import itertools

import pytest

from dgemma_lsp import syntax

from .drawn import draw_span, read_cursor

NODES = {
    "ascii": ("x = f║oo(1)\n", "identifier", "x = «foo»(1)\n"),
    "behind an emoji": ("s = '😋' + f║oo\n", "identifier", "s = '😋' + «foo»\n"),
    "an emoji": ("s = '║😋é'\n", "string_content", "s = '«😋é»'\n"),
    "in a file from Windows": ("a = 'é'\r\nb║b = 2\r\n", "identifier", "a = 'é'\r\n«bb» = 2\r\n"),
}


@pytest.mark.parametrize("name", NODES)
def test_node_at_a_character(name: str) -> None:
    """The smallest node around it, with offsets in characters."""
    drawn, kind, expected = NODES[name]
    text, offset = read_cursor(drawn)
    tree = syntax.parse(text, "python")
    assert tree is not None
    node = tree.node_at(offset)
    assert (kind, expected) == (node.kind, draw_span(text, node.start, node.end))


def test_ancestors_go_outwards() -> None:
    """From the smallest node to the whole text, each around the one before."""
    text, offset = read_cursor("def f(é):\n    return é + o║ne\n")
    tree = syntax.parse(text, "python")
    assert tree is not None
    nodes = list(tree.ancestors(offset))
    assert [node.kind for node in nodes][-4:] == [
        "return_statement",
        "block",
        "function_definition",
        "module",
    ]
    assert (nodes[-1].start, nodes[-1].end) == (0, len(text))
    for inner, outer in itertools.pairwise(nodes):
        assert outer.start <= inner.start <= inner.end <= outer.end


@pytest.mark.parametrize(
    ("text", "num_errors"),
    [("x = 1\n", 0), ("é = '😋'\n", 0), ("def f(:\n    pass\n", 1), ("x = (1\n", 1)],
)
def test_errors_have_a_place(text: str, num_errors: int) -> None:
    """Unreadable spans and missing tokens are found, and lie in the text."""
    tree = syntax.parse(text, "python")
    assert tree is not None
    assert tree.has_errors is bool(num_errors)
    errors = tree.errors()
    assert len(errors) >= num_errors
    assert bool(errors) is bool(num_errors)
    for error in errors:
        assert 0 <= error.start <= error.end <= len(text)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ("x = ║1\n", ""),
        ("def f():\n    x = ║1\n", "    "),
        ("def f():\n\tif '😋':\n\t\tx = ║1\n", "\t\t"),
        ("class A:\r\n  def f(self):\r\n      ret║urn 1\r\n", "      "),
        ("║", ""),
    ],
)
def test_indentation_of_the_block(drawn: str, expected: str) -> None:
    """That of the statements around the cursor."""
    text, offset = read_cursor(drawn)
    tree = syntax.parse(text, "python")
    assert tree is not None
    assert expected == tree.block_indentation(offset)


def test_a_language_without_a_grammar_has_no_tree() -> None:
    """The caller goes by lines."""
    assert syntax.parse("x = 1\n", "cobol") is None
