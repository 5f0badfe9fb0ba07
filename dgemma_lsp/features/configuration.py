"""The client's settings: pulled where it offers that, taken as pushed otherwise.

Also loads the engine when the first document opens, which is when its settings are known.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from ..document import DocumentNotOpen
from ..scheduler import EngineLoadFailed
from ..settings import SECTION

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    can_pull = bool(client.workspace and client.workspace.configuration)
    if not can_pull:
        server.settings_read.set()
    server.feature(types.INITIALIZED)(partial(initialized, server, can_pull))
    server.feature(types.WORKSPACE_DID_CHANGE_CONFIGURATION)(
        partial(workspace_did_change_configuration, server, can_pull)
    )
    server.feature(types.TEXT_DOCUMENT_DID_OPEN)(partial(text_document_did_open, server))


async def initialized(
    server: DGemmaServer, can_pull: bool, params: types.InitializedParams
) -> None:
    """Read the settings, and ask to be told when they change."""
    if can_pull:
        await _pull(server)
    workspace = server.client_capabilities.workspace
    watched = workspace and workspace.did_change_configuration
    if watched and watched.dynamic_registration:
        registration = types.Registration(
            id="dgemma-configuration",
            method=types.WORKSPACE_DID_CHANGE_CONFIGURATION,
            register_options={"section": SECTION},
        )
        try:
            await server.client_register_capability_async(types.RegistrationParams([registration]))
        except JsonRpcException as error:
            logger.warning("the client will not report changed settings: %s", error)


async def workspace_did_change_configuration(
    server: DGemmaServer, can_pull: bool, params: types.DidChangeConfigurationParams
) -> None:
    """Take changed settings."""
    if can_pull:
        await _pull(server)
        return
    pushed = _as_json(params.settings)
    if isinstance(pushed, Mapping) and SECTION in pushed:
        server.set_settings(pushed[SECTION])


async def text_document_did_open(
    server: DGemmaServer, params: types.DidOpenTextDocumentParams
) -> None:
    """Load the engine, so that the first fill does not wait for it."""
    try:
        snapshot = server.snapshot(params.text_document.uri)
        await server.settled_settings()
        if server.is_enabled(snapshot):
            await server.filler.scheduler.load()
    except DocumentNotOpen:
        pass  # closed again before its turn came
    except EngineLoadFailed as error:
        logger.warning("no engine: %s", error)
        server.tell(types.MessageType.Error, str(error), once=True)


async def _pull(server: DGemmaServer) -> None:
    wanted = types.ConfigurationParams([types.ConfigurationItem(section=SECTION)])
    try:
        answers = await server.workspace_configuration_async(wanted)
        server.set_settings(_as_json(answers[0]) if answers else None)
    except JsonRpcException as error:
        logger.warning("the client's settings could not be read: %s", error)
    finally:
        server.settings_read.set()


def _as_json(value: object) -> object:
    """Plain dictionaries of what pygls made objects of."""
    if hasattr(value, "_asdict"):
        return {key: _as_json(item) for key, item in value._asdict().items()}
    return value
