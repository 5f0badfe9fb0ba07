"""textDocument/completion: one entry that fills, for editors without inline completions.

Off unless the setting or the client asks for it. The entry itself changes nothing: choosing it runs
the command `dgemma.fill`; resolving it, which an editor does for the entry under the cursor, shows
what would come.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types

from dgemma_engine.errors import DGemmaError

from ..document import DocumentSnapshot
from ..hole import select_hole
from ..protocol import as_json
from . import status
from .command import can_apply_edits
from .edits import FillTarget, Task

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

_LABEL = "fill here (dgemma)"


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    is_wanted = server.settings.completion == "on" or server.opt_ins.completion
    offered = client.text_document and client.text_document.completion
    if not is_wanted or not offered or not can_apply_edits(client):
        return
    server.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(resolve_provider=True))(
        partial(text_document_completion, server)
    )
    server.feature(types.COMPLETION_ITEM_RESOLVE)(partial(completion_item_resolve, server))


def text_document_completion(
    server: DGemmaServer, params: types.CompletionParams
) -> types.CompletionList:
    """The entry; the list is incomplete, so that the editor asks again for each new cursor."""
    snapshot = server.snapshot(params.text_document.uri)
    if server.why_off(snapshot) is not None:
        return types.CompletionList(is_incomplete=False, items=[])
    place = types.Range(params.position, params.position)
    data = FillTarget(snapshot.uri, place, snapshot.version).to_json()
    offset = snapshot.offset_at(params.position, server.encoding)
    word = _word_before(snapshot, offset)
    item = types.CompletionItem(
        label=_LABEL,
        kind=types.CompletionItemKind.Event,
        sort_text="￿",  # behind what language servers know for certain
        filter_text=word or _LABEL,
        text_edit=types.TextEdit(
            snapshot.range_at(offset - len(word), offset, server.encoding), word
        ),
        command=types.Command(_LABEL, Task.FILL.command, arguments=[data]),
        data=data,
    )
    return types.CompletionList(is_incomplete=True, items=[item])


async def completion_item_resolve(
    server: DGemmaServer, item: types.CompletionItem
) -> types.CompletionItem:
    """What would be filled in, as the entry's documentation; as it came if that is nothing."""
    try:
        target = FillTarget.from_json(as_json(item.data))
        snapshot = server.snapshot(target.uri)
        if snapshot.version != target.version:
            return item
        offset = snapshot.offset_at(target.range.start, server.encoding)
        hole = select_hole(snapshot, offset, cover_marker=True)
        settings = await server.settled_settings()
        # As while typing, so that moving through the menu leaves no fills behind; but whole.
        whole = dataclasses.replace(settings, min_confidence=0)
        text = await server.filler.fill(snapshot, hole, whole, while_typing=True)
    except DGemmaError as error:
        logger.warning("no preview: %s", error)
        return item
    if isinstance(text, str):
        fence = f"```{snapshot.language_id}\n{text}\n```"
        item.documentation = types.MarkupContent(types.MarkupKind.Markdown, fence)
    status.tell(server)
    return item


def _word_before(snapshot: DocumentSnapshot, offset: int) -> str:
    start = offset
    while start > 0 and (snapshot.text[start - 1].isalnum() or snapshot.text[start - 1] == "_"):
        start -= 1
    return snapshot.text[start:offset]
