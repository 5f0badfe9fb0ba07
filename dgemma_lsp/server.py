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
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from dgemma_engine.types import InfillEngine

from . import __version__, transport
from .document import DocumentSnapshot, Encoding, ExactWorkspace
from .features import (
    code_action,
    command,
    completion,
    configuration,
    documents,
    inline_completion,
    status,
)
from .features.ahead import EncodesAhead
from .fill import Filler
from .hole import Hole
from .ignored import holds_secrets, matches, path_of
from .memory import SuggestionMemory
from .nearby import NearbyTexts
from .postprocess import Rejection, RejectReason
from .protocol import OptIns
from .related import RelatedText
from .rpc import ExactProtocol
from .scheduler import FillScheduler, OnDeath
from .settings import Settings, engine_choice, read_project, read_settings

if TYPE_CHECKING:  # pygls has this name for type checkers only
    from pygls.server import ServerErrors

logger = logging.getLogger(__name__)

EngineFactory = Callable[[Settings, OnDeath], InfillEngine]
Transport = Literal["stdio", "tcp", "ws"]

# A client that offers workspace/configuration and does not answer holds up the first fill so long.
_SETTINGS_WAIT = 2.0  # seconds


class DGemmaServer(LanguageServer):
    """State of one conversation.

    Attributes:
        settings: in force now.
        filler: the path from a hole to a text.
        memory: what was offered lately.
        related: what is read beside the text around a hole.
        nearby: what is not read, and may be recalled from.
        encodes_ahead: what was inserted at once.
        opt_ins: which of our own notifications the client wants.
        is_switched_off: by the command `dgemma.toggle`, until it is called again.
        settings_read: set once the client's settings are known, or known not to come.
    """

    protocol: ExactProtocol

    def __init__(self, engine_factory: EngineFactory, settings: Settings) -> None:
        super().__init__(
            "dgemma-lsp",
            __version__,
            protocol_cls=ExactProtocol,
            notebook_document_sync=documents.NOTEBOOKS,
        )
        self.settings = settings
        self._base_settings = settings
        self._engine_factory = engine_factory
        self.filler = Filler(
            FillScheduler(self._build_engine), self._find_related, self._find_nearby
        )
        self.memory = SuggestionMemory()
        self.related = RelatedText()
        self.nearby = NearbyTexts()
        self.opt_ins = OptIns()
        self.encodes_ahead = EncodesAhead()
        self.is_switched_off = False
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

    def why_off(self, snapshot: DocumentSnapshot) -> Rejection | None:
        """Why nothing is filled in a document, None if something may be."""
        settings = self.settings
        if self.is_switched_off or not settings.enabled:
            detail = "it is switched off (command dgemma.toggle, setting enabled)"
        elif snapshot.language_id in settings.disabled_languages:
            detail = f"{snapshot.language_id} is in the setting disabledLanguages"
        elif holds_secrets(snapshot.uri):
            detail = "files of this name usually hold secrets, and are not read"
        elif matches(snapshot.uri, settings.ignore_globs):
            detail = "the file matches the setting ignoreGlobs"
        else:
            return None
        return Rejection(RejectReason.OFF, detail)

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

    def set_base_settings(self, raw: object, folder: Path | None) -> None:
        """Take the project's table and `initializationOptions`, over what the command line said."""
        if folder is not None:
            self._base_settings, problems = read_project(folder, self._base_settings)
            self._warn(problems)
        self._base_settings = self._read(raw, self._base_settings)
        self._put_in_force(self._base_settings)

    def set_settings(self, raw: object) -> None:
        """Take the client's present configuration, over what it began with."""
        self._put_in_force(self._read(raw, self._base_settings))

    def _read(self, raw: object, base: Settings) -> Settings:
        settings, problems = read_settings(raw, base)
        self._warn(problems)
        return settings

    def _warn(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self._told:
                self._told.add(problem)
                logger.warning("%s", problem)
                self.window_log_message(
                    types.LogMessageParams(types.MessageType.Warning, f"dgemma: {problem}")
                )

    def _put_in_force(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        if before != settings:
            self.memory.forget()
            status.tell(self)
        if engine_choice(before) != engine_choice(settings):
            self.filler.scheduler.use()

    def _build_engine(self, on_death: OnDeath) -> InfillEngine:
        return self._engine_factory(self.settings, on_death)

    def _find_related(self, snapshot: DocumentSnapshot, hole: Hole, settings: Settings) -> str:
        workspace = self.workspace
        assert isinstance(workspace, ExactWorkspace)
        others, cells = workspace.others(snapshot.uri), workspace.cells_before(snapshot.uri)
        return self.related.find(snapshot, hole, settings, others, cells)

    def _find_nearby(
        self, snapshot: DocumentSnapshot, hole: Hole, settings: Settings
    ) -> tuple[str, ...]:
        workspace = self.workspace
        assert isinstance(workspace, ExactWorkspace)
        return self.nearby.find(snapshot, hole, settings, workspace.others(snapshot.uri))

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
            force and what to call if the engine ends by itself; again when it did, and when the
            user chooses another model or device.
        settings: what the command line said; the project's and the client's come over it.
    """
    return DGemmaServer(engine_factory, settings or Settings())


def serve(
    engine_factory: EngineFactory,
    settings: Settings | None = None,
    *,
    transport: Transport = "stdio",
    host: str = "127.0.0.1",
    port: int = 0,
    trace: TextIO | None = None,
) -> int:
    """Serve one client and return the exit status.

    Does not return, but ends the process, if the engine's thread is still busy then: with a
    checkpoint that loads, or a pass that takes longer than a second.

    Args:
        transport: "stdio", "tcp" or "ws".
        host: for tcp and ws.
        port: for tcp and ws; 0 takes a free one. The address is logged.
        trace: where every message is written, one a line, code and all.
    """
    configure_logging()
    server = build_server(engine_factory, settings)
    server.protocol.trace_file = trace
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


def configure_logging(level: str = "INFO", file: str | None = None) -> None:
    """Log to stderr or a file; at the info level pygls writes whole messages, code and all.

    Raises:
        OSError: the file cannot be written.
    """
    handler = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file)
    logging.basicConfig(
        handlers=[handler],
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("pygls").setLevel(logging.WARNING)


def _initialize(server: DGemmaServer, params: types.InitializeParams) -> None:
    """Register what this client can use; pygls computes the capabilities from it afterwards."""
    folders = [folder.uri for folder in params.workspace_folders or []] or [params.root_uri or ""]
    server.opt_ins = OptIns.of(params.capabilities)
    server.set_base_settings(params.initialization_options, path_of(folders[0]))
    for feature in (
        inline_completion,
        completion,
        code_action,
        command,
        configuration,
        documents,
        status,
    ):
        feature.register(server, params.capabilities)
