"""Which brackets and quotes a hole has to leave open: those that the text behind it closes.

What stands before and behind a hole says exactly what is open at its start and what has to be open
at its end. Of 750 true texts of holes in Python packages 3 did not end so, and 14 had no answer; of
1,340 in JavaScript, TypeScript, Go, C and Rust 22, most of them comments that were cut in two.
Knows quotes, comments and indentation of a few languages and no grammar: what a parser makes of
broken text is seldom what its author means. `balance.py` holds fills to it. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

_OPENS = {")": "(", "]": "[", "}": "{"}
_CLOSES = {opening: closing for closing, opening in _OPENS.items()}
# A suffix that is longer may be cut, so that not all that it would close is seen.
_WHOLE_SUFFIX = 1500


@dataclass(frozen=True, eq=False, slots=True)
class Syntax:
    """How a language quotes and comments.

    Attributes:
        marks: finds whatever may change what is open, and escapes.
        quotes: what begins a string or a comment, and what ends it.
        strings: of these, those that may not go on behind their line.
        outer: finds lines that stand in no bracket.
        statement: what a line begins with, behind its indentation, that goes on with none.
        indented: brackets within which lines are indented more than the one that opens them.
    """

    marks: re.Pattern[str]
    quotes: dict[str, str]
    strings: tuple[str, ...]
    outer: re.Pattern[str]
    statement: re.Pattern[str]
    indented: str


PYTHON = Syntax(
    re.compile(r"\\.|\"\"\"|'''|[\"'#\n()\[\]{}]", re.DOTALL),
    {'"""': '"""', "'''": "'''", '"': '"', "'": "'", "#": "\n"},
    ('"', "'"),
    re.compile(r"^[ \t]*(?:async +def|def|class) ", re.MULTILINE),
    re.compile(r"[^\s)\]}]"),
    "([{",
)
_LIKE_C = Syntax(
    re.compile(r"\\.|//|/\*|\*/|[\"'`\n()\[\]{}]", re.DOTALL),
    {'"': '"', "'": "'", "`": "`", "//": "\n", "/*": "*/"},
    ('"', "'"),
    re.compile(r"^(?!\w+:)\w", re.MULTILINE),  # a label may stand in a function
    re.compile(r"(?!\w+:)\w"),
    "([",
)
_RUST = Syntax(
    # A quote alone begins a lifetime.
    re.compile(r"\\.|//|/\*|\*/|'(?:\\[^']+|[^'\\\n])'|[\"\n()\[\]{}]", re.DOTALL),
    {'"': '"', "//": "\n", "/*": "*/"},
    (),
    _LIKE_C.outer,
    _LIKE_C.statement,
    _LIKE_C.indented,
)
_SYNTAXES = {
    "python": PYTHON,
    "rust": _RUST,
    # Text in JSX may have apostrophes, so that it is not among these.
    **dict.fromkeys(("c", "cpp", "go", "java", "javascript", "typescript"), _LIKE_C),
}
_INDENT = re.compile(r"[ \t]*")


@dataclass(frozen=True, slots=True)
class Place:
    """What stands open somewhere.

    Attributes:
        brackets: opening ones, the outermost first.
        quote: what the string or comment began with; empty in code.
    """

    brackets: str = ""
    quote: str = ""


class Prefix(NamedTuple):
    """What a text before a hole says.

    Attributes:
        place: what stands open behind it.
        indent: of the statement that it ends in, in characters.
    """

    place: Place
    indent: int


def syntax_of(language_id: str) -> Syntax | None:
    """Of a language; None of one that is not known here."""
    return _SYNTAXES.get(language_id)


def closes_something(marks: Sequence[str]) -> bool:
    """Whether some marks may close a bracket."""
    return not _OPENS.keys().isdisjoint(marks)


def move(place: Place, marks: Sequence[str], syntax: Syntax, floor: int = 0) -> Place | None:
    """What stands open behind some marks of `Syntax.marks`.

    Args:
        floor: so many brackets, the outermost ones, are not to be closed.
    Returns:
        None if a bracket closes no other, or one of these.
    """
    brackets, quote = place.brackets, place.quote
    for mark in marks:
        if quote:
            is_line_end = mark == "\n" and quote in syntax.strings
            if is_line_end or mark in (syntax.quotes[quote], quote * 3):
                quote = ""
        elif mark in syntax.quotes:
            quote = mark
        elif mark in _CLOSES:
            brackets += mark
        elif mark in _OPENS:
            if brackets[-1:] != _OPENS[mark] or len(brackets) <= floor:
                return None
            brackets = brackets[:-1]
    return Place(brackets, quote)


@dataclass(frozen=True, slots=True)
class Nesting:
    """What stands open at a hole's start, and what has to at its end.

    Attributes:
        before: at its start.
        after: at its end.
        is_whole: nothing but that, or else more further out.
        head: the character behind it on its line, blanks not counted; empty if there is none.
        syntax: of the text.
    """

    before: Place
    after: Place
    is_whole: bool
    head: str
    syntax: Syntax

    @classmethod
    def between(cls, prefix: str, suffix: str, language_id: str) -> Nesting | None:
        """Of a hole; None in prose, in other languages and where the text makes no sense."""
        syntax = syntax_of(language_id)
        found = None if syntax is None else read_prefix(prefix, syntax)
        if syntax is None or found is None:
            return None
        before, indent = found
        if before.quote and before.quote not in syntax.strings:
            return None
        for quote in ("", before.quote) if before.quote else ("", *syntax.strings):
            after = _after(suffix, quote, indent, syntax)
            if after is not None:
                closed, is_whole = after
                head = suffix.partition("\n")[0].strip()[:1]
                return cls(before, Place(closed[::-1], quote), is_whole, head, syntax)
        return None

    @property
    def floor(self) -> int:
        """How many of the brackets around the hole the fill is not to close: the suffix does."""
        if not self.is_whole:
            return 0
        pairs = zip(self.before.brackets, self.after.brackets, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def is_end(self, place: Place) -> bool:
        """Whether the hole may end in a place."""
        quote = place.quote
        if self.syntax.quotes.get(quote) == "\n":
            quote = quote if self.head else ""
        elif quote not in self.syntax.strings:
            quote = ""  # a docstring may begin anywhere
        if quote != self.after.quote:
            return False
        if self.is_whole:
            return place.brackets == self.after.brackets
        return place.brackets.endswith(self.after.brackets)

    def fits(self, text: str) -> bool:
        """Whether a text may stand in the hole."""
        marks = self.syntax.marks.findall(text)
        place = move(self.before, marks, self.syntax, self.floor)
        return place is not None and self.is_end(place)


def last_outer(text: str, syntax: Syntax) -> int:
    """Where the last line begins that stands in no bracket; 0 if none is known to."""
    start = 0
    for line in syntax.outer.finditer(text):
        start = line.start()
    return start


def read_prefix(prefix: str, syntax: Syntax) -> Prefix | None:
    """What stands open behind a text; None if a bracket in it closes no other."""
    start = last_outer(prefix, syntax)
    place = Place()
    indents: list[int] = []  # of the lines that the brackets stand on
    indent, _ = _line(prefix, start, syntax)
    for mark in syntax.marks.finditer(prefix, start):
        was = place
        moved = move(place, [mark[0]], syntax)
        if moved is None:
            return None
        place = moved
        if len(place.brackets) > len(was.brackets):
            indents.append(indent)
        elif len(place.brackets) < len(was.brackets):
            indents.pop()
        if mark[0] == "\n" and not place.quote:
            indent, is_statement = _line(prefix, mark.end(), syntax)
            # Nobody closed it: the text is broken there, and not by this hole.
            while is_statement and indents and indents[-1] >= indent:
                if place.brackets[-1] not in syntax.indented:
                    break
                indents.pop()
                place = Place(place.brackets[:-1])
    return Prefix(place, indents[0] if indents else indent)


def _after(suffix: str, quote: str, indent: int, syntax: Syntax) -> tuple[str, bool] | None:
    """The opening brackets that a suffix closes, in this order, and whether that is all of them.

    Args:
        quote: in which it begins.
        indent: of the statement; a line that is indented no more begins another one.
    Returns:
        None if the suffix does not begin so.
    """
    place = Place(quote=quote)
    closed = ""
    for mark in syntax.marks.finditer(suffix):
        if mark[0] == "\n" and place.quote in syntax.strings:
            return None
        moved = move(place, [mark[0]], syntax)
        if moved is None:
            if place.brackets:
                return None
            closed += _OPENS[mark[0]]
        else:
            place = moved
        if mark[0] == "\n" and place == Place():
            line_indent, is_statement = _line(suffix, mark.end(), syntax)
            if is_statement and line_indent <= indent:
                return closed, True
    if place.quote in syntax.strings:
        return None
    return closed, len(suffix) < _WHOLE_SUFFIX


def _line(text: str, start: int, syntax: Syntax) -> tuple[int, bool]:
    """How far the line from there on is indented, and whether it begins a statement."""
    found = _INDENT.match(text, start)
    assert found is not None
    return found.end() - start, syntax.statement.match(text, found.end()) is not None
