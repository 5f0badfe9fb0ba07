"""Clients that are quick, late, odd or gone: every request one answer, and no edit astray."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect as connect_websocket

from .clients import CLIENTS, applied, outcome
from .json_rpc import TIMEOUT, RawClient, position

SERVER = str(Path(__file__).with_name("fake_server.py"))
URI = "file:///a.py"
TEXT = "import os\nx = \nprint(x)\n"
CURSOR = {"line": 1, "character": 4}
METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602
REQUEST_CANCELLED, CONTENT_MODIFIED = -32800, -32801
CAPABILITIES: dict[str, Any] = {
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": []}},
            "dataSupport": True,
            "resolveSupport": {"properties": ["edit"]},
        },
    },
}


@contextmanager
def talking(*arguments: str, encoding: str = "utf-16") -> Iterator[RawClient]:
    """A conversation with the scripted server; it ends in good order if the test does."""
    with RawClient(SERVER, *arguments) as client:
        client.initialize(encoding, **CAPABILITIES)
        yield client
        assert client.close() == 0


def inline(uri: str = URI, place: dict[str, int] = CURSOR, **context: Any) -> dict[str, Any]:
    context = {"triggerKind": 2, **context}
    return {"textDocument": {"uri": uri}, "position": place, "context": context}


def action(uri: str = URI, place: dict[str, int] = CURSOR) -> dict[str, Any]:
    data = {"uri": uri, "range": {"start": place, "end": place}, "version": 1}
    return {"title": "Fill here", "data": data}


def insert(client: RawClient, uri: str, line: int, character: int, text: str) -> None:
    place = {"line": line, "character": character}
    client.change(uri, 2, [{"range": {"start": place, "end": place}, "text": text}])


def state(client: RawClient) -> dict[str, Any]:
    told: dict[str, Any] = client.request("test/state", {"uri": None})
    return told


def await_fills(client: RawClient, num_requests: int) -> None:
    """Return once the engine has begun so many fills."""
    while state(client)["num_requests"] < num_requests:
        time.sleep(0.01)


def await_freed(client: RawClient, num_cancelled: int) -> None:
    """Return once the engine has left so many fills before their end."""
    give_up = time.monotonic() + TIMEOUT
    while state(client)["num_cancelled"] < num_cancelled:
        assert time.monotonic() < give_up, "the engine goes on"
        time.sleep(0.01)


# Recorded clients.


@pytest.mark.parametrize("name", CLIENTS)
def test_a_recorded_client_is_offered_what_it_can_use(name: str) -> None:
    """Its favourite encoding and its providers; what was not offered is answered as unknown."""
    profile = CLIENTS[name]
    with RawClient(SERVER) as client:
        offered = profile.introduce(client)
        assert profile.encodings[0] == offered["positionEncoding"]
        ours = ("inlineCompletionProvider", "codeActionProvider", "executeCommandProvider")
        assert profile.providers == {key: offered[key] for key in ours if key in offered}
        client.open(URI, TEXT)
        answer = outcome(client, client.send("textDocument/inlineCompletion", inline()))
        if profile.has_inline_completion:
            assert [item["insertText"] for item in answer["items"]] == ["answer"]
        else:
            assert answer == METHOD_NOT_FOUND
        assert client.close() == 0


@pytest.mark.parametrize("eol", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("name", ["Visual Studio Code", "Neovim", "Emacs eglot"])
def test_an_applied_edit_gives_the_expected_document(name: str, eol: str) -> None:
    """Behind emoji, over two lines, in the client's encoding and the document's separators."""
    profile = CLIENTS[name]
    encoding = profile.encodings[0]
    text = f"é = '😋'{eol}a('😋', old){eol}b('😋'){eol}"
    start, end = text.index("old"), text.rindex("'😋'")
    expected = text[:start] + f"new,{eol}" + text[end:]
    with RawClient(SERVER, "new,\n") as client:
        profile.introduce(client)
        client.open(URI, text)
        edits: list[dict[str, Any]] = []

        def apply(params: Any) -> dict[str, bool]:
            edits.append(params["edit"])
            return {"applied": True}

        client.handlers["workspace/applyEdit"] = apply
        places = {
            "start": position(text, start, encoding),
            "end": position(text, end, encoding),
        }
        params = {
            "textDocument": {"uri": URI},
            "range": places,
            "context": {"diagnostics": []},
        }
        listed = client.request("textDocument/codeAction", params)[0]
        if "command" in listed:
            command = {key: listed["command"][key] for key in ("command", "arguments")}
            assert client.request("workspace/executeCommand", command) is True
        else:
            edits.append(client.request("codeAction/resolve", listed)["edit"])
        (edit,) = edits
        has_versions = name != "Neovim"  # which does not offer documentChanges
        assert has_versions == ("documentChanges" in edit)
        assert expected == applied(edit, URI, text, encoding)
        client.change(URI, 2, [{"range": places, "text": f"new,{eol}"}])
        assert expected == client.request("test/state", {"uri": URI})["text"]
        assert client.close() == 0


# Many requests, and requests taken back.


def test_a_burst_is_answered_request_by_request() -> None:
    """200 requests, every second one taken back: one answer each, and nothing is kept.

    A suggestion that was offered before may be there sooner than it is taken back.
    """
    uris = [f"file:///{number}.py" for number in range(5)]
    with talking("answer", "2", "0.001") as client:
        for uri in uris:
            client.open(uri, TEXT)
        ids = []
        for number in range(200):
            uri = uris[number % 5]
            if number % 4 < 2:
                ids.append(client.send("textDocument/inlineCompletion", inline(uri)))
            else:
                ids.append(client.send("codeAction/resolve", action(uri)))
            if number % 2:
                client.notify("$/cancelRequest", {"id": ids[-1]})
        cancelled = [outcome(client, request_id) == REQUEST_CANCELLED for request_id in ids]
        assert not any(cancelled[::2])
        assert all(cancelled[3::4])
        assert state(client)["num_futures"] == 0


@pytest.mark.parametrize("request_id", [77, "a text"])
@pytest.mark.parametrize("method", ["textDocument/inlineCompletion", "codeAction/resolve"])
def test_a_request_that_is_cancelled_at_once(method: str, request_id: int | str) -> None:
    """The cancellation right behind a request reaches it, and the engine does not go on."""
    params = inline() if method == "textDocument/inlineCompletion" else action()
    asked = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    taken_back = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": request_id}}
    with talking("answer", "1000", "0.02") as client:
        client.open(URI, TEXT)
        client.write(json.dumps(asked).encode())
        client.write(json.dumps(taken_back).encode())
        client.take_until(lambda: request_id in client.answers)
        assert client.answers[request_id]["error"]["code"] == REQUEST_CANCELLED
        await_freed(client, state(client)["num_requests"])


class MuteClient(RawClient):
    """Offers workspace/configuration, and does not answer it."""

    def take(self, message: dict[str, Any] | None) -> None:
        if message is None or message.get("method") != "workspace/configuration":
            super().take(message)


def test_a_client_that_does_not_tell_its_settings() -> None:
    """Requests can be cancelled while its settings are waited for, and are not held up for ever."""
    with MuteClient(SERVER) as client:
        client.initialize(**CAPABILITIES, workspace={"configuration": True})
        client.open(URI, TEXT)
        cancelled = client.send("codeAction/resolve", action())
        waiting = client.send("textDocument/inlineCompletion", inline())
        client.notify("$/cancelRequest", {"id": cancelled})
        assert outcome(client, cancelled) == REQUEST_CANCELLED
        assert waiting not in client.answers
        assert len(client.wait(waiting)["items"]) == 1
        assert state(client)["num_requests"] == 1
        assert client.close() == 0


def test_a_newer_request_frees_the_engine() -> None:
    """The older one of a document is answered with nothing at once; others' are left alone."""
    with talking("answer", "50", "0.01") as client:
        client.open(URI, TEXT)
        client.open("file:///b.py", TEXT)
        older = client.send("textDocument/inlineCompletion", inline())
        await_fills(client, 1)
        other = client.send("textDocument/inlineCompletion", inline("file:///b.py"))
        newer = client.send("textDocument/inlineCompletion", inline())
        assert client.wait(older)["items"] == []
        assert newer not in client.answers
        await_freed(client, 1)
        assert len(client.wait(other)["items"]) == 1
        assert len(client.wait(newer)["items"]) == 1
        assert state(client)["num_cancelled"] == 1


# Documents that move on while a fill is computed.


@pytest.mark.parametrize(
    ("uri", "line", "num_items"),
    [(URI, 0, 0), (URI, 2, 0), ("file:///b.py", 1, 1)],
    ids=["before the hole", "behind the hole", "in another document"],
)
def test_an_edit_elsewhere(uri: str, line: int, num_items: int) -> None:
    """A suggestion is for one text of one document."""
    with talking("answer", "10", "0.02") as client:
        client.open(URI, TEXT)
        client.open("file:///b.py", TEXT)
        asked = client.send("textDocument/inlineCompletion", inline())
        await_fills(client, 1)
        insert(client, uri, line, 0, "#")
        assert len(client.wait(asked)["items"]) == num_items


@pytest.mark.parametrize("is_edited", [False, True])
def test_the_entry_selected_in_the_menu(is_edited: bool) -> None:
    """The item is the entry and its continuation over the entry's range; stale after an edit."""
    entry = {
        "range": {"start": {"line": 1, "character": 0}, "end": {"line": 1, "character": 1}},
        "text": "xs",
    }
    with talking(".name", "10", "0.02") as client:
        client.open(URI, TEXT)
        place = {"line": 1, "character": 1}
        params = inline(place=place, selectedCompletionInfo=entry)
        asked = client.send("textDocument/inlineCompletion", params)
        await_fills(client, 1)
        if is_edited:
            insert(client, URI, 1, 1, "s")
        expected = [{"insertText": "xs.name", "range": entry["range"]}]
        assert ([] if is_edited else expected) == client.wait(asked)["items"]


def test_a_document_closed_during_a_fill() -> None:
    """Silence while typing, an error that names the document for an action."""
    with talking("answer", "10", "0.02") as client:
        client.open(URI, TEXT)
        resolve = client.send("codeAction/resolve", action())
        suggest = client.send("textDocument/inlineCompletion", inline())
        await_fills(client, 1)
        client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        assert outcome(client, resolve) == INVALID_PARAMS
        assert outcome(client, suggest) == {"items": []}


def test_a_document_reopened_during_a_fill() -> None:
    """Its versions begin anew: the same number is another text, to which no edit is applied."""
    with talking("answer", "10", "0.02") as client:
        client.open(URI, TEXT)
        asked = client.send("codeAction/resolve", action())
        await_fills(client, 1)
        client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        client.open(URI, "something\nelse\n")
        assert outcome(client, asked) == CONTENT_MODIFIED


# Odd texts, places and frames.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_half_a_surrogate_pair(encoding: str) -> None:
    """A text that is no Unicode is filled like any other, by its place in code units."""
    text = "s = '\ud83d'; x = "
    place = {"line": 0, "character": len(text) + (2 if encoding == "utf-8" else 0)}
    with talking(encoding=encoding) as client:
        client.open(URI, text)
        (item,) = client.request("textDocument/inlineCompletion", inline(place=place))["items"]
        assert item == {"insertText": "answer", "range": {"start": place, "end": place}}


def test_a_place_beyond_the_text_is_its_end() -> None:
    """Past a line's end is the end of the line; past the last line, of the text."""
    far = 2**31 - 1
    with talking() as client:
        client.open(URI, "x = \n\ny = ")
        for asked, meant in [((0, far), (0, 4)), ((far, 0), (2, 4)), ((2, far), (2, 4))]:
            place = dict(zip(("line", "character"), asked, strict=True))
            params = inline(place=place)
            (item,) = client.request("textDocument/inlineCompletion", params)["items"]
            end = dict(zip(("line", "character"), meant, strict=True))
            assert item["range"] == {"start": end, "end": end}


@pytest.mark.parametrize("num_bytes", [20, 120], ids=["in its headers", "in its body"])
def test_a_frame_in_two_pieces(num_bytes: int) -> None:
    """A pipe cuts where it likes: a whole message and the beginning of one, then the rest."""
    frames = []
    for number in (71, 72):
        request = {"jsonrpc": "2.0", "id": number, "method": "test/state", "params": {}}
        body = json.dumps(request).encode()
        headers = b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n"
        frames.append(b"%bContent-Length: %d\r\n\r\n%b" % (headers, len(body), body))
    first, second = frames
    with talking() as client:
        stream = client.process.stdin
        assert stream is not None
        stream.write(first + second[:num_bytes])
        stream.flush()
        client.take_until(lambda: 71 in client.answers)
        stream.write(second[num_bytes:])
        stream.flush()
        client.take_until(lambda: 72 in client.answers)


def test_the_end_of_stdin_within_a_message() -> None:
    """A client that died while it wrote leaves no server behind."""
    with RawClient(SERVER) as client:
        client.initialize(**CAPABILITIES)
        assert client.process.stdin is not None
        client.process.stdin.write(b'Content-Length: 500\r\n\r\n{"jsonrpc"')
        client.process.stdin.close()
        assert client.process.wait(timeout=TIMEOUT) == 0


# The command itself on a port.


@contextmanager
def serving(transport: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dgemma-lsp serve` on a free port, which it logs."""
    command = [sys.executable, "-m", "dgemma_lsp", "serve", transport, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        match = next(filter(None, (re.search(r"on 127\.0\.0\.1:(\d+)$", line) for line in lines)))
        yield process, int(match[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


REQUESTS: tuple[dict[str, Any], ...] = (
    {"id": 1, "method": "initialize", "params": {"processId": None, "capabilities": {}}},
    {"id": 2, "method": "shutdown"},
    {"method": "exit"},
)


def test_the_command_logs_its_tcp_address() -> None:
    """`--port 0` takes a free one; a client finds it in the log, converses, and ends the server."""
    with serving("--tcp") as (process, port):
        address = ("127.0.0.1", port)
        with socket.create_connection(address, TIMEOUT) as link, link.makefile("rwb") as stream:
            for message in REQUESTS:
                body = json.dumps({"jsonrpc": "2.0", **message}).encode()
                stream.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            stream.flush()
            assert b'"name": "dgemma-lsp"' in stream.read()
        assert process.wait(timeout=TIMEOUT) == 0


def test_the_command_logs_its_websocket_address() -> None:
    """As above, with one message a frame and no headers."""
    with serving("--ws") as (process, port):
        with connect_websocket(f"ws://127.0.0.1:{port}", open_timeout=TIMEOUT) as page:
            for message in REQUESTS:
                page.send(json.dumps({"jsonrpc": "2.0", **message}))
            answers = [json.loads(page.recv(timeout=TIMEOUT)) for _ in range(2)]
        assert [answer["id"] for answer in answers] == [1, 2]
        assert answers[0]["result"]["serverInfo"]["name"] == "dgemma-lsp"
        assert process.wait(timeout=TIMEOUT) == 0
