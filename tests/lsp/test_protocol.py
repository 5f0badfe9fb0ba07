"""Whatever a client sends, every request gets one answer, and the server lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .json_rpc import RawClient, RpcError

SERVER = str(Path(__file__).with_name("fake_server.py"))
URI = "untitled:Untitled-1"
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
NOT_INITIALIZED, REQUEST_CANCELLED = -32002, -32800

CAPABILITIES: dict[str, Any] = {
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": []}},
            "dataSupport": True,
            "resolveSupport": {"properties": ["edit"]},
        },
    },
    "workspace": {"applyEdit": True, "executeCommand": {}},
}
PLACE = {"line": 0, "character": 0}
INLINE = {
    "textDocument": {"uri": URI},
    "position": PLACE,
    "context": {"triggerKind": 1},
}
FILL = {"uri": URI, "range": {"start": PLACE, "end": PLACE}}


@pytest.fixture
def client() -> Iterator[RawClient]:
    with RawClient(SERVER) as started:
        started.initialize(**CAPABILITIES)
        yield started


def error_of(client: RawClient, method: str, params: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        client.request(method, params)
    assert caught.value.data is None, "no trace, no path"
    assert "Traceback" not in str(caught.value)
    return caught.value


def assert_alive(client: RawClient) -> None:
    client.open(URI, "x = ")
    assert client.request("test/state", {"uri": URI})["text"] == "x = "
    assert client.close() == 0


MALFORMED = {
    "no position": ("textDocument/inlineCompletion", {"textDocument": {"uri": URI}}),
    "a text for a line": (
        "textDocument/inlineCompletion",
        {**INLINE, "position": {"line": "0", "character": 0}},
    ),
    "an unknown trigger": (
        "textDocument/inlineCompletion",
        {**INLINE, "context": {"triggerKind": 9}},
    ),
    "a list": ("textDocument/inlineCompletion", [1, 2]),
    "no parameters": ("textDocument/codeAction", None),
    "an action that is none": ("codeAction/resolve", {"kind": 1}),
    "foreign data": ("codeAction/resolve", {"title": "x", "data": {"id": 7}}),
    "data with a wrong version": (
        "codeAction/resolve",
        {"title": "x", "data": {**FILL, "version": "1"}},
    ),
    "an unknown command": ("workspace/executeCommand", {"command": "rm"}),
    "a command without arguments": ("workspace/executeCommand", {"command": "dgemma.fill"}),
    "a command with a number": (
        "workspace/executeCommand",
        {"command": "dgemma.fill", "arguments": [5]},
    ),
    "a document that is not open": ("textDocument/inlineCompletion", INLINE),
    "an action in a document that is not open": (
        "codeAction/resolve",
        {"title": "x", "data": FILL},
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_answered(client: RawClient, name: str) -> None:
    """With -32602 and a message; pygls would answer some never and others with its stack."""
    method, params = MALFORMED[name]
    assert error_of(client, method, params).code == INVALID_PARAMS
    assert_alive(client)


def test_a_document_that_is_not_open_is_named(client: RawClient) -> None:
    """The message says which one, and what to send first."""
    message = str(error_of(client, "textDocument/inlineCompletion", INLINE))
    assert message == f"document is not open: {URI} (send textDocument/didOpen first)"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", PARSE_ERROR),
        (b"\xff\xfe", PARSE_ERROR),
        (b"[" * 100_000, PARSE_ERROR),
        (b"[]", INVALID_REQUEST),
        (b'"text"', INVALID_REQUEST),
        (b'{"id": 77, "method": "shutdown"}', INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": {}, "method": "shutdown"}', INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 77, "method": 5}', INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 77, "method": "initialized", "params": {}}', INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 77, "method": "no/such"}', METHOD_NOT_FOUND),
    ],
)
def test_bodies_that_are_no_requests(client: RawClient, body: bytes, code: int) -> None:
    """Answered with the id where it can be read, else with null."""
    client.write(body)
    known = b"77" in body
    client.take_until(lambda: (77 if known else None) in client.answers)
    assert client.answers[77 if known else None]["error"]["code"] == code
    assert_alive(client)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("no/such", {"a": 1}),
        ("textDocument/didOpen", {"textDocument": 5}),
        ("textDocument/didChange", {"textDocument": {"uri": URI, "version": 2}}),
        (
            "textDocument/didChange",
            {"textDocument": {"uri": "file:///never", "version": 2}, "contentChanges": []},
        ),
        (
            "textDocument/didChange",
            {
                "textDocument": {"uri": "file:///never", "version": 2},
                "contentChanges": [{"text": "x"}],
            },
        ),
        ("textDocument/didClose", {"textDocument": {"uri": "file:///never"}}),
        ("$/cancelRequest", {"id": 4711}),
        ("$/cancelRequest", {}),
    ],
)
def test_notifications_that_mean_nothing(client: RawClient, method: str, params: Any) -> None:
    """Nobody asked: no answer, no message in the user's face."""
    client.notify(method, params)
    assert_alive(client)
    assert [note["method"] for note in client.notifications] == []


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "nobody-asked", "result": None},
        {"id": "nobody-asked", "error": {"code": 1, "message": "no"}},
        {"id": None, "error": {"code": 1, "message": "no"}},
        {"result": None},
        {},
    ],
)
def test_answers_to_nothing(client: RawClient, answer: dict[str, Any]) -> None:
    """An answer that no request of ours waits for does no harm."""
    client.write(json.dumps({"jsonrpc": "2.0", **answer}).encode())
    assert_alive(client)


def test_headers_in_another_spelling(client: RawClient) -> None:
    """`content-length` is the same header."""
    request = {"jsonrpc": "2.0", "id": 77, "method": "test/state", "params": {}}
    client.write(json.dumps(request).encode(), header=b"content-length")
    client.take_until(lambda: 77 in client.answers)
    assert_alive(client)


def test_messages_are_forgotten_when_they_are_done(client: RawClient) -> None:
    """A long session keeps nothing of its keystrokes and requests."""
    client.open(URI, "")
    for version in range(2, 102):
        client.change(URI, version, [{"text": "x" * version}])
        client.request("textDocument/inlineCompletion", INLINE)
    assert client.request("test/state", {"uri": None})["num_futures"] == 0
    assert client.close() == 0


def test_requests_at_the_wrong_time() -> None:
    """Before initialize, a second initialize, after shutdown: each is answered as such."""
    with RawClient(SERVER) as client:
        client.open("file:///early.py", "x")  # dropped
        assert error_of(client, "textDocument/codeAction", {}).code == INVALID_PARAMS
        assert error_of(client, "test/state", {}).code == NOT_INITIALIZED
        client.initialize(**CAPABILITIES)
        again = error_of(client, "initialize", {"processId": None, "capabilities": {}})
        assert again.code == INVALID_REQUEST
        assert error_of(client, "test/state", {"uri": "file:///early.py"}).code == INVALID_PARAMS
        client.request("shutdown", None)
        late = error_of(client, "test/state", {"uri": None})
        assert (late.code, str(late)) == (INVALID_REQUEST, "test/state after shutdown")
        client.notify("exit", None)
        assert client.process.wait(timeout=10) == 0


def test_a_cancelled_command_survives_its_clients_late_answer(client: RawClient) -> None:
    """The command is cancelled while the client applies the edit; what the client then says is
    an answer to nothing, and the server lives on."""
    client.open("file:///a.py", "x = ")
    asked: list[Any] = []

    def cancel_first(params: Any) -> dict[str, bool]:
        asked.append(params)
        client.notify("$/cancelRequest", {"id": request_id})
        return {"applied": True}

    client.handlers["workspace/applyEdit"] = cancel_first
    fill = {**FILL, "uri": "file:///a.py"}
    request_id = client.send(
        "workspace/executeCommand", {"command": "dgemma.fill", "arguments": [fill]}
    )
    with pytest.raises(RpcError) as caught:
        client.wait(request_id)
    assert caught.value.code == REQUEST_CANCELLED
    assert len(asked) == 1
    assert_alive(client)
