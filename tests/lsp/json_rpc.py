"""A client of raw JSON-RPC over a server's pipes, and its own model of a document.

Independent of the product: framing, positions and text edits are written here once more, so that
the tests compare two pieces of work.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

TIMEOUT = 60.0  # seconds; generous, a busy machine loads torch slowly


class RpcError(Exception):
    """The server answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]
        self.data = error.get("data")


class RawClient:
    """One server process and one conversation. Messages are plain dictionaries.

    Attributes:
        notifications: of the server, in their order.
        answers: of the server, by the id of the request; None where it could not be read.
        stray: what was read where only headers may be.
        handlers: method of a request of the server -> what makes its result from its params; the
            others get null.
    """

    def __init__(self, *command: str, log: IO[bytes] | int = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        self.notifications: list[dict[str, Any]] = []
        self.handlers: dict[str, Callable[[Any], Any]] = {}
        self.answers: dict[int | None, dict[str, Any]] = {}
        self._incoming: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.stray = b""
        self._next_id = 0
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, method: str, params: Any) -> int:
        """Send a request and return its id."""
        self._next_id += 1
        self._write({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    def wait(self, request_id: int) -> Any:
        """The result of a request. Requests of the server are answered meanwhile.

        Raises:
            RpcError: the server answered with an error.
        """
        while request_id not in self.answers:
            self.take(self._incoming.get(timeout=TIMEOUT))
        answer = self.answers[request_id]
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    def take(self, message: dict[str, Any] | None) -> None:
        """Sort one message of the server in."""
        assert message is not None, "the server ended before it answered"
        assert not self.stray, "something else than LSP is in the stream"
        if "method" not in message:
            assert message["id"] not in self.answers, "answered twice"
            self.answers[message["id"]] = message
        elif "id" in message:
            handler = self.handlers.get(message["method"], lambda params: None)
            self._write({"id": message["id"], "result": handler(message["params"])})
        else:
            self.notifications.append(message)

    def take_until(self, is_enough: Callable[[], bool]) -> None:
        """Sort messages in until a condition holds."""
        while not is_enough():
            self.take(self._incoming.get(timeout=TIMEOUT))

    def request(self, method: str, params: Any) -> Any:
        """Send a request and wait for its result."""
        return self.wait(self.send(method, params))

    def notify(self, method: str, params: Any) -> None:
        self._write({"method": method, "params": params})

    def initialize(
        self, encoding: str = "utf-16", options: Any = None, **capabilities: Any
    ) -> dict[str, Any]:
        """Shake hands, offering one position encoding; `options` are the initializationOptions."""
        general = {"positionEncodings": [encoding]}
        result: dict[str, Any] = self.request(
            "initialize",
            {
                "processId": None,
                "rootUri": None,
                "capabilities": {"general": general, **capabilities},
                "initializationOptions": options,
            },
        )
        self.notify("initialized", {})
        return result

    def open(self, uri: str, text: str) -> None:
        item = {"uri": uri, "languageId": "python", "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})

    def change(self, uri: str, version: int, changes: list[dict[str, Any]]) -> None:
        document = {"uri": uri, "version": version}
        params = {"textDocument": document, "contentChanges": changes}
        self.notify("textDocument/didChange", params)

    def close(self) -> int:
        """Shut down in good order and return the exit status."""
        self.request("shutdown", None)
        self.notify("exit", None)
        return self.process.wait(timeout=TIMEOUT)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def _write(self, message: dict[str, Any]) -> None:
        self.write(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def write(self, body: bytes, header: bytes = b"Content-Length") -> None:
        """Write one frame, whatever is in it."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%b: %d\r\n\r\n%b" % (header, len(body), body))
        self.process.stdin.flush()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        try:
            while header := stream.readline():
                length = 0
                while header.strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    elif name.lower() != b"content-type":
                        self.stray += header
                    header = stream.readline()
                self._incoming.put(json.loads(stream.read(length)))
        except ValueError:
            pass  # closed by the test
        self._incoming.put(None)


def units(text: str, encoding: str) -> int:
    """Length of a text in the code units of a position encoding."""
    if encoding == "utf-32":
        return len(text)
    if encoding == "utf-8":
        return len(text.encode())
    return sum(2 if ord(character) > 0xFFFF else 1 for character in text)


def position(text: str, offset: int, encoding: str) -> dict[str, int]:
    """LSP position of a character offset, found by walking the text from its start."""
    line, line_start, index = 0, 0, 0
    while index < offset:
        step = 2 if text.startswith("\r\n", index) else 1
        if text[index] in "\r\n":
            if index + step > offset:
                break  # between the two halves of a separator: the end of the line
            line, line_start = line + 1, index + step
        index += step
    return {"line": line, "character": units(text[line_start:index], encoding)}
