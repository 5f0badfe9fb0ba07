"""textDocument/inlineCompletion: a suggestion while typing, or silence with a reason in the log.

Nothing that goes wrong here interrupts the user, but for an engine that cannot be loaded: that is
said once.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types

from dgemma_engine.errors import DGemmaError
from dgemma_engine.types import HoleKind

from ..convert import to_inline_completion_item
from ..document import DocumentSnapshot
from ..hole import Hole, select_hole
from ..postprocess import Rejection, RejectReason
from ..scheduler import EngineLoadFailed
from ..shift import shift_suggestion

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    if client.text_document is None or client.text_document.inline_completion is None:
        return
    # Without options pygls advertises nothing.
    server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())(
        partial(text_document_inline_completion, server)
    )


async def text_document_inline_completion(
    server: DGemmaServer, params: types.InlineCompletionParams
) -> types.InlineCompletionList:
    """One item or none."""
    snapshot = server.snapshot(params.text_document.uri)
    try:
        item = await _suggest(server, snapshot, params)
    except EngineLoadFailed as error:
        logger.warning("no suggestion: %s", error)
        server.tell(types.MessageType.Error, str(error), once=True)
        item = None
    except DGemmaError as error:
        logger.warning("no suggestion: %s", error)
        item = None
    except Exception as error:
        # The message of an unforeseen error may quote the user's code; its trace is for debugging.
        logger.warning("no suggestion: %s", type(error).__name__)
        logger.debug("the trace", exc_info=True)
        item = None
    return types.InlineCompletionList(items=[] if item is None else [item])


async def _suggest(
    server: DGemmaServer, snapshot: DocumentSnapshot, params: types.InlineCompletionParams
) -> types.InlineCompletionItem | None:
    settings = await server.settled_settings()
    if not server.is_enabled(snapshot):
        return None
    if (selected := params.context.selected_completion_info) is not None:
        return await _continue_selected(server, snapshot, selected)
    hole = select_hole(snapshot, snapshot.offset_at(params.position, server.encoding))
    text = await server.filler.fill(snapshot, hole, settings, while_typing=True)
    if isinstance(text, Rejection):
        return None
    now = server.snapshot(snapshot.uri)
    shifted = shift_suggestion(snapshot, hole, text, now)
    if isinstance(shifted, Rejection):
        server.filler.count(shifted)
        return None
    return to_inline_completion_item(now, *shifted, server.encoding)


async def _continue_selected(
    server: DGemmaServer, snapshot: DocumentSnapshot, selected: types.SelectedCompletionInfo
) -> types.InlineCompletionItem | None:
    """A suggestion that begins with the entry chosen in the completion menu, as LSP demands."""
    start = snapshot.offset_at(selected.range.start, server.encoding)
    end = snapshot.offset_at(selected.range.end, server.encoding)
    accepted = snapshot.text[:start] + selected.text + snapshot.text[end:]
    preview = DocumentSnapshot(snapshot.uri, snapshot.version, snapshot.language_id, accepted)
    cursor = start + len(selected.text)
    hole = Hole(cursor, cursor, HoleKind.LINE)
    text = await server.filler.fill(preview, hole, server.settings, while_typing=True)
    if isinstance(text, Rejection):
        return None
    if server.snapshot(snapshot.uri).text != snapshot.text:
        server.filler.count(Rejection(RejectReason.STALE, "the document changed under the menu"))
        return None
    return types.InlineCompletionItem(insert_text=selected.text + text, range=selected.range)
