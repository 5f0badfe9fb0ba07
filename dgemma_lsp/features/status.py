"""`dgemma/status`: what the server is doing, for clients that opted in.

The same object answers the command `dgemma.status`. What an engine's end means to the user is
logged in any case.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lsprotocol import types

from ..protocol import STATUS, StatusParams
from ..scheduler import EngineState, EngineStatus

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

_MESSAGES = {
    EngineState.UNLOADED: "the model is loaded when a document is opened",
    EngineState.LOADING: "loading the model",
    EngineState.READY: "ready",
    EngineState.BUSY: "filling",
}


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    last = StatusParams("ready", "", None, None, None, None, 0, {})

    def changed(status: EngineStatus) -> None:
        nonlocal last
        if not server.opt_ins.status:
            return
        params = current(server)
        if params != last:
            last = params
            server.protocol.notify(STATUS, params.to_json())

    server.filler.scheduler.on_change = changed


def tell(server: DGemmaServer) -> None:
    """Send the status if it has changed."""
    scheduler = server.filler.scheduler
    scheduler.on_change(scheduler.status)


def current(server: DGemmaServer) -> StatusParams:
    """The status as it is."""
    filler = server.filler
    status = filler.scheduler.status
    is_off = server.is_switched_off or not server.settings.enabled
    if is_off:
        state, message = "off", "switched off (command dgemma.toggle, setting enabled)"
    elif status.state is EngineState.ERROR:
        state, message = "error", status.problem or ""
    else:
        state = "ready" if status.state is EngineState.UNLOADED else status.state.value
        message = _MESSAGES[status.state]
    info = status.info
    return StatusParams(
        state=state,
        message=message,
        model=info.model if info is not None else None,
        device=info.device if info is not None else None,
        last_latency_ms=_rounded(filler.last_latency_ms),
        last_engine_ms=_rounded(filler.last_engine_ms),
        shown=filler.num_shown,
        silent={reason.value: count for reason, count in filler.rejections.items()},
    )


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 2)
