"""A local HTTP server that says what a test tells it to say, and remembers what it was asked.

It is not vLLM and computes nothing. The forms of answers here were written by hand after the
response classes of vLLM 0.33; none was recorded from a running server. `test_vllm_protocol.py`
holds them against these classes where vLLM is installed.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "google/diffusiongemma-26B-A4B-it"
MAX_WAIT = 20.0  # seconds that a server hangs at most


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body.get("vllm_xargs") or {}
        return found


@dataclass(frozen=True)
class Reply:
    """What the server says: a JSON body, or events; then it may hang until the client is gone.

    `data` in the place of `body` is sent as it is.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Any] | None = None
    data: bytes | None = None
    hangs: bool = False
    hang_up: bool = False


Answer = Callable[[Asked], Reply]


class ReplayServer:
    """The server: `url`, what was `asked` of it, and how many clients left while it hung."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.num_left = 0
        self.clients: set[tuple[str, int]] = set()  # the far ends of connections
        self.num_at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def asked_of(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    def enter(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self.num_at_once += 1
            self.most_at_once = max(self.most_at_once, self.num_at_once)

    def leave(self) -> None:
        with self._lock:
            self.num_at_once -= 1

    def client_left(self) -> None:
        with self._lock:
            self.num_left += 1

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested here."""


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[ReplayServer]:
    server = ReplayServer(answer)
    try:
        yield server
    finally:
        server.close()


def wait_until(is_so: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether something became so in time."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


# --- forms of answers, by hand after vLLM 0.33's classes ---


def models(*names: str, max_model_len: int | None = 4096) -> Reply:
    cards = [
        {
            "id": name,
            "object": "model",
            "created": 1,
            "owned_by": "vllm",
            "root": name,
            "parent": None,
            "max_model_len": max_model_len,
        }
        for name in names or (MODEL,)
    ]
    return Reply({"object": "list", "data": cards})


def error(status: int, message: str, kind: str = "BadRequestError", **headers: str) -> Reply:
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def tokens(token_ids: list[int]) -> Reply:
    return Reply({"count": len(token_ids), "max_model_len": 4096, "tokens": token_ids})


def completion_chunk(
    text: str,
    token_ids: list[int] | None = None,
    log_probabilities: list[float] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    """One event of a streamed completion."""
    logprobs = None
    if log_probabilities is not None:
        names = [f"token_id:{token_id}" for token_id in token_ids or []]
        logprobs = {
            "text_offset": list(range(len(names))),
            "token_logprobs": log_probabilities,
            "tokens": names,
            "top_logprobs": [
                {name: value} for name, value in zip(names, log_probabilities, strict=True)
            ],
        }
    choice = {
        "index": 0,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": token_ids,
    }
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
    }


def completion(text: str, num_prompt_tokens: int = 0, **choice: Any) -> dict[str, Any]:
    """A completion that is not streamed."""
    usage = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": 1,
        "total_tokens": num_prompt_tokens + 1,
    }
    choices = [{"index": 0, "text": text, "finish_reason": "length", **choice}]
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }


def chat_chunk(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}],
    }


def some_json(moments: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, with the names that answers have."""
    names = ("choices", "delta", "content", "text", "token_ids", "logprobs", "token_logprobs")
    names += (
        "data",
        "id",
        "usage",
        "prompt_tokens",
        "tokens",
        "error",
        "message",
        "code",
        "object",
    )
    leaves = (None, True, 0, -1, 2**70, 0.5, 1e308, "", "error", "x" * 50, "\ud800", [], {})
    if depth > 4 or moments.random() < 0.25:
        return moments.choice(leaves)
    if moments.random() < 0.3:
        return [some_json(moments, depth + 1) for _ in range(moments.randrange(3))]
    return {name: some_json(moments, depth + 1) for name in moments.sample(names, 4)}


def _handler(server: ReplayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            server.enter(asked)
            server.clients.add(self.client_address)
            try:
                self._send(server.answer(asked))
            except OSError:
                self.close_connection = True
            finally:
                server.leave()

        def _send(self, reply: Reply) -> None:
            if reply.events is None and not reply.hangs:
                data = reply.data if reply.data is not None else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                kind = "application/json" if reply.data is None else "text/html"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_response(reply.status)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in reply.events or []:
                self._chunk(f"data: {json.dumps(event)}\n\n".encode())
            if reply.hang_up:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if reply.hangs:
                self._hang()
                return
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _hang(self) -> None:
            """Say nothing more until the client closes its connection."""
            self.close_connection = True
            readable, _, _ = select.select([self.connection], [], [], MAX_WAIT)
            if readable and self.connection.recv(1, socket.MSG_PEEK) == b"":
                server.client_left()

    return Handler
