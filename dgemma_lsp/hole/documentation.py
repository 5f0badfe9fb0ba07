"""Where the documentation of a definition is missing."""

from __future__ import annotations

import re

from dgemma_engine.types import HoleKind

from ..document import DocumentSnapshot
from ..languages import Language, language_of
from ..syntax import SyntaxNode
from .bodies import documentation_of, indent_unit, line_indentation
from .embedded import part_at
from .line import BLANKS, is_comment
from .types import Hole, HoleRole

# Nodes between documentation and what it is about.
_ATTRIBUTES = frozenset({"attribute_item", "decorator"})


def docstring_hole(snapshot: DocumentSnapshot, offset: int) -> Hole | None:
    """The words that document the innermost definition around the cursor.

    None where it has some, or there is no definition, or no tree of the text.
    """
    part = part_at(snapshot, offset)
    inner, at = part.snapshot, offset - part.start
    language, tree = language_of(inner.language_id), inner.syntax.now()
    if tree is None:
        return None
    found: SyntaxNode | None = None
    for probe in (at, max(0, at - 1)):
        for node in tree.ancestors(probe):
            if node.kind in language.documented and _is_definition(node):
                if found is None or node.end - node.start < found.end - found.start:
                    found = node
                break
    if found is None:
        return None
    make = _hole_inside if language.docstring_inside else _hole_above
    hole = make(inner, found, language)
    return None if hole is None else hole.moved(part.start)


def _is_definition(node: SyntaxNode) -> bool:
    """`struct point p` names a type, and defines none."""
    return not node.kind.endswith("_specifier") or node.field("body") is not None


def _hole_inside(
    snapshot: DocumentSnapshot, definition: SyntaxNode, language: Language
) -> Hole | None:
    body = definition.field("body")
    if body is None:
        return None
    opening, closing = language.docstring
    if (string := documentation_of(body)) is not None:
        quotes = re.fullmatch(r"(?s)(\w*(?:\"\"\"|'''|\"|'))(\s*)(\"\"\"|'''|\"|')", string.text)
        if quotes is None:
            return None
        start, end = (string.start + edge for edge in quotes.span(2))
        return Hole(start, end, HoleKind.LINE, HoleRole.DOCSTRING)
    colons = [child for child in definition.children if child.kind == ":"]
    if not colons:
        return None
    lines, start = snapshot.lines, colons[-1].end
    end = lines.bounds(lines.line_at(start))[1]
    inner = line_indentation(snapshot, definition.start) + indent_unit(snapshot, definition.start)
    after = closing
    if body.text.strip() and body.start < end:  # on the line of its head, to be moved down
        end, after = body.start, closing + snapshot.eol + inner
    elif body.text.strip():
        start, inner = end, line_indentation(snapshot, body.start)
    else:
        start = end
    before = snapshot.eol + inner + opening
    return Hole(start, end, HoleKind.LINE, HoleRole.DOCSTRING, before, after)


def _hole_above(
    snapshot: DocumentSnapshot, definition: SyntaxNode, language: Language
) -> Hole | None:
    opening, closing = language.docstring
    if not opening:
        return None
    node = definition
    while node.parent is not None and node.parent.kind in language.wrappers:
        node = node.parent
    while (previous := node.previous) is not None and previous.kind in _ATTRIBUTES:
        node = previous
    lines = snapshot.lines
    number = lines.line_at(node.start)
    head = snapshot.text[lines.bounds(number)[0] : node.start]
    if head.strip(BLANKS):
        return None
    if number > 0:
        above_start, above_end = lines.bounds(number - 1)
        above = snapshot.text[above_start:above_end]
        marks = rf"\s*{re.escape(opening.strip())}(\s*){re.escape(closing.strip())}\s*"
        if (empty := re.fullmatch(marks, above)) is not None:
            start, end = (above_start + edge for edge in empty.span(1))
            blank = " " if start == end else ""
            after = " " if closing and start == end else ""
            return Hole(start, end, HoleKind.LINE, HoleRole.DOCSTRING, blank, after)
        if is_comment(snapshot, above):
            return None
    after = closing + snapshot.eol + head
    return Hole(node.start, node.start, HoleKind.LINE, HoleRole.DOCSTRING, opening, after)
