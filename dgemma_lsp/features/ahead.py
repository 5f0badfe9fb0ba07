"""Text that arrives at once, an accepted suggestion above all, is encoded while nobody asks.

Its tokens are most of what is new to the next fill behind it, which then begins with its passes.
What is typed key by key is not worth that: the request for it is there as soon as the text.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lsprotocol import types

from dgemma_engine.errors import DGemmaError

from ..document import DocumentNotOpen
from ..hole import select_hole
from .quiet import why_quiet

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

# Visible characters of a change; fewer are typed, or a bracket and what the editor adds to it.
_LEAST_CHARS = 4
# A client that wants a fill right after an edit asks within this.
_PAUSE = 0.2  # seconds


class EncodesAhead:
    """Encodes what arrived last, after a pause in which nothing else did."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def note(self, server: DGemmaServer, params: types.DidChangeTextDocumentParams) -> None:
        """A document was changed; on the event loop's thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        change = params.content_changes[-1] if params.content_changes else None
        if not isinstance(change, types.TextDocumentContentChangePartial):
            return
        if len("".join(change.text.split())) < _LEAST_CHARS:
            return
        document, start, text = params.text_document, change.range.start, change.text

        def begin() -> None:
            self._task = asyncio.ensure_future(_encode(server, document, start, text))

        self._timer = asyncio.get_running_loop().call_later(_PAUSE, begin)


async def _encode(
    server: DGemmaServer,
    document: types.VersionedTextDocumentIdentifier,
    start: types.Position,
    text: str,
) -> None:
    """Encode what a fill behind a text would read, unless there is a newer version by now."""
    try:
        snapshot = server.snapshot(document.uri)
        if snapshot.version != document.version or server.why_off(snapshot) is not None:
            return
        hole = select_hole(snapshot, snapshot.offset_at(start, server.encoding) + len(text))
        if why_quiet(snapshot, hole, server.settings, server.filler.languages) is not None:
            return
        request = server.filler.request(snapshot, hole, server.settings)
        await server.filler.scheduler.encode_ahead(request)
    except (DocumentNotOpen, DGemmaError) as error:
        logger.debug("nothing was encoded ahead: %s", error)
    except Exception as error:
        # The message of an unforeseen error may quote the user's code.
        logger.warning("nothing was encoded ahead: %s", type(error).__name__)
        logger.debug("the trace", exc_info=True)
