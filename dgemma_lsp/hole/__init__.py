"""Where to fill: cursors, selections and unfinished code become Holes in character offsets.

Syntax first, lines where there is no tree (yet): no function here waits for one. Before a command
that should see it, await `snapshot.syntax.ready()`. Nothing in this package knows the engine or
LSP; `context.py` turns a hole into a request.
"""

from .bodies import body_hole
from .cursor import select_hole, selection_hole
from .documentation import docstring_hole
from .types import Hole, HoleRole
from .unfinished import find_holes

__all__ = [
    "Hole",
    "HoleRole",
    "body_hole",
    "docstring_hole",
    "find_holes",
    "select_hole",
    "selection_hole",
]
