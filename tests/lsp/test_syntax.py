"""Syntax trees speak characters, whatever the bytes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_lsp import syntax

from .drawn import draw_span, nodes_of, read_cursor

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


def test_a_language_without_a_grammar_has_no_tree() -> None:
    """The caller goes by lines."""
    assert syntax.parse("x = 1\n", "cobol") is None


EDITED = {
    "python": "def f(a):\n    x = f'{a}é'\n    return [x, '😋']\n\n\nclass A:\n    pass\n",
    "javascript": "function f(a) {\n  return `😋 ${a}`;\n}\n",
    "markdown": "# A\n\n```python\nx = 1\n```\n\n- b\n  - c\n",
}
PIECES = st.sampled_from(["x", "(", ")", ":", "{", "\n", "\r\n", "    ", "'", "`", "é", "😋", ""])


@settings(deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("language_id", EDITED)
def test_an_edited_tree_is_that_of_the_edited_text(language_id: str, data: st.DataObject) -> None:
    """Edit upon edit. Where the text cannot be read, the two may disagree on what to skip."""
    text = EDITED[language_id]
    tree = syntax.parse(text, language_id)
    for _ in range(data.draw(st.integers(1, 5))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        new = data.draw(PIECES)
        text = text[:start] + new + text[end:]
        assert tree is not None
        tree = tree.edited(start, end, new)
    fresh = syntax.parse(text, language_id)
    assert tree is not None
    assert fresh is not None
    assert text == tree.source.text
    assert fresh.has_errors == tree.has_errors
    if not fresh.has_errors:
        assert nodes_of(fresh) == nodes_of(tree)


@settings(deadline=None)
@given(data=st.data())
def test_errors_of_a_span_are_those_that_touch_it(data: st.DataObject) -> None:
    """As a look at every node finds them; also among many siblings."""
    lines = st.sampled_from(["x = (1\n", "é = '😋\n", "def f(:\n", "y = 2\n", "    z\n", ")\n"])
    text = "".join(data.draw(st.lists(lines, max_size=8))) + "a = 1\n" * 80
    text += "".join(data.draw(st.lists(lines, max_size=8)))
    tree = syntax.parse(text, "python")
    assert tree is not None
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    everywhere = [(node.kind, node.start, node.end) for node in tree.errors()]
    assert len(everywhere) == sum(is_error for *_, is_error in nodes_of(tree))
    expected = [item for item in everywhere if item[1] <= end and item[2] >= start]
    assert expected == [(node.kind, node.start, node.end) for node in tree.errors(start, end)]


@pytest.mark.parametrize("size", [20, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_parse_keeps_no_text(size: int) -> None:
    """Neither does one that was stopped: the binding forgets to give back what it read."""
    text = "x = 1\n" * (size // 6)
    tree = syntax.parse(text, "python")
    assert tree is not None
    tracemalloc.start()
    try:
        for round_number in range(3):
            for _ in range(20):
                tree.edited(0, 0, "y")
                with contextlib.suppress(syntax.ParseTimeout):
                    syntax.parse_source(syntax.Source(text), tree.language, most_seconds=0.0)
            gc.collect()
            if round_number == 0:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 5 * size + 20_000
