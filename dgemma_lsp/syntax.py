"""Syntax trees with character offsets; the one place that speaks tree-sitter's bytes.

A tree never changes: an edit makes another one, which shares with the first what it can. A
language without a grammar has no tree, and the caller goes by lines. It knows no holes; `hole/`
asks it. When a document's tree is made, and on which thread, is decided in `lazy_tree.py`.
"""

from __future__ import annotations

import importlib
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

import tree_sitter

from .chunks import Chunks
from .languages import Language, language_of

# Characters between two of the byte offsets that are kept of a text that is not ASCII.
_STRIDE = 4096
# A parse lets the other threads run this often.
_YIELD_SECONDS = 0.001
# Deeper nesting than this is a generated file; nobody asks for the outermost of its brackets.
_MAX_DEPTH = 400


class ParseTimeout(Exception):
    """The parse took longer than it was allowed to."""


class Source:
    """A text and its bytes, with offsets of one from offsets of the other.

    Attributes:
        text: the characters.
        data: the same in UTF-8; a lone surrogate is three bytes.
    """

    __slots__ = ("_is_ascii", "_marks", "data", "text")

    def __init__(self, text: str, data: bytes | None = None) -> None:
        self.text = text
        self.data = _encode(text) if data is None else data
        self._is_ascii = len(self.data) == len(text)
        self._marks: list[int] | None = None

    def edited(self, start: int, end: int, new: str, text: str | None = None) -> Source:
        """The source with `text[start:end]` replaced; `text` is what it is then, if at hand."""
        data = b"".join(
            (self.data[: self.to_byte(start)], _encode(new), self.data[self.to_byte(end) :])
        )
        return Source(self.text[:start] + new + self.text[end:] if text is None else text, data)

    def to_byte(self, char_offset: int) -> int:
        """Byte offset of a character; past the end means the end."""
        if self._is_ascii:
            return min(char_offset, len(self.data))
        char_offset = min(char_offset, len(self.text))
        stride = char_offset // _STRIDE
        rest = self.text[stride * _STRIDE : char_offset]
        return self._byte_marks()[stride] + len(_encode(rest))

    def to_char(self, byte_offset: int) -> int:
        """Character offset of a byte."""
        if self._is_ascii:
            return byte_offset
        marks = self._byte_marks()
        stride = max(0, bisect_right(marks, byte_offset, 0, len(marks) - 1) - 1)
        rest = self.data[marks[stride] : byte_offset]
        return stride * _STRIDE + len(rest.decode("utf-8", "surrogatepass"))

    def point(self, byte_offset: int) -> tuple[int, int]:
        """Row and column as tree-sitter counts them: line feeds, and bytes behind the last."""
        row = self.data.count(b"\n", 0, byte_offset)
        return row, byte_offset - self.data.rfind(b"\n", 0, byte_offset) - 1

    def _byte_marks(self) -> list[int]:
        if self._marks is None:
            starts = range(0, len(self.text), _STRIDE)
            sizes = (len(_encode(self.text[start : start + _STRIDE])) for start in starts)
            self._marks = list(accumulate(sizes, initial=0))
        return self._marks


class SyntaxNode:
    """A node of a tree. Offsets are characters, half open.

    Attributes:
        kind: the grammar's name of it.
        is_named: a rule of the grammar, not a mere token like a bracket.
        is_error: what the grammar could not read.
        is_missing: a token that is not there; empty.
    """

    __slots__ = ("_node", "_source", "is_error", "is_missing", "is_named", "kind")

    def __init__(self, node: tree_sitter.Node, source: Source) -> None:
        self._node = node
        self._source = source
        self.kind = node.type
        self.is_named = node.is_named
        self.is_error = node.is_error
        self.is_missing = node.is_missing

    def __repr__(self) -> str:
        return f"SyntaxNode({self.kind!r}, {self.start}, {self.end})"

    @property
    def start(self) -> int:
        return self._source.to_char(self._node.start_byte)

    @property
    def end(self) -> int:
        return self._source.to_char(self._node.end_byte)

    @property
    def text(self) -> str:
        return self._source.text[self.start : self.end]

    @property
    def parent(self) -> SyntaxNode | None:
        parent = self._node.parent
        return None if parent is None else SyntaxNode(parent, self._source)

    @property
    def previous(self) -> SyntaxNode | None:
        """The sibling before it."""
        previous = self._node.prev_sibling
        return None if previous is None else SyntaxNode(previous, self._source)

    @property
    def first_named(self) -> SyntaxNode | None:
        """The first child that is a rule, not a token."""
        child = self._node.named_child(0) if self._node.named_child_count else None
        return None if child is None else SyntaxNode(child, self._source)

    @property
    def children(self) -> list[SyntaxNode]:
        """All of them; slow at the root of a long file."""
        return [SyntaxNode(child, self._source) for child in self._node.children]

    def field(self, name: str) -> SyntaxNode | None:
        """The child in a role that the grammar names."""
        child = self._node.child_by_field_name(name)
        return None if child is None else SyntaxNode(child, self._source)


class SyntaxTree:
    """The tree of one text; it never changes.

    Any thread may read it. Attributes: `source`, the text; `language`, the row of the table.
    """

    __slots__ = ("_tree", "language", "source")

    def __init__(self, source: Source, language: Language, tree: tree_sitter.Tree) -> None:
        self.source = source
        self.language = language
        self._tree = tree

    @property
    def has_errors(self) -> bool:
        return self._tree.root_node.has_error

    def edited(self, start: int, end: int, new: str) -> SyntaxTree:
        """The tree of the text with `text[start:end]` replaced. This one stays as it is.

        What did not change is taken over: 1 ms for 10,000 lines, where a fresh parse takes 40.
        """
        source = self.source.edited(start, end, new)
        return parse_source(source, self.language, self.moved(source, start, end, new))

    def moved(self, source: Source, start: int, end: int, new: str) -> tree_sitter.Tree:
        """What `parse_source` may take over from this tree after an edit; `source` has it."""
        return move_tree(self._tree, self.source, source, start, end, new)

    def errors(self, start: int = 0, end: int | None = None) -> list[SyntaxNode]:
        """Spans the grammar could not read, and tokens it misses (empty spans), in text order.

        Args:
            start, end: only those that touch `text[start:end]`.
        """
        if not self.has_errors:
            return []
        walk = self._walk(start, end, within_errors=True)
        found = [node for node in walk if node.is_error or node.is_missing]
        return sorted(found, key=lambda node: node.start)

    def nodes(self, start: int, end: int) -> Iterator[SyntaxNode]:
        """Nodes that touch `text[start:end]`, the outer ones first."""
        return self._walk(start, end, within_errors=False)

    def find(self, kinds: Sequence[str], start: int, end: int) -> list[SyntaxNode]:
        """Nodes of some kinds that touch `text[start:end]`: 2 ms for the 1,000 of 10,000 lines."""
        if not kinds:
            return []
        cursor = tree_sitter.QueryCursor(_query(self.language, tuple(kinds)))
        cursor.set_byte_range(self.source.to_byte(start), self.source.to_byte(end) + 1)
        found = cursor.captures(self._tree.root_node).get("found", [])
        return [SyntaxNode(node, self.source) for node in found]

    def outermost(self) -> list[SyntaxNode]:
        """The nodes right below the root."""
        return [SyntaxNode(child, self.source) for child in self._tree.root_node.children]

    def node_at(self, char_offset: int) -> SyntaxNode:
        """The smallest node around the character at `char_offset`."""
        return next(self.ancestors(char_offset))

    def ancestors(self, char_offset: int) -> Iterator[SyntaxNode]:
        """Nodes around the character at `char_offset`, the smallest first."""
        start, end = self.source.to_byte(char_offset), self.source.to_byte(char_offset + 1)
        root = self._tree.root_node
        node: tree_sitter.Node | None = root.descendant_for_byte_range(start, end) or root
        for _ in range(_MAX_DEPTH):
            if node is None:
                return
            yield SyntaxNode(node, self.source)
            node = node.parent

    def _walk(self, start: int, end: int | None, *, within_errors: bool) -> Iterator[SyntaxNode]:
        """Nodes that touch a span, parents first; only into those with errors, if so wanted."""
        first = self.source.to_byte(start)
        last = len(self.source.data) if end is None else self.source.to_byte(end)
        cursor = self._tree.walk()
        while True:
            node = cursor.node
            assert node is not None
            is_near = node.start_byte <= last and node.end_byte >= first
            is_wanted = not within_errors or node.has_error or node.is_error or node.is_missing
            if is_near and is_wanted:
                yield SyntaxNode(node, self.source)
            descends = is_near and is_wanted and node.child_count > 0
            if descends and node.child_count > 64 and first > node.start_byte:
                # One earlier than the first that reaches the span: empty ones may end at its start.
                descends = cursor.goto_first_child_for_byte(max(0, first - 1)) is not None
                if descends:
                    continue
            elif descends and cursor.goto_first_child():
                continue
            while node.start_byte > last or not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return
                node = cursor.node
                assert node is not None


def parse(text: str, language_id: str) -> SyntaxTree | None:
    """Parse `text`; None where the language has no grammar here. 10,000 lines take about 40 ms."""
    language = language_of(language_id)
    return parse_source(Source(text), language) if has_grammar(language) else None


def parse_source(
    source: Source,
    language: Language,
    old_tree: tree_sitter.Tree | None = None,
    *,
    most_seconds: float | None = None,
) -> SyntaxTree:
    """Parse a text whose language has a grammar; other threads run meanwhile.

    Args:
        old_tree: of `move_tree`, to take over from it what did not change.
        most_seconds: processor time after which `ParseTimeout` is raised.
    """
    grammar = _grammar(language.grammar)
    assert grammar is not None, f"no grammar for {language.name}"
    started, yielded = time.thread_time(), time.perf_counter()

    def should_stop(_offset: int, _has_error: bool) -> bool:
        nonlocal yielded
        if most_seconds is not None:
            return time.thread_time() - started > most_seconds
        if time.perf_counter() - yielded > _YIELD_SECONDS:
            time.sleep(0)  # the parser holds the GIL
            yielded = time.perf_counter()
        return False

    parser = tree_sitter.Parser(grammar)
    try:
        with Chunks(source.data, grammar) as chunks:
            if old_tree is None:
                tree = parser.parse(chunks.read, progress_callback=should_stop)
            else:
                tree = parser.parse(chunks.read, old_tree, progress_callback=should_stop)
    except ValueError as error:  # what the binding raises when it was told to stop
        raise ParseTimeout from error
    return SyntaxTree(source, language, tree)


def move_tree(
    tree: tree_sitter.Tree, before: Source, after: Source, start: int, end: int, new: str
) -> tree_sitter.Tree:
    """A copy of `tree` with its offsets moved by the edit that made `after` out of `before`."""
    first, last = before.to_byte(start), before.to_byte(end)
    new_last = first + len(_encode(new))
    moved = tree.copy()
    moved.edit(
        first, last, new_last, before.point(first), before.point(last), after.point(new_last)
    )
    return moved


def has_grammar(language: Language) -> bool:
    """Whether texts of the language can be parsed with what is installed."""
    return _grammar(language.grammar) is not None


def has_node_kind(language: Language, kind: str) -> bool:
    """Whether the grammar knows such nodes."""
    grammar = _grammar(language.grammar)
    return grammar is not None and grammar.id_for_node_kind(kind, True) is not None


@cache
def _query(language: Language, kinds: tuple[str, ...]) -> tree_sitter.Query:
    grammar = _grammar(language.grammar)
    assert grammar is not None, f"no grammar for {language.name}"
    query: tree_sitter.Query = tree_sitter.Query(
        grammar, f"[{' '.join(f'({kind})' for kind in kinds)}] @found"
    )
    return query


@cache
def _grammar(place: tuple[str, str] | None) -> tree_sitter.Language | None:
    if place is None:
        return None
    module, function = place
    try:
        return tree_sitter.Language(getattr(importlib.import_module(module), function)())
    except (ImportError, ValueError, AttributeError):  # not installed, or for another tree-sitter
        return None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
