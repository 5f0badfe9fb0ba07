"""A fill closes what it opens, and nothing that others need.

One that begins in code and closes all that it opens is told from its own quotes and comments, in
the languages that the engine knows. Else it is counted in characters, so that it holds for any
language; `in_place.py` asks the grammar.
"""

from __future__ import annotations

from collections.abc import Iterator

from dgemma_engine.nesting import Place, move, syntax_of

from ..document import DocumentSnapshot
from ..hole import Hole
from .rejection import Rejection, RejectReason
from .surroundings import around, ends_line

_OPENS = {")": "(", "]": "[", "}": "{"}
_CLOSES = {opening: closing for closing, opening in _OPENS.items()}
_QUOTES = ('"', "'", '"""', "'''")


def close_brackets(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Leave a fill as it is if brackets and quotes fit in place as well as without it.

    If brackets or quotes of its own stay open at its end, and nothing but a line's end follows,
    they are closed; else it is rejected.
    """
    if is_balanced(snapshot, hole, text):
        return text
    if ends_line(snapshot, hole):
        for ending in _endings(snapshot.language_id, text):
            if is_balanced(snapshot, hole, text + ending):
                return text + ending
    return Rejection(RejectReason.UNBALANCED, "the fill leaves a bracket or a quote without other")


def is_balanced(snapshot: DocumentSnapshot, hole: Hole, text: str) -> bool:
    """Whether brackets and quotes fit with a fill in place as well as without it."""
    syntax, place = syntax_of(snapshot.language_id), _place_behind(snapshot.language_id, text)
    if syntax is not None and place is not None and not place.brackets:
        is_comment = syntax.quotes.get(place.quote) == "\n"
        if not place.quote or (is_comment and ends_line(snapshot, hole)):
            return True
    before, after = around(snapshot, hole)
    return num_unmatched(before + text + after) <= num_unmatched(before + after)


def opens_quote(snapshot: DocumentSnapshot, hole: Hole, text: str) -> bool:
    """Whether a text leaves a quote without a second one on its line that had all of them.

    `is_balanced` counts on many lines, of which one may begin within a string, or say "don't".
    """
    before, after = around(snapshot, hole)
    before, after = before.rpartition("\n")[2], after.partition("\n")[0]
    return _num_odd_quotes(before + text + after) > _num_odd_quotes(before + after)


def _place_behind(language_id: str, text: str) -> Place | None:
    """What a text that begins in code leaves open; None if nobody knows, or it closes others."""
    syntax = syntax_of(language_id)
    return None if syntax is None else move(Place(), syntax.marks.findall(text), syntax)


def _endings(language_id: str, text: str) -> Iterator[str]:
    """What may close all that a text opens."""
    place = _place_behind(language_id, text)
    # An empty string was not meant.
    if place is not None and place.quote in _QUOTES and not text.rstrip().endswith(place.quote):
        *more, last = text[text.rindex(place.quote) :].split("\n")
        own_line = "\n" + last[: len(last) - len(last.lstrip())] if more else ""
        yield own_line + place.quote + _closing(place.brackets)
    yield _closing(open_brackets(text))


def _closing(brackets: str) -> str:
    return "".join(_CLOSES[bracket] for bracket in reversed(brackets))


def num_unmatched(text: str) -> int:
    """Brackets without their other half, plus quotes without a second one."""
    stack: list[str] = []
    unmatched = 0
    for char in text:
        if char in _CLOSES:
            stack.append(char)
        elif char in _OPENS:
            if stack and stack[-1] == _OPENS[char]:
                stack.pop()
            else:
                unmatched += 1
    return unmatched + len(stack) + _num_odd_quotes(text)


def _num_odd_quotes(text: str) -> int:
    return text.count('"') % 2 + text.count("'") % 2


def open_brackets(text: str) -> str:
    """The opening brackets that `text` itself does not close, in their order."""
    stack: list[str] = []
    for char in text:
        if char in _CLOSES:
            stack.append(char)
        elif stack and stack[-1] == _OPENS.get(char):
            stack.pop()
    return "".join(stack)
