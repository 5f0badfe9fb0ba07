"""The server: what it keeps, what it offers, and how it is started.

Capabilities and registration; each feature is a file in `features/`. A capability is registered
only if the client offered its side of it. Importing this module and answering `initialize` do not
import torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from dgemma_engine.types import InfillEngine

from . import __version__, transport
from .document import DocumentSnapshot, Encoding, ExactWorkspace
from .features import code_action, command, configuration, inline_completion
from .fill import Filler
from .rpc import ExactProtocol
from .scheduler import FillScheduler
from .settings import Settings, read_settings

if TYPE_CHECKING:  # pygls has this name for type checkers only
    from pygls.server import ServerErrors

logger = logging.getLogger(__name__)

EngineFactory = Callable[[Settings], InfillEngine]
Transport = Literal["stdio", "tcp", "ws"]

# A client that offers workspace/configuration and does not answer holds up the first fill so long.
_SETTINGS_WAIT = 2.0  # seconds


class DGemmaServer(LanguageServer):
    """State of one conversation.

    Attributes:
        settings: in force now.
        filler: the path from a hole to a text.
        settings_read: set once the client's settings are known, or known not to come.
    """

    protocol: ExactProtocol

    def __init__(self, engine_factory: EngineFactory, settings: Settings) -> None:
        super().__init__("dgemma-lsp", __version__, protocol_cls=ExactProtocol)
        self.settings = settings
        self._base_settings = settings
        self.filler = Filler(FillScheduler(lambda: engine_factory(self.settings)))
        self._engine_factory = engine_factory
        self.settings_read = asyncio.Event()
        self._told: set[str] = set()
        self.feature(types.INITIALIZE)(partial(_initialize, self))

    @property
    def encoding(self) -> Encoding:
        """The position encoding that was agreed on."""
        return self.workspace.position_encoding or types.PositionEncodingKind.Utf16

    def snapshot(self, uri: str) -> DocumentSnapshot:
        """The open document as it is now.

        Raises:
            DocumentNotOpen: answered as an invalid request.
        """
        workspace = self.workspace
        assert isinstance(workspace, ExactWorkspace)
        return workspace.get_text_document(uri).snapshot()

    def is_enabled(self, snapshot: DocumentSnapshot) -> bool:
        return snapshot.language_id not in self.settings.disabled_languages

    async def settled_settings(self) -> Settings:
        """The settings, once the client had its chance to send them."""
        if not self.settings_read.is_set():
            # Not wait_for: before Python 3.12 it may swallow the cancellation of a request.
            reading = asyncio.ensure_future(self.settings_read.wait())
            try:
                await asyncio.wait([reading], timeout=_SETTINGS_WAIT)
            finally:
                reading.cancel()
            if not self.settings_read.is_set():
                self.settings_read.set()
                logger.warning("the client did not answer workspace/configuration")
        return self.settings

    def set_base_settings(self, raw: object) -> None:
        """Take `initializationOptions`, over what the command line said."""
        self._base_settings = self._read(raw, self._base_settings)
        self._put_in_force(self._base_settings)

    def set_settings(self, raw: object) -> None:
        """Take the client's present configuration, over what it began with."""
        self._put_in_force(self._read(raw, self._base_settings))

    def _read(self, raw: object, base: Settings) -> Settings:
        settings, problems = read_settings(raw, base)
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                logger.warning("%s", problem)
                self.window_log_message(
                    types.LogMessageParams(types.MessageType.Warning, f"dgemma: {problem}")
                )
        return settings

    def _put_in_force(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        if (before.model, before.device) != (settings.model, settings.device):
            self.filler.scheduler.use(lambda: self._engine_factory(self.settings))

    def tell(self, kind: types.MessageType, message: str, *, once: bool = False) -> None:
        """Show the user a message; with `once`, not again if it was shown before."""
        if once and message in self._told:
            return
        self._told.add(message)
        self.window_show_message(types.ShowMessageParams(kind, f"dgemma: {message}"))

    def report_server_error(self, error: Exception, source: ServerErrors) -> None:
        """Log what goes wrong in a notification; nobody asked, so nobody is interrupted."""
        logger.warning("%s: %s", type(error).__name__, error)


def build_server(engine_factory: EngineFactory, settings: Settings | None = None) -> DGemmaServer:
    """A server that is ready to converse.

    Args:
        engine_factory: called on the worker's thread before the first fill, with the settings in
            force; again when the user chooses another model or device.
        settings: what the command line said; the client's settings come over it.
    """
    return DGemmaServer(engine_factory, settings or Settings())


def serve(
    engine_factory: EngineFactory,
    settings: Settings | None = None,
    *,
    transport: Transport = "stdio",
    host: str = "127.0.0.1",
    port: int = 0,
) -> int:
    """Serve one client and return the exit status.

    Does not return, but ends the process, if the engine's thread is still busy then: with a
    checkpoint that loads, or a pass that takes longer than a second.

    Args:
        transport: "stdio", "tcp" or "ws".
        host: for tcp and ws.
        port: for tcp and ws; 0 takes a free one. The address is logged.
    """
    configure_logging()
    server = build_server(engine_factory, settings)
    try:
        code = _run(server.protocol, transport, host, port)
    except KeyboardInterrupt:
        code = 130
    if not server.filler.scheduler.close():
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(protocol: ExactProtocol, kind: Transport, host: str, port: int) -> int:
    if kind == "stdio":
        return transport.run_stdio(protocol)
    if kind == "tcp":
        return transport.run_tcp(protocol, host, port)
    if kind == "ws":
        return transport.run_ws(protocol, host, port)
    raise ValueError(f'transport must be "stdio", "tcp" or "ws", got {kind!r}')


def configure_logging(level: str = "INFO") -> None:
    """Log to stderr; at the info level pygls writes whole messages, code and all."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("pygls").setLevel(logging.WARNING)


def _initialize(server: DGemmaServer, params: types.InitializeParams) -> None:
    """Register what this client can use; pygls computes the capabilities from it afterwards."""
    server.set_base_settings(params.initialization_options)
    inline_completion.register(server, params.capabilities)
    code_action.register(server, params.capabilities)
    command.register(server, params.capabilities)
    configuration.register(server, params.capabilities)
