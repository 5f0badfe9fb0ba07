"""Bodies of functions and blocks that are not written yet.

Not written is a body with nothing in it but blanks, comments, documentation, or a placeholder of
its language (`pass`, `todo!()`, `throw new Error("not implemented")`). Trees find the bodies;
without one, braces do. `unfinished.py` lists those of a whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dgemma_engine.types import HoleKind

from ..document import DocumentSnapshot
from ..languages import Language, Layout, language_of
from ..syntax import SyntaxNode, SyntaxTree
from .embedded import part_at
from .line import BLANKS, is_comment
from .types import Hole, HoleRole

# A body with more characters is written, whatever they are.
_MAX_CHARS = 2000
# Blank lines and comments that are looked through for the end or the head of a body.
_MAX_LINES = 20
# Lines before and after a body that show how the file is indented.
_INDENT_LINES = 200

_TO_DO = re.compile(r"\b(?:todo|fixme|implement)", re.I)
# A comment that says no more than that something is missing; it goes when the code comes.
_BARE_TO_DO = re.compile(
    r"\W*(?:(?:todo|fixme)(?:\([^)]*\))?)?\W*(?:implement(?:ed)?(?:\s+(?:this|me|it))?)?\W*", re.I
)
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Body:
    """A body that is not written yet.

    Attributes:
        start, end: what can be replaced, without documentation and what encloses it.
        header: an offset in the line that the body's end is indented like.
        sibling: an offset in a line of the body, if it has one, else None.
        comments: spans of those between start and end.
        placeholder: its span, None where there is none.
        is_closed: whether a bracket or a word closes it.
    """

    start: int
    end: int
    header: int
    sibling: int | None
    comments: tuple[tuple[int, int], ...]
    placeholder: tuple[int, int] | None
    is_closed: bool

    @property
    def is_empty(self) -> bool:
        return self.placeholder is None

    def hole(self, snapshot: DocumentSnapshot) -> Hole:
        """The hole that takes the whole body; comments that say something stay above it."""
        text, line_at = snapshot.text, snapshot.lines.line_at
        kept = [span for span in self.comments if not _BARE_TO_DO.fullmatch(text, *span)]
        first_code = self.placeholder[0] if self.placeholder else self.end
        above = [span for span in kept if span[1] <= first_code]
        is_followed = len(above) < len(kept)
        start = above[-1][1] if above else self.start
        end = self.placeholder[1] if self.placeholder and is_followed else self.end
        core = text[start:end]
        first, last = end - len(core.lstrip()), start + len(core.rstrip())
        indentation = self._indentation(snapshot, above[-1][0] if above else self.sibling)
        before, after = snapshot.eol + indentation, ""
        if core.strip():
            if not text[snapshot.lines.bounds(line_at(first))[0] : first].strip(BLANKS):
                start, before = first, ""
            shares_line = self.is_closed and line_at(last) == line_at(self.end)
            end = last
        else:
            shares_line = self.is_closed and line_at(start) == line_at(self.end)
            if not self.is_closed:
                end = start
            elif not shares_line:
                end = max(start, snapshot.lines.bounds(line_at(self.end) - 1)[1])
        if shares_line and not is_followed:
            end, after = self.end, snapshot.eol + line_indentation(snapshot, self.header)
        return Hole(start, end, HoleKind.BLOCK, HoleRole.BODY, before, after)

    def is_to_do(self, snapshot: DocumentSnapshot) -> bool:
        """Whether it looks unfinished by itself, rather than empty on purpose."""
        if self.placeholder or any(_TO_DO.search(snapshot.text, *span) for span in self.comments):
            return True
        lines = snapshot.lines
        is_open = not self.is_closed or lines.line_at(self.start) != lines.line_at(self.end)
        return is_open and not self.comments

    def _indentation(self, snapshot: DocumentSnapshot, sibling: int | None) -> str:
        if sibling is not None:
            line_start = snapshot.lines.bounds(snapshot.lines.line_at(sibling))[0]
            if not snapshot.text[line_start:sibling].strip(BLANKS):
                return snapshot.text[line_start:sibling]
        return line_indentation(snapshot, self.header) + indent_unit(snapshot, self.header)


def body_hole(snapshot: DocumentSnapshot, offset: int) -> Hole | None:
    """The body of the innermost function or block around the cursor.

    None where it is written already, or there is none.
    """
    part = part_at(snapshot, offset)
    body = body_at(part.snapshot, offset - part.start)
    return None if body is None else body.hole(part.snapshot).moved(part.start)


def body_at(snapshot: DocumentSnapshot, offset: int) -> Body | None:
    """The innermost body around the cursor, if it is not written yet; in one language."""
    language, tree = language_of(snapshot.language_id), snapshot.syntax.now()
    if tree is None:
        return _body_by_signs(snapshot, offset, language)
    innermost: tuple[int, int, Body | None] | None = None
    for probe in _probes(snapshot, offset):
        for node in tree.ancestors(probe):
            interior = _interior(snapshot, node, language)
            if interior is None:
                continue
            start, reach = interior.header, interior.reach
            if not start <= offset <= reach:
                continue
            if innermost is None or reach - start < innermost[1] - innermost[0]:
                innermost = start, reach, _body(snapshot, tree, interior, language)
            break
    return innermost[2] if innermost is not None else None


def body_of(snapshot: DocumentSnapshot, tree: SyntaxTree, node: SyntaxNode) -> Body | None:
    """The body of a function's node, if it is not written yet."""
    language = language_of(snapshot.language_id)
    interior = _interior(snapshot, node, language)
    return _body(snapshot, tree, interior, language) if interior is not None else None


def bodies_in_braces(snapshot: DocumentSnapshot, start: int, end: int) -> Iterator[Body]:
    """Unwritten bodies where there is no tree: between two braces with none between them."""
    language = language_of(snapshot.language_id)
    if language.layout is Layout.BRACES:
        for match in _BRACES.finditer(snapshot.text, start, end):
            if (body := _body_in_braces(snapshot, match, language)) is not None:
                yield body


def line_indentation(snapshot: DocumentSnapshot, offset: int) -> str:
    """The blanks that begin the line around `offset`."""
    line = snapshot.lines.line_text(snapshot.lines.line_at(offset))[:_MAX_CHARS]
    return line[: len(line) - len(line.lstrip(BLANKS))]


def indent_unit(snapshot: DocumentSnapshot, offset: int) -> str:
    """One level of indentation as the lines around `offset` have it, or as is usual."""
    here = snapshot.lines.line_at(offset)
    last, steps = 0, []
    for number in range(
        max(0, here - _INDENT_LINES), min(len(snapshot.lines), here + _INDENT_LINES)
    ):
        start, end = snapshot.lines.bounds(number)
        line = snapshot.text[start : min(end, start + 200)]
        if line.startswith("\t"):
            return "\t"
        if text := line.lstrip(BLANKS):
            depth = len(line) - len(text)
            # One space more is the star of a comment, and many are a continued line.
            if 2 <= depth - last <= 8 and not text.startswith("*"):
                steps.append(depth - last)
            last = depth
    return " " * min(steps) if steps else language_of(snapshot.language_id).indent


@dataclass(frozen=True, slots=True)
class _Interior:
    """A body, written or not: where its head begins, the span inside, how far a cursor is in it."""

    header: int
    start: int
    end: int
    reach: int
    sibling: int | None = None


def _interior(snapshot: DocumentSnapshot, node: SyntaxNode, language: Language) -> _Interior | None:
    """The body that `node` is or has."""
    if language.layout is Layout.END:
        return _interior_to_end(node) if node.kind in language.bodies else None
    owner, body = node, node.field("body") or node.field("consequence")
    if node.kind in language.bodies:
        owner, body = node.parent or node, node
    if body is None or body.kind not in language.bodies:
        return None
    if language.layout is Layout.INDENTATION:
        return _interior_by_indentation(snapshot, owner, body, language)
    start, end = body.start, body.end
    if not (snapshot.text.startswith("{", start) and snapshot.text.startswith("}", end - 1)):
        return None
    if end - start < 2:
        return None
    owner = body if owner.is_error else owner
    return _Interior(owner.start, start + 1, end - 1, owner.end)


def _interior_to_end(node: SyntaxNode) -> _Interior | None:
    """From the last of the head to the word `end`."""
    body = node.field("body")
    start = None
    for child in node.children:
        if child.kind == "end" and not child.is_missing and start is not None:
            return _Interior(node.start, start, child.start, node.end)
        is_inside = body is not None and child.start >= body.start
        if not is_inside and child.kind != "comment":
            start = child.end
    return None


def _interior_by_indentation(
    snapshot: DocumentSnapshot, owner: SyntaxNode, body: SyntaxNode, language: Language
) -> _Interior | None:
    """From the colon to the end of the statements, and of the comments below them."""
    if owner.is_error:  # it may have any number of children
        return None
    colons = [child for child in owner.children if child.kind == ":" and child.start < body.end]
    if not colons:
        return None
    start, end = colons[-1].end, max(colons[-1].end, body.end)
    sibling, first = None, body.first_named
    if first is not None and (string := documentation_of(body)) is not None:
        start, sibling = string.end, string.start
    if end > start and snapshot.text[start:end].strip() and end - start > _MAX_CHARS:
        return _Interior(owner.start, start, end, end, sibling)
    header = len(line_indentation(snapshot, owner.start))
    lines, last = snapshot.lines, snapshot.lines.line_at(end)
    if is_comment(snapshot, snapshot.text[end : lines.bounds(last)[1]]):
        end = lines.bounds(last)[1]
    reach = end
    for number in range(last + 1, min(len(lines), last + _MAX_LINES)):
        line = lines.line_text(number)
        if line.strip():
            depth = len(line) - len(line.lstrip(BLANKS))
            if depth <= header or not is_comment(snapshot, line):
                break
            end = lines.bounds(number)[1]
        reach = lines.bounds(number)[1]
    is_written = bool(body.text.strip()) and sibling is None
    return _Interior(owner.start, start, end, end if is_written else reach, sibling)


def documentation_of(body: SyntaxNode) -> SyntaxNode | None:
    """The string that is the first statement."""
    first = body.first_named
    string = first.first_named if first is not None and first.kind.startswith("expr") else first
    return string if string is not None and string.kind == "string" else None


def _body(
    snapshot: DocumentSnapshot, tree: SyntaxTree, interior: _Interior, language: Language
) -> Body | None:
    """What an interior is if nothing is written in it, else None."""
    start, end = interior.start, interior.end
    if end - start > _MAX_CHARS:
        return None
    comments: tuple[tuple[int, int], ...] = ()
    signs = (language.line_comment, language.block_comment[0])
    if any(sign and snapshot.text.find(sign, start, end) >= 0 for sign in signs):
        comments = tuple(
            (node.start, node.start + len(node.text.rstrip()))
            for node in tree.find(language.comments, start, end)
            if start <= node.start and node.end <= end + 1
        )
    return _unwritten(snapshot, interior, comments, language)


def _unwritten(
    snapshot: DocumentSnapshot,
    interior: _Interior,
    comments: tuple[tuple[int, int], ...],
    language: Language,
) -> Body | None:
    start, end = interior.start, interior.end
    code = snapshot.text[start:end]
    for first, last in comments:
        code = code[: first - start] + " " * (last - first) + code[last - start :]
    words, placeholder = code.strip(), None
    if words:
        if not language.placeholder.fullmatch(words):
            return None
        first = start + len(code) - len(code.lstrip())
        placeholder = first, first + len(words)
    is_closed = language.layout is not Layout.INDENTATION
    return Body(start, end, interior.header, interior.sibling, comments, placeholder, is_closed)


def _probes(snapshot: DocumentSnapshot, offset: int) -> Iterator[int]:
    """Where the tree is asked for what is around the cursor: a blank line is around nothing."""
    yield offset
    if offset > 0:
        yield offset - 1
    lines = snapshot.lines
    number = lines.line_at(offset)
    for above in range(number, max(-1, number - _MAX_LINES), -1):
        line = lines.line_text(above)
        if line.strip() and not is_comment(snapshot, line):
            if above < number:
                yield lines.bounds(above)[0] + len(line.rstrip()) - 1
            return


def _body_by_signs(snapshot: DocumentSnapshot, offset: int, language: Language) -> Body | None:
    """Without a tree: between two braces with none between them, or below a line with a colon."""
    text = snapshot.text
    if language.layout is Layout.BRACES:
        start = text.rfind("{", max(0, offset - _MAX_CHARS), offset)
        if start >= 0 and (match := _BRACES.match(text, start, start + _MAX_CHARS)) is not None:
            return _body_in_braces(snapshot, match, language) if offset < match.end() else None
    if language.layout is Layout.INDENTATION:
        lines, number = snapshot.lines, snapshot.lines.line_at(offset)
        above, below = lines.line_text(max(0, number - 1)), ""
        for following in range(number + 1, min(len(lines), number + _MAX_LINES)):
            if below := lines.line_text(following):
                break
        header = lines.bounds(max(0, number - 1))
        depth = len(line_indentation(snapshot, header[0]))
        is_next_out = len(below) - len(below.lstrip(BLANKS)) <= depth
        if above.rstrip().endswith(":") and not lines.line_text(number).strip() and is_next_out:
            return Body(header[1], header[1], header[0], None, (), None, False)
    return None


def _body_in_braces(
    snapshot: DocumentSnapshot, match: re.Match[str], language: Language
) -> Body | None:
    start, end = match.span(1)
    opening, closing = language.block_comment
    signs = [rf"{re.escape(opening)}[\s\S]*?{re.escape(closing)}"] if opening else []
    signs += [rf"{re.escape(language.line_comment)}[^\r\n]*"] if language.line_comment else []
    found = re.compile("|".join(signs) or "(?!)").finditer(snapshot.text, start, end)
    comments = tuple(comment.span() for comment in found)
    interior = _Interior(match.start(), start, end, match.end())
    return _unwritten(snapshot, interior, comments, language)
