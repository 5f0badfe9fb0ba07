"""A fill closes what it opens, and nothing that others need.

Counted in characters, so that it holds for any language; `in_place.py` asks the grammar.
"""

from __future__ import annotations

from ..document import DocumentSnapshot
from ..hole import Hole
from .rejection import Rejection, RejectReason

# The text around the hole that is looked at: enough for a call over some lines.
_CHARS_BEFORE, _CHARS_AFTER = 4000, 2000

_OPENS = {")": "(", "]": "[", "}": "{"}
_CLOSES = {opening: closing for closing, opening in _OPENS.items()}


def close_brackets(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Leave a fill as it is if brackets and quotes fit in place as well as without it.

    If brackets of its own stay open at its end, and nothing but a line's end follows, they are
    closed; else it is rejected.
    """
    before, after = _around(snapshot, hole)
    allowed = num_unmatched(before + after)
    if is_balanced(snapshot, hole, text):
        return text
    if after[:1] in ("", "\n", "\r"):
        closed = text + "".join(_CLOSES[bracket] for bracket in reversed(open_brackets(text)))
        if num_unmatched(before + closed + after) <= allowed:
            return closed
    return Rejection(RejectReason.UNBALANCED, "the fill leaves a bracket or a quote without other")


def is_balanced(snapshot: DocumentSnapshot, hole: Hole, text: str) -> bool:
    """Whether brackets and quotes fit with a fill in place as well as without it."""
    before, after = _around(snapshot, hole)
    return num_unmatched(before + text + after) <= num_unmatched(before + after)


def opens_quote(snapshot: DocumentSnapshot, hole: Hole, text: str) -> bool:
    """Whether a text leaves a quote without a second one on its line that had all of them.

    `is_balanced` counts on many lines, of which one may begin within a string, or say "don't".
    """
    before, after = _around(snapshot, hole)
    before, after = before.rpartition("\n")[2], after.partition("\n")[0]
    return _num_odd_quotes(before + text + after) > _num_odd_quotes(before + after)


def _around(snapshot: DocumentSnapshot, hole: Hole) -> tuple[str, str]:
    before = snapshot.text[max(0, hole.start - _CHARS_BEFORE) : hole.start] + hole.before
    after = hole.after + snapshot.text[hole.end : hole.end + _CHARS_AFTER]
    return before, after


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


def open_brackets(text: str) -> list[str]:
    """The opening brackets that `text` itself does not close, in their order."""
    stack: list[str] = []
    for char in text:
        if char in _CLOSES:
            stack.append(char)
        elif stack and stack[-1] == _OPENS.get(char):
            stack.pop()
    return stack
