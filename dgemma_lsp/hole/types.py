"""What a hole is. `cursor.py` is the first to make some."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from dgemma_engine.types import HoleKind


class HoleRole(str, Enum):
    """What a fill is in its language; the kind says how many lines it may have."""

    REST_OF_LINE = "rest_of_line"
    LINES = "lines"  # whole lines where there is nothing
    BODY = "body"  # all statements of a function or block
    ARGUMENTS = "arguments"  # what is missing of a list of arguments or parameters
    EXPRESSION = "expression"  # one operand, value or element
    SELECTION = "selection"
    CODE_FROM_COMMENT = "code_from_comment"  # what the comment before it says
    DOCSTRING = "docstring"  # the words, not what encloses them


_ROLES = {
    HoleKind.LINE: HoleRole.REST_OF_LINE,
    HoleKind.BLOCK: HoleRole.LINES,
    HoleKind.SELECTION: HoleRole.SELECTION,
}


@dataclass(frozen=True, slots=True)
class Hole:
    """What is to be replaced: `text[start:end]`, half open; `start == end` inserts.

    The text becomes `text[:start] + before + fill + after + text[end:]`.

    Attributes:
        kind: how many lines the fill may have.
        role: what it is; where not said, what follows from the kind.
        before: put in front of the fill, with the document's separators, and read by the model at
            the end of its prefix: the newline and indentation of a body, the opening quotes.
        after: the same behind it.

    Raises:
        ValueError: at construction, if the offsets are not 0 <= start <= end.
    """

    start: int
    end: int
    kind: HoleKind
    role: HoleRole = None  # type: ignore[assignment]
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a hole needs 0 <= start <= end, got {self.start}, {self.end}")
        if self.role is None:
            object.__setattr__(self, "role", _ROLES[self.kind])

    def moved(self, num_chars: int) -> Hole:
        """The same hole in a text that has so many characters more in front of it."""
        return replace(self, start=self.start + num_chars, end=self.end + num_chars)
