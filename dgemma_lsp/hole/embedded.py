"""Text in another language: fenced code in Markdown, scripts and styles in HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..document import DocumentSnapshot
from ..languages import PLAIN, language_id_of_fence, language_of
from ..syntax import SyntaxNode

# A script that is data or a template.
_OTHER_TYPE = re.compile(r"\stype=(?![\"']?(?:module|text/css|(?:text|application)/javascript))")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a document as a document of its own; `start` is where it begins in the other."""

    start: int
    snapshot: DocumentSnapshot


def part_at(snapshot: DocumentSnapshot, offset: int) -> Part:
    """The piece around the cursor, the whole document where no other language is."""
    tree = snapshot.syntax.now() if language_of(snapshot.language_id).embedded else None
    if tree is not None:
        for probe in (offset, max(0, offset - 1)):
            for node in tree.ancestors(probe):
                part = _part(snapshot, node)
                if part is not None and _holds(part, offset):
                    return part
    return Part(0, snapshot)


def parts_in(snapshot: DocumentSnapshot, start: int, end: int) -> Iterator[Part]:
    """Every piece in another language that touches a span."""
    embedded = language_of(snapshot.language_id).embedded
    tree = snapshot.syntax.now() if embedded else None
    if tree is not None:
        for node in tree.find([outer for outer, _, _ in embedded], start, end):
            if (part := _part(snapshot, node)) is not None:
                yield part


def _part(snapshot: DocumentSnapshot, node: SyntaxNode) -> Part | None:
    for outer, inner, language_id in language_of(snapshot.language_id).embedded:
        if node.kind != outer:
            continue
        children = {child.kind: child for child in node.children}
        content = children.get(inner)
        if content is None:
            return None
        if not language_id:
            info = children.get("info_string")
            language_id = language_id_of_fence(info.text) if info is not None else PLAIN.name
        elif _OTHER_TYPE.search(children["start_tag"].text):
            return None
        return Part(
            content.start,
            DocumentSnapshot(snapshot.uri, snapshot.version, language_id, content.text),
        )
    return None


def _holds(part: Part, offset: int) -> bool:
    """Whether a cursor is in it; the line behind its last separator is not."""
    text, end = part.snapshot.text, part.start + len(part.snapshot.text)
    return part.start <= offset < end or (offset == end and not text.endswith(("\n", "\r")))
