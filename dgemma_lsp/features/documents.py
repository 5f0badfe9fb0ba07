"""Documents that open and close: the engine is loaded for the first, nothing is kept of the last.

pygls keeps the texts, of notebooks' cells too; a cell is a document of its own, and the cells
before it are read as context.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types

from dgemma_engine.types import HoleKind

from ..document import DocumentNotOpen, DocumentSnapshot
from ..hole import Hole
from ..scheduler import EngineLoadFailed

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

NOTEBOOKS = types.NotebookDocumentSyncOptions(
    notebook_selector=[types.NotebookDocumentFilterWithNotebook(notebook="*")]
)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    server.feature(types.TEXT_DOCUMENT_DID_OPEN)(partial(text_document_did_open, server))
    server.feature(types.TEXT_DOCUMENT_DID_CHANGE)(partial(text_document_did_change, server))
    server.feature(types.TEXT_DOCUMENT_DID_SAVE)(partial(text_document_did_save, server))
    server.feature(types.TEXT_DOCUMENT_DID_CLOSE)(partial(text_document_did_close, server))
    server.feature(types.NOTEBOOK_DOCUMENT_DID_OPEN)(partial(notebook_document_did_open, server))


async def text_document_did_open(
    server: DGemmaServer, params: types.DidOpenTextDocumentParams
) -> None:
    """Load the engine, so that the first fill does not wait for it."""
    server.related.forget(params.text_document.uri)  # versions begin anew
    await _load(server, params.text_document.uri)


async def text_document_did_save(
    server: DGemmaServer, params: types.DidSaveTextDocumentParams
) -> None:
    """Look for the project's files again: other programs may have changed them."""
    with contextlib.suppress(DocumentNotOpen):
        await _read_project(server, server.snapshot(params.text_document.uri))


async def notebook_document_did_open(
    server: DGemmaServer, params: types.DidOpenNotebookDocumentParams
) -> None:
    """As for a text."""
    if params.cell_text_documents:
        await _load(server, params.cell_text_documents[0].uri)


def text_document_did_change(
    server: DGemmaServer, params: types.DidChangeTextDocumentParams
) -> None:
    """Withdraw what runs while typing, unless the fill may begin with what was typed meanwhile.

    What came at once is encoded when there is time.
    """
    if not all(map(_is_typed, params.content_changes)):
        server.filler.scheduler.withdraw(params.text_document.uri, "the document was edited")
    server.encodes_ahead.note(server, params)


def _is_typed(change: types.TextDocumentContentChangeEvent) -> bool:
    if not isinstance(change, types.TextDocumentContentChangePartial):
        return False
    return bool(change.text) and change.range.start == change.range.end


def text_document_did_close(server: DGemmaServer, params: types.DidCloseTextDocumentParams) -> None:
    """Withdraw what runs for the document, and forget what was offered in it."""
    uri = params.text_document.uri
    for keeper in (server.filler, server.memory, server.related, server.nearby):
        keeper.forget(uri)


async def _load(server: DGemmaServer, uri: str) -> None:
    try:
        snapshot = server.snapshot(uri)
        await server.settled_settings()
        if server.why_off(snapshot) is None:
            await server.filler.scheduler.load()
            await _read_project(server, snapshot)
    except DocumentNotOpen:
        pass  # closed again before its turn came
    except EngineLoadFailed as error:
        logger.warning("no engine: %s", error)
        server.tell(types.MessageType.Error, str(error), once=True)


async def _read_project(server: DGemmaServer, snapshot: DocumentSnapshot) -> None:
    """Read what a model that recalls may recall from, and have the engine tokenize it."""
    if not server.filler.recalls or server.why_off(snapshot) is not None:
        return
    await server.nearby.read_project(snapshot, server.settings)
    hole = Hole(len(snapshot.text), len(snapshot.text), HoleKind.LINE)
    await server.filler.scheduler.encode_ahead(
        server.filler.request(snapshot, hole, server.settings)
    )
