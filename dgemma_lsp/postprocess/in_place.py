"""The grammar as a judge: with the fill in its place the text parses no worse than it could.

How well it could is found with a name in the place of the fill, since a line that is being typed is
broken already. Where there is no grammar, or no tree yet, nothing is judged.
"""

from __future__ import annotations

from functools import lru_cache

from ..document import DocumentSnapshot
from ..hole import Hole
from ..lazy_tree import LazyTree
from ..syntax import SyntaxNode, SyntaxTree
from .rejection import Rejection, RejectReason

# Errors so far from the hole are none of its own.
_CHARS_AROUND = 4000
_ANY_NAME = "_"


def parse_in_place(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str | Rejection:
    """Reject a fill that the grammar cannot read where it stands."""
    num_errors = num_errors_in_place(snapshot, hole, text)
    if not num_errors or num_errors <= _least_errors(snapshot.syntax, hole):
        return text
    return Rejection(RejectReason.DOES_NOT_PARSE, "the text with the fill in it does not parse")


def num_errors_in_place(snapshot: DocumentSnapshot, hole: Hole, text: str) -> int:
    """How much around a hole the grammar cannot read with a text in it; 0 without a grammar."""
    tree = snapshot.syntax.now()
    if tree is None:
        return 0
    filled = tree.edited(hole.start, hole.end, hole.before + text + hole.after)
    if not filled.has_errors:
        return 0
    return len(_errors(filled, hole.start, hole.start + len(text)))


def broken_part(snapshot: DocumentSnapshot, hole: Hole, text: str) -> tuple[int, int]:
    """The span of a rejected fill to fill anew: what the grammar could not read, else all of it.

    Returns:
        offsets in `text`, half open.
    """
    tree = snapshot.syntax.now()
    if tree is None:
        return 0, len(text)
    filled = tree.edited(hole.start, hole.end, hole.before + text + hole.after)
    start = hole.start + len(hole.before)
    spans = [
        (max(0, error.start - start), min(len(text), error.end - start))
        for error in filled.errors(start, start + len(text))
        if error.start <= start + len(text) and error.end >= start
    ]
    if not spans:
        return 0, len(text)
    return min(first for first, _ in spans), max(last for _, last in spans)


@lru_cache(maxsize=4)
def _least_errors(syntax: LazyTree, hole: Hole) -> int:
    """Errors around a hole as it is, or with a name in it, whichever are fewer."""
    tree = syntax.now()
    assert tree is not None
    named = tree.edited(hole.start, hole.end, hole.before + _ANY_NAME + hole.after)
    return min(
        len(_errors(tree, hole.start, hole.end)),
        len(_errors(named, hole.start, hole.start + len(_ANY_NAME))),
    )


def _errors(tree: SyntaxTree, start: int, end: int) -> list[SyntaxNode]:
    return tree.errors(max(0, start - _CHARS_AROUND), end + _CHARS_AROUND)
