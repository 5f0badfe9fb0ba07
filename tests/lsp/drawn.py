"""Text with places drawn in it: `║` is the cursor, `«` and `»` enclose a hole or a selection."""

from __future__ import annotations

from dgemma_lsp.document import DocumentSnapshot
from dgemma_lsp.syntax import SyntaxTree


def read_cursor(drawn: str) -> tuple[str, int]:
    """The text and the cursor's character offset."""
    offset = drawn.index("║")
    return drawn.replace("║", ""), offset


def read_span(drawn: str) -> tuple[str, int, int]:
    """The text and the character offsets of what is enclosed."""
    start = drawn.index("«")
    end = drawn.index("»") - 1
    return drawn.replace("«", "").replace("»", ""), start, end


def draw_span(text: str, start: int, end: int) -> str:
    return f"{text[:start]}«{text[start:end]}»{text[end:]}"


def snapshot(text: str, language_id: str = "python") -> DocumentSnapshot:
    return DocumentSnapshot("file:///a.py", 1, language_id, text)


def nodes_of(tree: SyntaxTree) -> list[tuple[str, int, int, bool]]:
    """Every node of a tree: kind, start, end, and whether it is an unreadable or missing one."""
    nodes = tree.nodes(0, len(tree.source.text))
    return [(node.kind, node.start, node.end, node.is_error or node.is_missing) for node in nodes]
