"""How the server starts, ends and fails, through the product's own `serve`."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from .json_rpc import RawClient, RpcError

SERVER = str(Path(__file__).with_name("scripted_server.py"))
URI = "file:///a.py"
REQUEST_FAILED = -32803
PROMPT = 4.0  # seconds; an exit takes 0.1 s, a worker that is stuck 1 s more, on an idle machine
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
PLACE = {"line": 0, "character": 4}
INLINE = {"textDocument": {"uri": URI}, "position": PLACE, "context": {"triggerKind": 1}}
ACTION = {"title": "Fill here", "data": {"uri": URI, "range": {"start": PLACE, "end": PLACE}}}


def start(**options: Any) -> RawClient:
    return RawClient(SERVER, json.dumps(options))


def shown(client: RawClient) -> list[str]:
    """What the user was shown so far."""
    client.request("codeAction/resolve", {"title": "of another server"})  # a round trip
    return [
        note["params"]["message"]
        for note in client.notifications
        if note["method"] == "window/showMessage"
    ]


def test_initialize_is_answered_before_the_engine_loads() -> None:
    """An engine that loads for 60 s holds up neither the start nor the end."""
    with start(load_seconds=60) as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        client.send("textDocument/inlineCompletion", INLINE)
        assert shown(client) == []
        began = time.monotonic()
        assert client.close() == 0
        assert time.monotonic() - began < PROMPT


def test_serving_does_not_import_torch(tmp_path: Path) -> None:
    """A whole conversation with another engine leaves torch where it is."""
    report = tmp_path / "report"
    with start(torch_report=str(report)) as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        assert client.request("textDocument/inlineCompletion", INLINE)["items"]
        assert client.close() == 0
    assert report.read_text() == "False"


def test_what_others_print_is_not_in_the_stream() -> None:
    """print, C code and child processes write to stdout, and read stdin: nothing is lost."""
    with start() as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        for _ in range(3):
            (item,) = client.request("textDocument/inlineCompletion", INLINE)["items"]
            assert item["insertText"] == "answer"
        assert client.close() == 0


def test_shutdown_in_the_middle_of_a_fill() -> None:
    """The fill is withdrawn and answered, and the process ends with status 0."""
    with start(num_passes=1000, pass_seconds=0.05) as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        fill = client.send("codeAction/resolve", ACTION)
        assert shown(client) == []
        began = time.monotonic()
        assert client.close() == 0
        assert time.monotonic() - began < PROMPT
        with pytest.raises(RpcError, match="the request was cancelled"):
            client.wait(fill)


@pytest.mark.parametrize("pass_seconds", [0.05, 60])
def test_the_end_of_stdin_ends_the_process(pass_seconds: float) -> None:
    """An editor that died leaves no server behind, not even one in the middle of a long pass."""
    with start(num_passes=1000, pass_seconds=pass_seconds) as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        client.send("codeAction/resolve", ACTION)
        assert shown(client) == []
        assert client.process.stdin is not None
        client.process.stdin.close()
        assert client.process.wait(timeout=PROMPT) == 0


def test_exit_without_shutdown_has_status_1() -> None:
    """As LSP says."""
    with start() as client:
        client.initialize()
        client.notify("exit", None)
        assert client.process.wait(timeout=PROMPT) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_interrupt_ends_the_process() -> None:
    """Ctrl-C in a terminal: status 130 and no traceback."""
    with start() as client:
        client.initialize()
        client.process.send_signal(signal.SIGINT)
        assert client.process.wait(timeout=PROMPT) == 130


def test_an_engine_that_cannot_be_loaded_is_told_once_while_typing() -> None:
    """One message with the remedy; silence after that; another one for whoever asks."""
    remedy = "dgemma: nowhere is not a checkpoint; choose another model"
    with start() as client:
        client.initialize(**CAPABILITIES, options={"model": "nowhere"})
        client.open(URI, "x = ")
        for _ in range(3):
            assert client.request("textDocument/inlineCompletion", INLINE)["items"] == []
        assert shown(client) == [remedy]
        with pytest.raises(RpcError, match="choose another model") as caught:
            client.request("codeAction/resolve", ACTION)
        assert caught.value.code == REQUEST_FAILED
        assert shown(client) == [remedy, remedy]
        assert client.close() == 0


def test_an_engine_that_fails_is_told_who_asked() -> None:
    """An error nobody foresaw: silence while typing, a message for an action, no trace in it."""
    with start(fill_error="secret = 'code of the user'") as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "x = ")
        assert client.request("textDocument/inlineCompletion", INLINE)["items"] == []
        assert shown(client) == []
        with pytest.raises(RpcError, match="the fill failed") as caught:
            client.request("codeAction/resolve", ACTION)
        assert (caught.value.code, caught.value.data) == (REQUEST_FAILED, None)
        (message,) = shown(client)
        assert message == "dgemma: the fill failed (RuntimeError); the server's log has more"
        assert client.close() == 0


def test_the_log_holds_no_code_of_the_user(tmp_path: Path) -> None:
    """At the info level, not a word of the document or of a fill is written to stderr."""
    path = tmp_path / "log"
    options = {"answer": "fill_of_the_model"}
    with path.open("wb") as log, RawClient(SERVER, json.dumps(options), log=log) as client:
        client.initialize(**CAPABILITIES)
        client.open(URI, "text_of_the_user = ")
        assert client.request("codeAction/resolve", ACTION)["edit"]
        assert client.request("textDocument/inlineCompletion", INLINE)["items"]
        client.notify("textDocument/didChange", {"broken": "word_typed"})
        with pytest.raises(RpcError):
            client.request("textDocument/inlineCompletion", {"broken": "word_typed"})
        assert client.close() == 0
    text = path.read_text(encoding="utf-8")
    assert "line fill: 1 passes" in text, "that there was a fill is logged"
    for word in ("text_of_the_user", "fill_of_the_model", "word_typed"):
        assert word not in text


@contextmanager
def listening(transport: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server on a free port, which may not listen yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = json.dumps({"transport": transport, "port": port})
    process = subprocess.Popen([sys.executable, SERVER, options], stderr=subprocess.DEVNULL)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def connected(port: int) -> socket.socket:
    """A connection to a server that is about to listen."""
    give_up = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            assert time.monotonic() < give_up, "the server does not listen"
            time.sleep(0.05)


REQUESTS: tuple[dict[str, Any], ...] = (
    {"id": 1, "method": "initialize", "params": {"processId": None, "capabilities": {}}},
    {"id": 2, "method": "shutdown"},
    {"method": "exit"},
)


def test_tcp_serves_one_client() -> None:
    """A conversation over a socket, and status 0 at its end."""
    with listening("tcp") as (process, port):
        with connected(port) as connection, connection.makefile("rwb") as stream:
            for message in REQUESTS:
                body = json.dumps({"jsonrpc": "2.0", **message}).encode()
                stream.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            stream.flush()
            answers = stream.read()
        assert b'"name": "dgemma-lsp"' in answers
        assert answers.count(b'"id": 2') == 1
        assert process.wait(timeout=PROMPT) == 0


def test_websocket_serves_one_client_of_this_machine() -> None:
    """A conversation over a websocket; a page of another host is turned away."""
    with listening("ws") as (process, port):
        connected(port).close()
        address = f"ws://127.0.0.1:{port}"
        with pytest.raises(InvalidStatus, match="403"):
            connect_websocket(address, origin="https://evil.example")
        with connect_websocket(address, origin="http://localhost:3000") as page:
            page.send(json.dumps({"jsonrpc": "2.0", **REQUESTS[0]}))
            assert json.loads(page.recv())["result"]["serverInfo"]["name"] == "dgemma-lsp"
            page.send(json.dumps({"jsonrpc": "2.0", **REQUESTS[1]}))
            assert json.loads(page.recv()) == {"jsonrpc": "2.0", "id": 2, "result": None}
            page.send(json.dumps({"jsonrpc": "2.0", **REQUESTS[2]}))
        assert process.wait(timeout=PROMPT) == 0
