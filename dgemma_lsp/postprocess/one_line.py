"""A hole within a line takes no second line."""

from __future__ import annotations

from dgemma_engine.types import HoleKind

from ..document import DocumentSnapshot
from ..hole import Hole


def keep_one_line(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str:
    """Cut the fill of a LINE hole at its first newline."""
    return text.partition("\n")[0] if hole.kind is HoleKind.LINE else text
