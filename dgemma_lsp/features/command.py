"""workspace/executeCommand: the same fills, for key bindings and for clients that cannot resolve.

The commands that fill take {uri, range, version?} and have the client apply the edit; the others
tell and switch. Each takes one object, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lsprotocol import converters, types
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from dgemma_engine.errors import DGemmaError

from ..hole import select_hole
from ..protocol import as_json
from ..rpc import RequestFailed
from . import status
from .edits import FillTarget, Task, compute_edit

if TYPE_CHECKING:
    from ..server import DGemmaServer

_converter = converters.get_converter()


def can_apply_edits(client: types.ClientCapabilities) -> bool:
    """Whether a command can be sent by this client and its edit applied."""
    workspace = client.workspace
    return bool(workspace and workspace.execute_command and workspace.apply_edit)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    if not (client.workspace and client.workspace.execute_command):
        return
    if can_apply_edits(client):
        for task in Task:
            server.command(task.command)(partial(execute_fill, server, task))
    server.command("dgemma.explainLast")(partial(explain_last, server))
    server.command("dgemma.context")(partial(show_context, server))
    server.command("dgemma.toggle")(partial(toggle, server))
    server.command("dgemma.restart")(partial(restart, server))
    server.command("dgemma.status")(partial(tell_status, server))


async def execute_fill(
    server: DGemmaServer, task: Task, params: types.ExecuteCommandParams
) -> bool:
    """Fill and apply; whether the document was changed."""
    if not params.arguments or len(params.arguments) != 1:
        raise JsonRpcInvalidParams(f"{task.command} takes one argument, {{uri, range, version?}}")
    target = FillTarget.from_json(as_json(params.arguments[0]), task)
    edit = await compute_edit(server, target, params.work_done_token)
    if edit is None:
        return False
    try:
        answer = await server.workspace_apply_edit_async(
            types.ApplyWorkspaceEditParams(edit, label="Fill")
        )
        was_applied = answer.applied
    except JsonRpcException:  # of the editor; its own message says no more
        was_applied = False
    if not was_applied:
        server.tell(types.MessageType.Warning, "the editor refused the edit; try again")
    return was_applied


async def explain_last(
    server: DGemmaServer, params: types.ExecuteCommandParams
) -> dict[str, str] | None:
    """Why the last fill, in a document or anywhere, came to what it came to."""
    uri = _argument(params).get("uri", "")
    explanation = server.filler.explanations.get(uri)
    if explanation is None:
        server.tell(types.MessageType.Info, "nothing was asked for yet")
        return None
    server.tell(types.MessageType.Info, f"{explanation.reason}: {explanation.detail}")
    return {"reason": explanation.reason, "detail": explanation.detail}


async def show_context(server: DGemmaServer, params: types.ExecuteCommandParams) -> str:
    """Exactly what the model would read for a cursor."""
    argument = _argument(params)
    try:
        snapshot = server.snapshot(argument["uri"])
        position = _converter.structure(argument["position"], types.Position)
    except (KeyError, TypeError, ValueError) as error:
        raise JsonRpcInvalidParams("dgemma.context takes {uri, position}") from error
    if (off := server.why_off(snapshot)) is not None:
        return f"nothing: {off.detail}"
    hole = select_hole(snapshot, snapshot.offset_at(position, server.encoding))
    request = server.filler.request(snapshot, hole, await server.settled_settings())
    try:
        text: str = await server.filler.scheduler.ask(lambda engine: engine.render(request))
    except DGemmaError as error:
        raise RequestFailed(str(error)) from error
    return text


async def toggle(server: DGemmaServer, params: types.ExecuteCommandParams) -> bool:
    """Switch the server on or off until it ends; whether it is on now."""
    wanted = _argument(params).get("on", server.is_switched_off)
    server.is_switched_off = not wanted
    status.tell(server)
    return bool(wanted)


async def restart(server: DGemmaServer, params: types.ExecuteCommandParams) -> None:
    """Let the engine go, whatever it does, and build it anew."""
    try:
        await server.filler.scheduler.restart()
    except DGemmaError as error:
        server.tell(types.MessageType.Error, str(error))
        raise RequestFailed(str(error)) from error


async def tell_status(server: DGemmaServer, params: types.ExecuteCommandParams) -> dict[str, Any]:
    """What `dgemma/status` would say."""
    return status.current(server).to_json()


def _argument(params: types.ExecuteCommandParams) -> Mapping[str, Any]:
    argument = as_json(params.arguments[0]) if params.arguments else {}
    if argument is None:
        return {}
    if not isinstance(argument, Mapping):
        raise JsonRpcInvalidParams(f"{params.command} takes an object, or nothing")
    return argument
