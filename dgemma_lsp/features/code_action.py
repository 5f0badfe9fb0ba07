"""textDocument/codeAction: what can be filled, implemented, documented, rewritten or fixed here.

Listed from the syntax tree without touching the engine; the edit is computed in codeAction/resolve
where the client can wait for it there, else by the command in `command.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lsprotocol import types

from ..document import DocumentSnapshot
from ..hole import body_hole, docstring_hole, find_holes
from .command import can_apply_edits
from .edits import TITLES, FillTarget, Task, checksum, compute_edit

if TYPE_CHECKING:
    from ..server import DGemmaServer

KINDS = (types.CodeActionKind.RefactorRewrite, types.CodeActionKind.QuickFix)

# More than so many diagnostics at one place would bury the other actions.
_MOST_FIXES = 3
_LONGEST_MESSAGE = 60
# All holes of a longer text take more than some milliseconds to find; the command still does.
_LONGEST_TO_SEARCH = 200_000  # characters


def register(server: DGemmaServer, client: types.ClientCapabilities) -> None:
    offered = client.text_document and client.text_document.code_action
    if not offered or not (_can_resolve(client) or can_apply_edits(client)):
        return
    can_resolve = _can_resolve(client)
    options = types.CodeActionOptions(
        code_action_kinds=list(KINDS) if offered.code_action_literal_support else None,
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
    if server.why_off(snapshot) is not None:
        return []
    only = params.context.only
    text = checksum(snapshot.text)
    actions = []
    for title, kind, span, task, diagnostic in _offers(server, snapshot, params):
        if _is_wanted(kind, only):
            target = FillTarget(snapshot.uri, span, snapshot.version, text, task)
            actions.append(_action(server, title, kind, target, diagnostic))
    return actions


_Offer = tuple[str, types.CodeActionKind, types.Range, Task, types.Diagnostic | None]


def _offers(
    server: DGemmaServer, snapshot: DocumentSnapshot, params: types.CodeActionParams
) -> Iterator[_Offer]:
    rewrite, fix = KINDS
    start = snapshot.offset_at(params.range.start, server.encoding)
    end = snapshot.offset_at(params.range.end, server.encoding)
    cursor = types.Range(params.range.start, params.range.start)
    # Some editors' cursor is a block of one character, their selection is never empty.
    if end - start <= 1:
        yield TITLES[Task.FILL], rewrite, cursor, Task.FILL, None
        if snapshot.syntax.now() is not None:  # else it is not ready, and nobody waits for it
            if body_hole(snapshot, start) is not None:
                yield TITLES[Task.IMPLEMENT], rewrite, cursor, Task.IMPLEMENT, None
            if docstring_hole(snapshot, start) is not None:
                yield TITLES[Task.DOCSTRING], rewrite, cursor, Task.DOCSTRING, None
    if start < end:
        yield "Refill selection", rewrite, params.range, Task.FILL, None
    if end - start > 1:
        yield TITLES[Task.REWRITE], rewrite, params.range, Task.REWRITE, None
    if snapshot.syntax.now() is not None and len(snapshot.text) <= _LONGEST_TO_SEARCH:
        is_selection = end - start > 1
        within = find_holes(snapshot, start, end) if is_selection else find_holes(snapshot)
        if len(within) > (0 if is_selection else 1):
            title = f"{TITLES[Task.FILL_ALL]} ({len(within)})"
            span = params.range if is_selection else cursor
            yield title, rewrite, span, Task.FILL_ALL, None
    for diagnostic in params.context.diagnostics[:_MOST_FIXES]:
        message = " ".join(diagnostic.message.split())
        if len(message) > _LONGEST_MESSAGE:
            message = message[: _LONGEST_MESSAGE - 1] + "…"
        yield f"Fix: {message}", fix, diagnostic.range, Task.FILL, diagnostic


async def code_action_resolve(server: DGemmaServer, action: types.CodeAction) -> types.CodeAction:
    """Compute an action's edit; one that is not ours, or has its edit, goes back as it came."""
    if action.data is None or action.edit is not None:
        return action
    action.edit = await compute_edit(server, FillTarget.from_json(action.data))
    return action


def _action(
    server: DGemmaServer,
    title: str,
    kind: types.CodeActionKind,
    target: FillTarget,
    diagnostic: types.Diagnostic | None,
) -> types.CodeAction | types.Command:
    data = target.to_json()
    diagnostics = [diagnostic] if diagnostic is not None else None
    if _can_resolve(server.client_capabilities):
        return types.CodeAction(title, kind=kind, data=data, diagnostics=diagnostics)
    command = types.Command(title, target.task.command, arguments=[data])
    document = server.client_capabilities.text_document
    if document and document.code_action and document.code_action.code_action_literal_support:
        return types.CodeAction(title, kind=kind, command=command, diagnostics=diagnostics)
    return command


def _is_wanted(
    kind: types.CodeActionKind, only: Sequence[types.CodeActionKind | str] | None
) -> bool:
    """Whether a kind is one of the kinds asked for, or below one of them."""
    if only is None:
        return True
    wanted = [item.value if isinstance(item, types.CodeActionKind) else item for item in only]
    return any(not item or f"{kind.value}.".startswith(f"{item}.") for item in wanted)


def _can_resolve(client: types.ClientCapabilities) -> bool:
    offered = client.text_document and client.text_document.code_action
    if not offered or not offered.code_action_literal_support or not offered.data_support:
        return False
    return offered.resolve_support is not None and "edit" in offered.resolve_support.properties
