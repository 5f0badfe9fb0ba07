"""Everything in a text that waits to be filled: functions not written yet, and `<FILL>`.

`<FILL>` asks for a fill wherever it stands; a comment that holds nothing else goes with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dgemma_engine.types import HoleKind

from ..document import DocumentSnapshot
from ..languages import Language, language_of
from ..syntax import SyntaxNode
from .bodies import Body, bodies_in_braces, body_of
from .embedded import parts_in
from .line import BLANKS, role_in_line
from .types import Hole, HoleRole


def find_holes(snapshot: DocumentSnapshot, start: int = 0, end: int | None = None) -> list[Hole]:
    """Everything in a span that waits to be filled, in the order of the text; none overlap.

    That is: functions whose body is a placeholder, has a comment with TODO, FIXME or "implement" in
    it, or is empty over several lines; and `<FILL>`. An empty body is left alone where it is meant
    to be (`{}`, abstract methods, overloads, protocols, stub files). 3,000 lines take 6 to 10 ms;
    50,000 take 0.4 s, which is one for another thread.
    """
    end = len(snapshot.text) if end is None else end
    holes: list[Hole] = []
    for part in parts_in(snapshot, start, end):
        found = _holes_of_part(part.snapshot, max(0, start - part.start), end - part.start)
        holes += [hole.moved(part.start) for hole in found]
    holes += _holes_of_part(snapshot, start, end)  # behind theirs, which know the language
    chosen: list[Hole] = []
    for hole in sorted(holes, key=lambda hole: (hole.start, hole.end)):
        if not chosen or hole.start > chosen[-1].end:
            chosen.append(hole)
    return chosen


def fill_marker_at(snapshot: DocumentSnapshot, offset: int) -> Hole | None:
    """The `<FILL>` that the cursor touches."""
    bounds = snapshot.lines.bounds(snapshot.lines.line_at(offset))
    touching = (hole for hole in _fill_markers(snapshot, *bounds) if hole.start <= offset)
    return next((hole for hole in touching if offset <= hole.end), None)


def _holes_of_part(snapshot: DocumentSnapshot, start: int, end: int) -> Iterator[Hole]:
    def is_near(hole: Hole) -> bool:
        is_within = start <= hole.start and hole.end <= end
        return is_within or (hole.start < end and start < hole.end)

    yield from filter(is_near, _fill_markers(snapshot, start, end))
    for body in _unfinished_functions(snapshot, start, end):
        hole = body.hole(snapshot)
        if is_near(hole):
            yield hole


def _unfinished_functions(snapshot: DocumentSnapshot, start: int, end: int) -> Iterator[Body]:
    language, tree = language_of(snapshot.language_id), snapshot.syntax.now()
    if tree is None:
        for body in bodies_in_braces(snapshot, start, end):
            # An empty one need not be a function's.
            if (body.placeholder or body.comments) and body.is_to_do(snapshot):
                yield body
    elif not snapshot.uri.endswith(".pyi"):
        for function in tree.find(language.functions, start, end):
            found = body_of(snapshot, tree, function)
            is_to_do = found is not None and found.is_to_do(snapshot)
            if found is not None and is_to_do and not _is_stub(function, language):
                yield found


def _is_stub(function: SyntaxNode, language: Language) -> bool:
    """Whether its decorators, or its class's bases, say that there is to be no body."""
    if not language.stubs:
        return False
    words = re.compile(rf"\b(?:{'|'.join(language.stubs)})\b")
    node = function.parent
    for _ in range(3):  # the decorated function, the class's block, the class
        if node is None:
            return False
        is_head = node.kind == "decorated_definition"
        head = node.text[: function.start - node.start] if is_head else ""
        bases = node.field("superclasses")
        if words.search(head + (bases.text if bases is not None else "")):
            return True
        node = node.parent
    return False


def _fill_markers(snapshot: DocumentSnapshot, start: int, end: int) -> Iterator[Hole]:
    language, text = language_of(snapshot.language_id), snapshot.text
    if text.find("<FILL>", start, end) < 0:
        return
    opening, closing = language.block_comment
    forms = [rf"{re.escape(opening)}\s*<FILL>\s*{re.escape(closing)}"] if opening else []
    if language.line_comment:
        forms.append(rf"{re.escape(language.line_comment)}[^\S\r\n]*<FILL>[^\S\r\n]*(?=[\r\n]|$)")
    for match in re.compile("|".join([*forms, "<FILL>"])).finditer(text, start, end):
        first, last = match.start(), match.start() + len(match[0].rstrip())
        line_start = snapshot.lines.bounds(snapshot.lines.line_at(first))[0]
        line_end = snapshot.lines.bounds(snapshot.lines.line_at(last))[1]
        if (text[line_start:first] + text[last:line_end]).strip(BLANKS):
            yield Hole(first, last, HoleKind.LINE, role_in_line(snapshot, first))
        else:
            yield Hole(first, last, HoleKind.BLOCK, HoleRole.LINES)
