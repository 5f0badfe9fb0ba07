"""textDocument/inlineCompletion: a suggestion while typing, or silence with a reason.

Nothing that goes wrong here interrupts the user, but for an engine that cannot be loaded: that is
said once. Typing along a suggestion is answered without the engine. When the user asks, there are
alternatives.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types

from dgemma_engine.errors import DGemmaError
from dgemma_engine.types import Decoder, HoleKind

from ..convert import to_inline_completion_item
from ..document import DocumentSnapshot
from ..hole import Hole, select_hole
from ..postprocess import Rejection, RejectReason
from ..scheduler import EngineLoadFailed
from ..settings import Settings
from ..shift import shift_suggestion
from . import status
from .quiet import why_quiet
from .watch import Watch

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

# A tab stop of a snippet: $1, ${1:name}, ${1|a,b|}, and the escapes of its text.
_TAB_STOP = re.compile(r"\\([$}\\])|\$\d+|\$\{\d+(?::([^}]*)|\|([^,|]*)[^|]*\|)?\}")


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
    """One item or none while typing; alternatives, the best first, when asked for."""
    snapshot = server.snapshot(params.text_document.uri)
    items: list[types.InlineCompletionItem] = []
    try:
        items = await _suggest(server, snapshot, params)
    except EngineLoadFailed as error:
        logger.warning("no suggestion: %s", error)
        server.tell(types.MessageType.Error, str(error), once=True)
    except DGemmaError as error:
        logger.warning("no suggestion: %s", error)
    except Exception as error:
        # The message of an unforeseen error may quote the user's code; its trace is for debugging.
        logger.warning("no suggestion: %s", type(error).__name__)
        logger.debug("the trace", exc_info=True)
    status.tell(server)
    return types.InlineCompletionList(items=items)


async def _suggest(
    server: DGemmaServer, snapshot: DocumentSnapshot, params: types.InlineCompletionParams
) -> list[types.InlineCompletionItem]:
    started = time.monotonic()
    settings = await server.settled_settings()
    is_asked_for = params.context.trigger_kind is types.InlineCompletionTriggerKind.Invoked
    off = server.why_off(snapshot)
    if off is None and not is_asked_for and settings.trigger == "invoked":
        detail = "suggestions come only when they are asked for (setting trigger)"
        off = Rejection(RejectReason.OFF, detail)
    if off is not None:
        server.filler.count(snapshot, off)
        return []
    if (selected := params.context.selected_completion_info) is not None:
        return await _continue_selected(server, snapshot, selected)
    offset = snapshot.offset_at(params.position, server.encoding)
    if is_asked_for:
        await snapshot.syntax.ready()  # somebody waits for it anyway
    hole = select_hole(snapshot, offset)
    if not is_asked_for:
        if (rest := server.memory.recall(snapshot, hole)) is not None:
            elapsed = (time.monotonic() - started) * 1000
            server.filler.count_shown(snapshot, "the rest of an earlier suggestion", elapsed)
            return [to_inline_completion_item(snapshot, hole, rest, server.encoding)]
        learned = server.filler.languages
        if (quiet := why_quiet(snapshot, hole, settings, learned)) is not None:
            server.filler.count(snapshot, quiet)
            return []
    texts = await _texts(server, snapshot, hole, settings, is_asked_for=is_asked_for)
    now = server.snapshot(snapshot.uri)
    items = []
    for text in texts:
        shifted = shift_suggestion(snapshot, hole, text, now)
        if isinstance(shifted, Rejection):
            server.filler.count(snapshot, shifted)
            continue
        items.append(to_inline_completion_item(now, *shifted, server.encoding))
    for text in reversed(texts):  # the best one is recalled first
        server.memory.remember(snapshot, hole, text)
    return items


async def _texts(
    server: DGemmaServer,
    snapshot: DocumentSnapshot,
    hole: Hole,
    settings: Settings,
    *,
    is_asked_for: bool,
) -> list[str]:
    """The texts to offer, the best first: one while typing, several different ones when asked."""
    watch = Watch(server)
    most = settings.alternatives if is_asked_for else 1
    async with watch.of(snapshot, hole) as on_step:
        outcome = await server.filler.fill_several(
            snapshot, hole, settings, most, while_typing=not is_asked_for, on_step=on_step
        )
    texts = outcome if isinstance(outcome, list) else []
    if most == 1 or len(texts) > 1:
        return texts
    # The engine knows of no other likely texts: from other noise, half as many again as wanted.
    for number in range(1, most + most // 2 + 1):
        if len(texts) == most:
            break
        seed = settings.seed + number
        variant = dataclasses.replace(settings, decoder=Decoder.DIFFUSION.value, seed=seed)
        async with watch.of(snapshot, hole) as on_step:
            other = await server.filler.fill(
                snapshot, hole, variant, while_typing=False, on_step=on_step
            )
        if isinstance(other, str) and other not in texts:
            texts.append(other)
    return texts


async def _continue_selected(
    server: DGemmaServer, snapshot: DocumentSnapshot, selected: types.SelectedCompletionInfo
) -> list[types.InlineCompletionItem]:
    """A suggestion that begins with the entry chosen in the completion menu, as LSP demands.

    An entry that is a snippet is continued as the text it leaves before its first tab stop.
    """
    start = snapshot.offset_at(selected.range.start, server.encoding)
    end = snapshot.offset_at(selected.range.end, server.encoding)
    head, tail = _plain_snippet(selected.text)
    accepted = snapshot.text[:start] + head + tail + snapshot.text[end:]
    preview = DocumentSnapshot(snapshot.uri, snapshot.version, snapshot.language_id, accepted)
    cursor = start + len(head)
    hole = Hole(cursor, cursor, HoleKind.LINE)
    text = await server.filler.fill(preview, hole, server.settings, while_typing=True)
    if isinstance(text, Rejection):
        return []
    if server.snapshot(snapshot.uri).text != snapshot.text:
        stale = Rejection(RejectReason.STALE, "the document changed under the menu")
        server.filler.count(snapshot, stale)
        return []
    return [types.InlineCompletionItem(insert_text=head + text + tail, range=selected.range)]


def _plain_snippet(text: str) -> tuple[str, str]:
    """The text of a completion entry before and behind its first tab stop, tab stops left out.

    An entry without any is not a snippet, and comes back as it is.
    """
    stops = [match for match in _TAB_STOP.finditer(text) if not match[1]]
    if not stops:
        return text, ""

    def plain(part: str) -> str:
        return _TAB_STOP.sub(lambda match: match[1] or match[2] or match[3] or "", part)

    return plain(text[: stops[0].start()]), plain(text[stops[0].end() :])
