"""Fills in LSP's words: an InlineCompletionItem, or a WorkspaceEdit.

Fills have \\n. An inline item keeps it, the editor inserts its own; a workspace edit is written to
the document as it is, so it gets the document's separator.
"""

from __future__ import annotations

from lsprotocol import types

from .document import DocumentSnapshot, Encoding
from .hole import Hole


def to_inline_completion_item(
    snapshot: DocumentSnapshot, hole: Hole, text: str, encoding: Encoding
) -> types.InlineCompletionItem:
    """An item that replaces the hole.

    Raises:
        ValueError: if the hole spans lines; LSP wants an inline item's range on one line.
    """
    replaced = snapshot.range_at(hole.start, hole.end, encoding)
    if replaced.start.line != replaced.end.line:
        raise ValueError(
            f"an inline item replaces within one line, got lines {replaced.start.line + 1} to "
            f"{replaced.end.line + 1}"
        )
    return types.InlineCompletionItem(insert_text=text, range=replaced)


def to_workspace_edit(
    snapshot: DocumentSnapshot,
    hole: Hole,
    text: str,
    encoding: Encoding,
    *,
    versioned: bool,
) -> types.WorkspaceEdit:
    """An edit that replaces the hole in this version of the document.

    Args:
        versioned: send `documentChanges`, which a client refuses once the document has moved on;
            otherwise the older `changes`.
    """
    replaced = snapshot.range_at(hole.start, hole.end, encoding)
    new_text = hole.before + text.replace("\n", snapshot.eol) + hole.after
    edit = types.TextEdit(range=replaced, new_text=new_text)
    if not versioned:
        return types.WorkspaceEdit(changes={snapshot.uri: [edit]})
    document = types.OptionalVersionedTextDocumentIdentifier(snapshot.uri, snapshot.version)
    return types.WorkspaceEdit(document_changes=[types.TextDocumentEdit(document, [edit])])
