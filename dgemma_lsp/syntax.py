"""Syntax trees with character offsets; the one place that speaks tree-sitter's bytes.

A language without a grammar has no tree: `parse` says None and the caller goes by lines. It knows
no holes; `hole.py` asks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import tree_sitter
import tree_sitter_python

_BLOCK_KINDS = frozenset({"block", "module"})


@dataclass(frozen=True, slots=True)
class SyntaxNode:
    """A node of the tree: the grammar's name, the span, whether it is a block's only statement."""

    kind: str
    start: int
    end: int
    is_only_statement: bool = False


class SyntaxTree:
    """The tree of one text. Offsets in and out are characters, half open."""

    def __init__(self, text: str, tree: tree_sitter.Tree, data: bytes) -> None:
        self._text = text
        self._tree = tree
        self._data = data
        self._is_ascii = len(data) == len(text)

    @property
    def has_errors(self) -> bool:
        return self._tree.root_node.has_error

    def errors(self) -> list[SyntaxNode]:
        """Spans the grammar could not read, and tokens it misses (empty spans), in text order."""
        return [
            self._to_node(node) for node in self._walk_errors() if node.is_error or node.is_missing
        ]

    def node_at(self, char_offset: int) -> SyntaxNode:
        """The smallest node around the character at `char_offset`."""
        return next(self.ancestors(char_offset))

    def ancestors(self, char_offset: int) -> Iterator[SyntaxNode]:
        """Nodes around the character at `char_offset`, the smallest first."""
        node = self._smallest(char_offset)
        while node is not None:
            yield self._to_node(node)
            node = node.parent

    def block_indentation(self, char_offset: int) -> str:
        """Indentation of the statements in the innermost block around `char_offset`."""
        node = self._smallest(char_offset)
        while node is not None and node.type not in _BLOCK_KINDS:
            node = node.parent
        statements = node.named_children if node is not None else []
        if not statements:
            return ""
        start = statements[0].start_byte
        line = (
            self._data[:start].replace(b"\r", b"\n").rpartition(b"\n")[2].decode(errors="replace")
        )
        return line[: len(line) - len(line.lstrip())]

    def _smallest(self, char_offset: int) -> tree_sitter.Node | None:
        start = self._to_byte(char_offset)
        end = self._to_byte(char_offset + 1)
        return self._tree.root_node.descendant_for_byte_range(start, end) or self._tree.root_node

    def _walk_errors(self) -> Iterator[tree_sitter.Node]:
        stack = [self._tree.root_node]
        while stack:
            node = stack.pop()
            if node.has_error or node.is_missing:
                yield node
                stack.extend(reversed(node.children))

    def _to_node(self, node: tree_sitter.Node) -> SyntaxNode:
        parent = node.parent
        is_only = parent is not None and parent.type == "block" and _num_statements(parent) == 1
        start, end = self._to_char(node.start_byte), self._to_char(node.end_byte)
        return SyntaxNode(node.type, start, end, is_only_statement=is_only)

    def _to_byte(self, char_offset: int) -> int:
        if self._is_ascii:
            return min(char_offset, len(self._data))
        return len(self._text[:char_offset].encode("utf-8", "surrogatepass"))

    def _to_char(self, byte_offset: int) -> int:
        if self._is_ascii:
            return byte_offset
        return len(self._data[:byte_offset].decode("utf-8", "surrogatepass"))


def _num_statements(block: tree_sitter.Node) -> int:
    return sum(child.type != "comment" for child in block.named_children)


def parse(text: str, language_id: str) -> SyntaxTree | None:
    """Parse `text`; None where the language has no grammar here. 10,000 lines take about 30 ms."""
    parser = _parser(language_id)
    if parser is None:
        return None
    data = text.encode("utf-8", "surrogatepass")
    return SyntaxTree(text, parser.parse(data), data)


@cache
def _parser(language_id: str) -> tree_sitter.Parser | None:
    if language_id != "python":
        return None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))
