"""The server with a scripted engine, in a process of its own, driven by pytest-lsp.

Exact texts: what is offered, shifted, refused, applied.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import pytest_lsp
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

from .json_rpc import position

URI = "file:///sample.py"
SERVER = Path(__file__).with_name("fake_server.py")
ANSWER, NUM_PASSES, PASS_SECONDS = "left + right", "20", "0.02"
REQUEST_CANCELLED, CONTENT_MODIFIED = -32800, -32801

# The emoji counts 1, 2 or 4 units before the cursor, by encoding.
TEXT = "s = '😋'; x = \nprint(x)\n"
CURSOR = TEXT.index("x = ") + 4


def inline_capabilities(name: str, encodings: list[str]) -> types.ClientCapabilities:
    """A recorded client's capabilities, with inline completion as its newer versions have it."""
    capabilities = client_capabilities(name)
    assert capabilities.text_document is not None
    capabilities.text_document.inline_completion = types.InlineCompletionClientCapabilities()
    capabilities.general = types.GeneralClientCapabilities(
        position_encodings=[types.PositionEncodingKind(encoding) for encoding in encodings]
    )
    return capabilities


CLIENTS = {
    "visual_studio_code": ("visual_studio_code", ["utf-16"]),
    "neovim": ("neovim", ["utf-8", "utf-16", "utf-32"]),
    "emacs_order_of_encodings": ("neovim", ["utf-32", "utf-8", "utf-16"]),
}


@pytest_lsp.fixture(
    config=ClientServerConfig(
        server_command=[sys.executable, str(SERVER), ANSWER, NUM_PASSES, PASS_SECONDS]
    ),
    params=CLIENTS,
)
async def client(request: pytest.FixtureRequest, lsp_client: LanguageClient):
    name, encodings = CLIENTS[request.param]
    capabilities = inline_capabilities(name, encodings)
    lsp_client.feature(types.CLIENT_REGISTER_CAPABILITY)(lambda params: None)
    result = await lsp_client.initialize_session(types.InitializeParams(capabilities=capabilities))
    assert result.capabilities.position_encoding == encodings[0]
    lsp_client.encoding, lsp_client.recorded = encodings[0], name
    lsp_client.text_document_did_open(
        types.DidOpenTextDocumentParams(types.TextDocumentItem(URI, "python", 1, TEXT))
    )
    yield
    await lsp_client.shutdown_session()


def at(client: LanguageClient, text: str, offset: int) -> types.Position:
    return types.Position(**position(text, offset, client.encoding))


def change(client: LanguageClient, version: int, text: str, offset: int, typed: str) -> str:
    """Type something, and return the text after it."""
    place = at(client, text, offset)
    client.text_document_did_change(
        types.DidChangeTextDocumentParams(
            types.VersionedTextDocumentIdentifier(version, URI),
            [types.TextDocumentContentChangePartial(types.Range(place, place), typed)],
        )
    )
    return text[:offset] + typed + text[offset:]


def ask(client: LanguageClient, text: str, offset: int) -> asyncio.Task[types.InlineCompletionList]:
    """Ask for an inline completion; the task is its answer."""
    params = types.InlineCompletionParams(
        context=types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic),
        text_document=types.TextDocumentIdentifier(URI),
        position=at(client, text, offset),
    )
    return asyncio.ensure_future(client.text_document_inline_completion_async(params))


async def list_actions(client: LanguageClient, start: int, end: int) -> list[types.CodeAction]:
    params = types.CodeActionParams(
        types.TextDocumentIdentifier(URI),
        types.Range(at(client, TEXT, start), at(client, TEXT, end)),
        types.CodeActionContext(diagnostics=[]),
    )
    actions = await client.text_document_code_action_async(params)
    assert actions is not None
    return [action for action in actions if isinstance(action, types.CodeAction)]


async def state(client: LanguageClient):
    return await client.protocol.send_request_async("test/state", {"uri": URI})


async def engine_is_freed(client: LanguageClient) -> None:
    """The one fill that was withdrawn ended before its last pass."""
    for _ in range(100):
        if (await state(client)).num_cancelled == 1:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the engine went on")


async def test_inline_completion(client: LanguageClient) -> None:
    """The text of the fill, replacing nothing, at the cursor, whatever the encoding."""
    (item,) = (await ask(client, TEXT, CURSOR)).items
    place = at(client, TEXT, CURSOR)
    assert item.insert_text == ANSWER
    assert types.Range(place, place) == item.range


async def test_typing_the_suggestion_shifts_it(client: LanguageClient) -> None:
    """What was typed meanwhile is its beginning: the rest is offered behind it."""
    answer = ask(client, TEXT, CURSOR)
    await asyncio.sleep(0)
    text = change(client, 2, TEXT, CURSOR, "left")
    (item,) = (await answer).items
    place = at(client, text, CURSOR + 4)
    assert item.insert_text == " + right"
    assert types.Range(place, place) == item.range


async def test_another_edit_makes_it_stale(client: LanguageClient) -> None:
    """Something else was typed: nothing is offered."""
    answer = ask(client, TEXT, CURSOR)
    await asyncio.sleep(0)
    change(client, 2, TEXT, CURSOR, "y")
    assert not (await answer).items


async def test_an_edit_that_is_not_typing_frees_the_engine(client: LanguageClient) -> None:
    """A deletion: the fill ends before its next pass, though nothing newer was asked for."""
    await ask(client, TEXT, CURSOR)  # the engine is loaded
    text = change(client, 2, TEXT, 0, "1;")
    answer = ask(client, text, CURSOR + 2)
    while (await state(client)).num_requests < 2:
        await asyncio.sleep(0.01)
    whole = types.TextDocumentContentChangeWholeDocument(text[1:])
    document = types.VersionedTextDocumentIdentifier(uri=URI, version=3)
    client.text_document_did_change(types.DidChangeTextDocumentParams(document, [whole]))
    assert not (await answer).items
    await engine_is_freed(client)


async def test_the_newest_request_wins(client: LanguageClient) -> None:
    """Two requests of one document: the first is answered with nothing, and costs no full fill."""
    first, second = ask(client, TEXT, CURSOR), ask(client, TEXT, CURSOR)
    assert not (await first).items
    assert len((await second).items) == 1


async def test_cancelling_frees_the_engine(client: LanguageClient) -> None:
    """A cancelled request is answered as such, and the engine stops before its next pass."""
    await ask(client, TEXT, CURSOR)  # the engine is loaded
    text = change(client, 2, TEXT, 0, "1;")
    answer = ask(client, text, CURSOR + 2)
    while (await state(client)).num_requests < 2:
        await asyncio.sleep(0.01)
    (message_id,) = client.protocol._request_futures
    client.cancel_request(types.CancelParams(message_id))
    with pytest.raises(JsonRpcException) as caught:
        await answer
    assert caught.value.code == REQUEST_CANCELLED
    await engine_is_freed(client)
    assert len((await ask(client, text, CURSOR + 2)).items) == 1


async def test_selected_completion_is_continued(client: LanguageClient) -> None:
    """With an entry of the completion menu selected, the item begins with it, over its range."""
    start, end = TEXT.index("print"), TEXT.index("print") + 2
    selected = types.SelectedCompletionInfo(
        types.Range(at(client, TEXT, start), at(client, TEXT, end)), "property"
    )
    params = types.InlineCompletionParams(
        context=types.InlineCompletionContext(
            types.InlineCompletionTriggerKind.Automatic, selected_completion_info=selected
        ),
        text_document=types.TextDocumentIdentifier(URI),
        position=at(client, TEXT, end),
    )
    (item,) = (await client.text_document_inline_completion_async(params)).items
    assert item.insert_text.startswith("property")
    assert selected.range == item.range


async def test_code_action_is_listed_without_the_engine_and_resolved(
    client: LanguageClient,
) -> None:
    """Listing asks the engine nothing; resolving gives an edit, versioned where that is read."""
    start = TEXT.index("print(x)")
    actions = await list_actions(client, start, start + len("print(x)"))
    assert [action.title for action in actions] == ["Refill selection", "Rewrite selection"]
    action = actions[0]
    assert (await state(client)).num_requests == 0
    resolved = await client.code_action_resolve_async(action)
    assert resolved.edit is not None
    workspace = client_capabilities(client.recorded).workspace
    assert workspace is not None
    assert workspace.workspace_edit is not None
    if workspace.workspace_edit.document_changes:
        (document,) = resolved.edit.document_changes or []
        assert isinstance(document, types.TextDocumentEdit)
        assert document.text_document.version == 1
        (edit,) = document.edits
        annotations = resolved.edit.change_annotations
        has_annotations = workspace.workspace_edit.change_annotation_support is not None
        assert isinstance(edit, types.AnnotatedTextEdit) == has_annotations
        assert (annotations is not None) == has_annotations
    else:
        (edit,) = (resolved.edit.changes or {})[URI]
    assert edit.new_text == ANSWER
    assert edit.range.start == at(client, TEXT, start)


async def test_resolving_for_an_older_text_is_refused(client: LanguageClient) -> None:
    """The error says that the content was modified."""
    (action,) = await list_actions(client, CURSOR, CURSOR)
    change(client, 2, TEXT, 0, "#")
    with pytest.raises(JsonRpcException) as caught:
        await client.code_action_resolve_async(action)
    assert caught.value.code == CONTENT_MODIFIED


async def test_an_action_without_data_comes_back_as_it_was(client: LanguageClient) -> None:
    """Some editors resolve every action there is, ours or not."""
    action = types.CodeAction("of another server")
    assert action == await client.code_action_resolve_async(action)


@pytest_lsp.fixture(config=ClientServerConfig(server_command=[sys.executable, str(SERVER), "a\nb"]))
async def bare_client(lsp_client: LanguageClient):
    """A client that offers code actions and commands, and none of their refinements."""
    capabilities = types.ClientCapabilities(
        text_document=types.TextDocumentClientCapabilities(
            code_action=types.CodeActionClientCapabilities()
        ),
        workspace=types.WorkspaceClientCapabilities(
            apply_edit=True, execute_command=types.ExecuteCommandClientCapabilities()
        ),
    )
    result = await lsp_client.initialize_session(types.InitializeParams(capabilities=capabilities))
    assert result.capabilities.inline_completion_provider is None
    document = types.TextDocumentItem(URI, "python", 1, "x = \r\ny = 1\r\n")
    lsp_client.text_document_did_open(types.DidOpenTextDocumentParams(document))
    yield
    await lsp_client.shutdown_session()


async def test_a_client_without_resolve_gets_a_command(bare_client: LanguageClient) -> None:
    """The command fills and has the client apply the edit, in the document's separators."""
    applied: list[types.WorkspaceEdit] = []

    @bare_client.feature(types.WORKSPACE_APPLY_EDIT)
    def apply(params: types.ApplyWorkspaceEditParams) -> types.ApplyWorkspaceEditResult:
        applied.append(params.edit)
        return types.ApplyWorkspaceEditResult(applied=True)

    selected = types.Range(types.Position(0, 0), types.Position(1, 5))
    params = types.CodeActionParams(
        types.TextDocumentIdentifier(URI), selected, types.CodeActionContext(diagnostics=[])
    )
    command, _ = await bare_client.text_document_code_action_async(params) or []
    assert isinstance(command, types.Command)
    execute = types.ExecuteCommandParams(command.command, command.arguments)
    assert await bare_client.workspace_execute_command_async(execute) is True
    (edit,) = applied
    (change,) = (edit.changes or {})[URI]
    assert types.TextEdit(selected, "a\r\nb") == change
