"""The shipped model behind the real command, as an editor uses it: `dgemma-lsp serve` over stdio.

Asserts behaviour, not the quality of the text, which is the model's card's subject.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_lsp
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

from .json_rpc import RawClient, RpcError, position

URI = "file:///sample.py"
TEXT = (
    "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return \n\n\n"
    "print('😋', read(os.path.join('a', 'b')))\n"
)
CAPABILITIES = {
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["refactor.rewrite"]}},
            "dataSupport": True,
            "resolveSupport": {"properties": ["edit"]},
        },
    },
    "workspace": {"workspaceEdit": {"documentChanges": True}},
}
# What the model is sure enough of to show unasked is not what these tests are about.
SHOW_EVERYTHING = {"minConfidence": 0}
REQUEST_CANCELLED, CONTENT_MODIFIED = -32800, -32801


@pytest.fixture
def client() -> Iterator[RawClient]:
    with RawClient("-m", "dgemma_lsp", "serve", "--stdio") as started:
        started.initialize(options=SHOW_EVERYTHING, **CAPABILITIES)
        started.open(URI, TEXT)
        yield started


def at(offset: int, text: str = TEXT) -> dict[str, int]:
    return position(text, offset, "utf-16")


def document(**more: Any) -> dict[str, Any]:
    return {"textDocument": {"uri": URI}, **more}


def inline_items(client: RawClient, offset: int, text: str = TEXT) -> list[dict[str, Any]]:
    params = document(position=at(offset, text), context={"triggerKind": 1})
    items: list[dict[str, Any]] = client.request("textDocument/inlineCompletion", params)["items"]
    return items


def actions(client: RawClient, start: int, end: int) -> list[dict[str, Any]]:
    span = {"start": at(start), "end": at(end)}
    params = document(range=span, context={"diagnostics": []})
    listed: list[dict[str, Any]] = client.request("textDocument/codeAction", params)
    return listed


def error_code(client: RawClient, request_id: int) -> int | None:
    """Wait for an answer: its error's code, or None for a result."""
    try:
        client.wait(request_id)
    except RpcError as error:
        return error.code
    return None


def apply(edit: dict[str, Any], text: str) -> str:
    """Apply a versioned edit of one place."""
    (change,) = edit["documentChanges"]
    assert change["textDocument"] == {"uri": URI, "version": 1}
    (piece,) = change["edits"]
    start, end = (
        next(i for i in range(len(text) + 1) if at(i, text) == piece["range"][side])
        for side in ("start", "end")
    )
    return text[:start] + piece["newText"] + text[end:]


def test_a_hole_is_filled_and_typing_goes_on(client: RawClient) -> None:
    """Open, complete, edit, complete again: one-line ranges at the cursor, the same each time."""
    cursor = TEXT.index("return ") + len("return ")
    items = inline_items(client, cursor)
    assert items == inline_items(client, cursor)
    assert items, "the shipped model proposes something here"
    for item in items:
        assert item["insertText"].strip()
        assert item["range"] == {"start": at(cursor), "end": at(cursor)}

    typed = "f"
    edited = TEXT[:cursor] + typed + TEXT[cursor:]
    span = {"start": at(cursor), "end": at(cursor)}
    client.change(URI, 2, [{"range": span, "text": typed}])
    for item in inline_items(client, cursor + 1, edited):
        assert item["range"]["start"]["line"] == item["range"]["end"]["line"] == 5
    assert client.close() == 0


def test_code_actions_are_resolved_and_applied(client: RawClient) -> None:
    """Fill at the cursor and refill of a selection: an edit of that place and no other."""
    cursor = TEXT.index("return ") + len("return ")
    fill, *_ = actions(client, cursor, cursor)
    assert fill["title"] == "Fill here"
    assert "edit" not in fill
    resolved = client.request("codeAction/resolve", fill)
    filled = apply(resolved["edit"], TEXT)
    assert filled != TEXT
    assert filled.startswith(TEXT[:cursor])
    assert filled.endswith(TEXT[cursor:])

    start = TEXT.index("'a', 'b'")
    end = TEXT.index(")", start)
    refill, _ = actions(client, start, end)
    assert refill["title"] == "Refill selection"
    refilled = apply(client.request("codeAction/resolve", refill)["edit"], TEXT)
    assert refilled.startswith(TEXT[:start])
    assert refilled.endswith(TEXT[end:])
    assert client.close() == 0


def test_an_action_of_an_older_text_is_refused(client: RawClient) -> None:
    """What was offered before an edit is not applied after it."""
    (fill,) = actions(client, 0, 0)
    client.change(URI, 2, [{"text": TEXT + "\n"}])
    with pytest.raises(RpcError, match="ask for the action again") as caught:
        client.request("codeAction/resolve", fill)
    assert caught.value.code == CONTENT_MODIFIED
    assert client.close() == 0


def test_cancelling_is_answered_and_the_next_request_works(client: RawClient) -> None:
    """Every request is answered once, cancelled or done, and the engine goes on."""
    cursor = TEXT.index("return ") + len("return ")
    context = {"triggerKind": 2}
    params = document(position=at(cursor), context=context)
    ids = [client.send("textDocument/inlineCompletion", params) for _ in range(10)]
    for request_id in ids:
        client.notify("$/cancelRequest", {"id": request_id})
    codes = {error_code(client, request_id) for request_id in ids}
    assert REQUEST_CANCELLED in codes
    assert codes <= {REQUEST_CANCELLED, None}
    assert inline_items(client, cursor)
    assert client.close() == 0


def test_shutdown_does_not_wait_for_a_fill(client: RawClient) -> None:
    """Shutting down in the middle of a fill ends the process in good order."""
    params = document(position=at(60), context={"triggerKind": 1})
    client.send("textDocument/inlineCompletion", params)
    assert client.close() == 0


@pytest_lsp.fixture(
    config=ClientServerConfig(server_command=[sys.executable, "-m", "dgemma_lsp", "serve"])
)
async def visual_studio_code(lsp_client: LanguageClient):
    capabilities = client_capabilities("visual_studio_code")
    assert capabilities.text_document is not None
    capabilities.text_document.inline_completion = types.InlineCompletionClientCapabilities()
    lsp_client.feature(types.CLIENT_REGISTER_CAPABILITY)(lambda params: None)
    await lsp_client.initialize_session(
        types.InitializeParams(capabilities=capabilities, initialization_options=SHOW_EVERYTHING)
    )
    yield
    await lsp_client.shutdown_session()


async def test_the_main_job_as_a_recorded_client_does_it(
    visual_studio_code: LanguageClient,
) -> None:
    """With pytest-lsp: open, edit, complete, list, resolve, cancel, complete again."""
    client = visual_studio_code
    item = types.TextDocumentItem(URI, "python", 1, TEXT)
    client.text_document_did_open(types.DidOpenTextDocumentParams(item))
    cursor = TEXT.index("return ") + len("return ")
    place = types.Position(**at(cursor))
    document = types.VersionedTextDocumentIdentifier(2, URI)
    typed = types.TextDocumentContentChangePartial(types.Range(place, place), "f")
    client.text_document_did_change(types.DidChangeTextDocumentParams(document, [typed]))

    behind = types.Position(place.line, place.character + 1)
    completion = types.InlineCompletionParams(
        types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic), document, behind
    )
    (offered,) = (await client.text_document_inline_completion_async(completion)).items
    assert offered.range == types.Range(behind, behind)

    listing = types.CodeActionParams(
        document, types.Range(behind, behind), types.CodeActionContext(diagnostics=[])
    )
    action, *_ = await client.text_document_code_action_async(listing) or []
    assert isinstance(action, types.CodeAction)
    resolved = await client.code_action_resolve_async(action)
    assert resolved.edit is not None
    (edited,) = resolved.edit.document_changes or []
    assert isinstance(edited, types.TextDocumentEdit)
    (edit,) = edited.edits
    assert isinstance(edit, types.AnnotatedTextEdit)
    assert edit.new_text == offered.insert_text, "the same hole, the same seed, the same text"

    # A line above it: what was offered before is of no use now.
    top = types.Position(0, 0)
    document = types.VersionedTextDocumentIdentifier(3, URI)
    above = types.TextDocumentContentChangePartial(types.Range(top, top), "\n")
    client.text_document_did_change(types.DidChangeTextDocumentParams(document, [above]))
    moved = attrs.evolve(completion, position=types.Position(behind.line + 1, behind.character))
    asked = asyncio.ensure_future(client.text_document_inline_completion_async(moved))
    await asyncio.sleep(0)
    (message_id,) = client.protocol._request_futures
    client.cancel_request(types.CancelParams(message_id))
    with pytest.raises(JsonRpcException):
        await asked
    (again,) = (await client.text_document_inline_completion_async(moved)).items
    assert again.range == types.Range(moved.position, moved.position)


def test_what_another_file_of_the_project_says_is_recalled(tmp_path: Path) -> None:
    """Nobody opened that file; the model has never seen the name."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "names.py").write_text(
        "def zubrowka_by_name(name):\n    return registry.lookup_zubrowka(name, strict=True)\n",
        encoding="utf-8",
    )
    uri = (tmp_path / "own.py").as_uri()
    text = "def first(name):\n    return registry.lookup_zu"
    params = {
        "textDocument": {"uri": uri},
        "position": at(len(text), text),
        "context": {"triggerKind": 1},
    }
    with RawClient("-m", "dgemma_lsp", "serve", "--stdio") as client:
        commands = CAPABILITIES | {"workspace": {"executeCommand": {}}}
        client.initialize(options=SHOW_EVERYTHING, **commands)
        client.open(uri, text)
        found: list[str] = []
        deadline = time.monotonic() + 20  # it is read after the model is loaded
        while time.monotonic() < deadline and "browka(name, strict=True)" not in found:
            items = client.request("textDocument/inlineCompletion", params)["items"]
            found = [item["insertText"] for item in items]
        assert found[0] == "browka(name, strict=True)"
        shown = client.request(
            "workspace/executeCommand",
            {
                "command": "dgemma.context",
                "arguments": [{"uri": uri, "position": at(len(text), text)}],
            },
        )
        assert "characters that begin with 'def zubrowka_by_name(name):'" in shown
        assert client.close() == 0
