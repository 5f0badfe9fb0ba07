"""textDocument/codeAction: "Fill here" and "Refill selection".

Listed without touching the engine; the edit is computed in codeAction/resolve where the client can
wait for it there, else by the command in `command.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lsprotocol import converters, types
from pygls.exceptions import JsonRpcContentModified, JsonRpcInvalidParams

from dgemma_engine.errors import DGemmaError

from ..convert import to_workspace_edit
from ..hole import select_hole, selection_hole
from ..postprocess import Rejection
from ..rpc import RequestFailed
from .command import COMMAND, can_apply_edits

if TYPE_CHECKING:
    from ..server import DGemmaServer

logger = logging.getLogger(__name__)

KIND = types.CodeActionKind.RefactorRewrite

_converter = converters.get_converter()


@dataclass(frozen=True, slots=True)
class FillTarget:
    """What an action is about; travels to the client and back as JSON.

    Attributes:
        uri: of the document.
        range: empty at a cursor, else the selection.
        version: of the document the range belongs to; None to take it as it is.
    """

    uri: str
    range: types.Range
    version: int | None

    def to_json(self) -> dict[str, Any]:
        span = _converter.unstructure(self.range)
        return {"uri": self.uri, "range": span, "version": self.version}

    @classmethod
    def from_json(cls, data: Any) -> FillTarget:
        """Raises JsonRpcInvalidParams if `data` is not what `to_json` gave."""
        try:
            span = _converter.structure(data["range"], types.Range)
            uri, version = data["uri"], data.get("version")
        except Exception as error:
            raise JsonRpcInvalidParams("a fill needs {uri, range, version?}") from error
        if not isinstance(uri, str) or not isinstance(version, int | None):
            raise JsonRpcInvalidParams("a fill needs a text as uri and a number as version")
        return cls(uri, span, version)


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    offered = client.text_document and client.text_document.code_action
    if not offered or not (_can_resolve(client) or can_apply_edits(client)):
        return
    can_resolve = _can_resolve(client)
    options = types.CodeActionOptions(
        code_action_kinds=[KIND] if offered.code_action_literal_support else None,
        resolve_provider=can_resolve or None,
    )
    server.feature(types.TEXT_DOCUMENT_CODE_ACTION, options)(
        partial(text_document_code_action, server)
    )
    if can_resolve:
        server.feature(types.CODE_ACTION_RESOLVE)(partial(code_action_resolve, server))


def text_document_code_action(
    server: DGemmaServer, params: types.CodeActionParams
) -> list[types.CodeAction | types.Command]:
    """The actions at a cursor or selection."""
    snapshot = server.snapshot(params.text_document.uri)
    if not server.is_enabled(snapshot) or not _is_wanted(params.context.only):
        return []
    start = snapshot.offset_at(params.range.start, server.encoding)
    end = snapshot.offset_at(params.range.end, server.encoding)
    spans = []
    # Some editors' cursor is a block of one character, their selection is never empty.
    if end - start <= 1:
        spans.append(("Fill here", types.Range(params.range.start, params.range.start)))
    if start < end:
        spans.append(("Refill selection", params.range))
    return [
        _action(server, title, FillTarget(snapshot.uri, span, snapshot.version))
        for title, span in spans
    ]


async def code_action_resolve(server: DGemmaServer, action: types.CodeAction) -> types.CodeAction:
    """Compute an action's edit; one that is not ours, or has its edit, goes back as it came."""
    if action.data is None or action.edit is not None:
        return action
    action.edit = await compute_edit(server, FillTarget.from_json(action.data))
    return action


async def compute_edit(server: DGemmaServer, target: FillTarget) -> types.WorkspaceEdit | None:
    """The edit that does what the user asked for; None, and a message, if there is nothing to do.

    Raises:
        JsonRpcContentModified: the document is not the one the action was offered for.
        RequestFailed: there is no engine, or it refused; the user has been told.
    """
    snapshot = server.snapshot(target.uri)
    _check_version(target.version, snapshot.version)
    start = snapshot.offset_at(target.range.start, server.encoding)
    end = snapshot.offset_at(target.range.end, server.encoding)
    if start == end:
        await snapshot.syntax.ready()
        hole = select_hole(snapshot, start, cover_marker=True)
    else:
        hole = selection_hole(snapshot, start, end)
    settings = await server.settled_settings()
    try:
        text = await server.filler.fill(snapshot, hole, settings, while_typing=False)
    except DGemmaError as error:
        server.tell(types.MessageType.Error, str(error))
        raise RequestFailed(str(error)) from error
    except Exception as error:
        logger.exception("a fill that was asked for failed")
        message = f"the fill failed ({type(error).__name__}); the server's log has more"
        server.tell(types.MessageType.Error, message)
        raise RequestFailed(message) from error
    if isinstance(text, Rejection):
        server.tell(types.MessageType.Info, f"nothing was filled in: {text.detail}")
        return None
    now = server.snapshot(target.uri)
    _check_version(snapshot.version, now.version)
    if snapshot.text != now.text:
        # Closed and opened again: versions begin anew.
        raise JsonRpcContentModified("the document was reopened; ask for the action again")
    versioned = _takes_versions(server.client_capabilities)
    return to_workspace_edit(snapshot, hole, text, server.encoding, versioned=versioned)


def _check_version(expected: int | None, actual: int | None) -> None:
    if expected is not None and expected != actual:
        raise JsonRpcContentModified(
            f"the document changed (version {expected} then, {actual} now); "
            "ask for the action again"
        )


def _action(
    server: DGemmaServer, title: str, target: FillTarget
) -> types.CodeAction | types.Command:
    data = target.to_json()
    if _can_resolve(server.client_capabilities):
        return types.CodeAction(title, kind=KIND, data=data)
    command = types.Command(title, COMMAND, arguments=[data])
    document = server.client_capabilities.text_document
    if document and document.code_action and document.code_action.code_action_literal_support:
        return types.CodeAction(title, kind=KIND, command=command)
    return command


def _is_wanted(only: Sequence[types.CodeActionKind | str] | None) -> bool:
    """Whether our kind is one of the kinds asked for, or below one of them."""
    if only is None:
        return True
    wanted = [kind.value if isinstance(kind, types.CodeActionKind) else kind for kind in only]
    return any(not kind or f"{KIND.value}.".startswith(f"{kind}.") for kind in wanted)


def _can_resolve(client: types.ClientCapabilities) -> bool:
    offered = client.text_document and client.text_document.code_action
    if not offered or not offered.code_action_literal_support or not offered.data_support:
        return False
    return offered.resolve_support is not None and "edit" in offered.resolve_support.properties


def _takes_versions(client: types.ClientCapabilities) -> bool:
    edits = client.workspace and client.workspace.workspace_edit
    return bool(edits and edits.document_changes)
