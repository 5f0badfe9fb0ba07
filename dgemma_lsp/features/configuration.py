"""The client's settings: pulled where it offers that, taken as pushed otherwise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from ..protocol import as_json
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
    pushed = as_json(params.settings)
    if isinstance(pushed, Mapping) and SECTION in pushed:
        server.set_settings(pushed[SECTION])


async def _pull(server: DGemmaServer) -> None:
    wanted = types.ConfigurationParams([types.ConfigurationItem(section=SECTION)])
    try:
        answers = await server.workspace_configuration_async(wanted)
        server.set_settings(as_json(answers[0]) if answers else None)
    except JsonRpcException as error:
        logger.warning("the client's settings could not be read: %s", error)
    finally:
        server.settings_read.set()
