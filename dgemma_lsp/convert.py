"""Fills in LSP's words: an InlineCompletionItem, or a WorkspaceEdit.

Fills have \\n. An inline item keeps it, the editor inserts its own; a workspace edit is written to
the document as it is, so it gets the document's separator.
"""

from __future__ import annotations

from collections.abc import Sequence

from lsprotocol import types

from .document import DocumentSnapshot, Encoding
from .hole import Hole

_ANNOTATION = "dgemma"


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
    # An editor shows an item while what it replaces begins the filter text: blanks, with us.
    covered = snapshot.text[hole.start : hole.end]
    return types.InlineCompletionItem(
        insert_text=text, range=replaced, filter_text=covered + text if covered else None
    )


def to_workspace_edit(
    snapshot: DocumentSnapshot,
    fills: Sequence[tuple[Hole, str]],
    encoding: Encoding,
    client: types.ClientCapabilities,
    *,
    author: str = "the model",
) -> types.WorkspaceEdit:
    """An edit that replaces holes in this version of the document.

    Args:
        fills: holes that do not overlap, and what goes into them.
        client: sent `documentChanges`, which it refuses once the document has moved on, if it reads
            them, and then with an annotation if it reads that; otherwise the older `changes`.
        author: who wrote it, for the annotation.
    """
    edits = [
        types.TextEdit(
            range=snapshot.range_at(hole.start, hole.end, encoding),
            new_text=hole.before + text.replace("\n", snapshot.eol) + hole.after,
        )
        for hole, text in fills
    ]
    support = client.workspace and client.workspace.workspace_edit
    if not (support and support.document_changes):
        return types.WorkspaceEdit(changes={snapshot.uri: edits})
    document = types.OptionalVersionedTextDocumentIdentifier(snapshot.uri, snapshot.version)
    if support.change_annotation_support is None:
        return types.WorkspaceEdit(document_changes=[types.TextDocumentEdit(document, [*edits])])
    annotated = [
        types.AnnotatedTextEdit(_ANNOTATION, range=edit.range, new_text=edit.new_text)
        for edit in edits
    ]
    annotation = types.ChangeAnnotation("Fill", description=f"written by {author}")
    return types.WorkspaceEdit(
        document_changes=[types.TextDocumentEdit(document, [*annotated])],
        change_annotations={_ANNOTATION: annotation},
    )
