"""workspace/executeCommand: the same fills, for key bindings and for clients that cannot resolve.

The command takes {uri, range, version?}, fills, and has the client apply the edit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types
from pygls.exceptions import JsonRpcInvalidParams

if TYPE_CHECKING:
    from ..server import DGemmaServer

COMMAND = "dgemma.fill"


def can_apply_edits(client: types.ClientCapabilities) -> bool:
    """Whether a command can be sent by this client and its edit applied."""
    workspace = client.workspace
    return bool(workspace and workspace.execute_command and workspace.apply_edit)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    if can_apply_edits(client):
        server.command(COMMAND)(partial(execute_fill, server))


async def execute_fill(server: DGemmaServer, params: types.ExecuteCommandParams) -> bool:
    """Fill and apply; whether the document was changed."""
    from .code_action import FillTarget, compute_edit

    if not params.arguments or len(params.arguments) != 1:
        raise JsonRpcInvalidParams(f"{COMMAND} takes one argument, {{uri, range, version?}}")
    edit = await compute_edit(server, FillTarget.from_json(params.arguments[0]))
    if edit is None:
        return False
    answer = await server.workspace_apply_edit_async(
        types.ApplyWorkspaceEditParams(edit, label="Fill")
    )
    if not answer.applied:
        server.tell(types.MessageType.Warning, "the editor refused the edit; try again")
    return answer.applied
