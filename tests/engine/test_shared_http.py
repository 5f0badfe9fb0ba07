"""Other tools fill over HTTP; whoever may not is told so, hostile input is answered with 4xx."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgemma_engine import HoleKind, RequestError
from dgemma_engine.shared.client import SharedEngine
from dgemma_engine.shared.http_requests import (
    ContextLimits,
    cut_at_stop,
    parse_body,
    read_chat,
    read_completion,
    read_infill,
)
from dgemma_engine.shared.places import place_of
from dgemma_engine.types import Role

from .shared_fixtures import fakes, run_folder, wait_for

__all__ = ["run_folder"]  # a fixture

COMPLETION = {"model": "any", "prompt": "x = ", "suffix": "\n"}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
# What llama.vim sends for a fill, as of ggml-org/llama.vim@02e6a4f.
LLAMA_VIM = {
    "input_prefix": "def area(w, h):\n",
    "input_suffix": "\n\nprint(area(2, 3))\n",
    "input_extra": [{"text": "WIDTH = 3\n", "time": [1, 2], "filename": "a.py"}],
    "prompt": "    return ",
    "n_predict": 128,
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 10_000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/predicted_n",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Server:
    """One engine that speaks HTTP, and how to speak with it."""

    port: int
    token: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self, path: str, body: object = None, method: str | None = None, **headers: str | None
    ) -> Answer:
        """A request with token and JSON; `headers` replace these, None leaves one out."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given: dict[str, str | None] = {"Authorization": f"Bearer {self.token}"}
        if data is not None:
            given["Content-Type"] = "application/json"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = self.connect()
        try:
            connection.request(
                method or ("GET" if data is None else "POST"),
                path,
                data,
                {name: value for name, value in given.items() if value is not None},
            )
            response = connection.getresponse()
            text = response.read().decode()
            return Answer(response.status, dict(response.getheaders()), text)
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def served(folder: Path, *command: str, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """Start an engine with HTTP in a run folder; end it."""
    folder.chmod(0o700)
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "DGEMMA_LOG_LEVEL": "WARNING",
    }
    arguments = [*command, "serve", "--http", "127.0.0.1:0", *options]
    with subprocess.Popen(arguments, env=environment) as process:
        try:
            found = folder / "dgemma-lsp"
            wait_for(lambda: list(found.glob("*.http")), 30)
            (address,) = found.glob("*.http")
            wait_for(lambda: address.read_text())
            token = found / "http-token"
            port = int(address.read_text().rpartition(":")[2])
            server = Server(port, token.read_text() if token.exists() else "", process)
            wait_for(lambda: server.ask("/health").status == 200, 60)
            yield server
        finally:
            process.terminate()
    assert process.returncode == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A scripted engine whose fills take 20 passes of a millisecond."""
    with served(tmp_path_factory.mktemp("run"), *fakes(pass_seconds=0.001)) as started:
        yield started


def test_completions_with_a_suffix(server: Server) -> None:
    """OpenAI's form, in one piece and as events."""
    answer = server.ask("/v1/completions", {**COMPLETION, "max_tokens": 16, "temperature": 0.2})
    assert answer.status == 200
    assert answer.json["object"] == "text_completion"
    (choice,) = answer.json["choices"]
    assert choice == {"text": "answer x = ", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert set(answer.json["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    streamed = server.ask("/v1/completions", {**COMPLETION, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = streamed.text.split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == "answer x = "
    assert json.loads(events[1].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert events[2:] == ["data: [DONE]", ""]
    stopped = server.ask("/v1/completions", {**COMPLETION, "stop": ["=", " x"]})
    assert stopped.json["choices"][0]["text"] == "answer"


def test_llama_vim_is_answered(server: Server) -> None:
    """Its request as it is, its warm-up, and llama.cpp's stream."""
    answer = server.ask("/infill", LLAMA_VIM).json
    assert answer["content"] == "answer WIDTH = 3\ndef area(w, h):\n    return "
    assert set(answer) == set(LLAMA_VIM["response_fields"])  # type: ignore[call-overload]
    assert answer["truncated"] is False
    warm_up = {**LLAMA_VIM, "n_predict": 0, "samplers": [], "response_fields": [""]}
    assert server.ask("/infill", warm_up).json["content"] == ""
    stream = {"input_prefix": "a", "input_suffix": "b", "stream": True}
    first, last = server.ask("/infill", stream).text.strip().split("\n\n")
    assert json.loads(first.removeprefix("data: "))["content"] == "answer a"
    assert json.loads(last.removeprefix("data: "))["stop"] is True


def test_chat_streams_what_is_settled(server: Server) -> None:
    """One piece a canvas, each as soon as the canvas is done; the same text as in one piece."""
    whole = server.ask("/v1/chat/completions", CHAT).json
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "answer hello" * 2}
    text = server.ask("/v1/chat/completions", {**CHAT, "stream": True}).text
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta.get("content") for delta in deltas[1:-1]] == ["answer hello"] * 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    stopped = {**CHAT, "stream": True, "stop": ["helloanswer"]}  # across two canvases
    text = server.ask("/v1/chat/completions", stopped).text
    chunks = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(said) == "answer "


def test_health_models_and_metrics(server: Server) -> None:
    """Health needs no token; metrics count what was done."""
    assert server.ask("/health", Authorization=None).json == {"status": "ok"}
    assert [model["id"] for model in server.ask("/v1/models").json["data"]] == ["fake"]
    before = server.metric('dgemma_engine_requests_total{outcome="filled"}')
    server.ask("/v1/completions", COMPLETION)
    assert server.metric('dgemma_engine_requests_total{outcome="filled"}') == before + 1
    assert server.metric("dgemma_engine_fill_seconds_count") == before + 1
    assert server.metric("dgemma_engine_resident_bytes") > 1 << 20
    assert server.metric("dgemma_engine_loaded") == 1


def test_who_may_not_is_told_so(server: Server) -> None:
    """No token, a wrong one, another name of the host, a page in a browser."""
    for token in (None, "Bearer wrong", f"bearer {server.token}", server.token, "Bearer \xff"):
        answer = server.ask("/v1/completions", COMPLETION, Authorization=token)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@e"):
        assert server.ask("/v1/models", Host=host).status == 421, host
    for host in ("localhost", f"localhost:{server.port}", "127.0.0.1", "[::1]:1", "LOCALHOST"):
        assert server.ask("/v1/models", Host=host).status == 200, host
    answer = server.ask("/v1/completions", COMPLETION, Origin="http://localhost:3000")
    assert answer.status == 403
    preflight = server.ask("/v1/completions", method="OPTIONS", Authorization=None)
    assert not any(name.startswith("access-control") for name in preflight.headers)


def test_without_a_token_pages_of_browsers_are_refused_all_the_same(tmp_path: Path) -> None:
    """By the name of the host, by where they come from, by the form of what a page can send."""
    with served(tmp_path, *fakes(pass_seconds=0.0), options=("--no-token",)) as server:
        assert server.token == ""
        assert server.ask("/v1/completions", COMPLETION, Authorization=None).status == 200
        assert server.ask("/v1/completions", COMPLETION, Host="evil.example").status == 421
        assert server.ask("/v1/completions", COMPLETION, Origin="null").status == 403
        assert server.ask("/infill", b"{}", Content_Type="text/plain").status == 415


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", b"", 400),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"\xff\xfe", 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b"[" * 200_000, 400),
        ("/v1/completions", b'{"prompt": ' + b"9" * 5000 + b"}", 400),
        ("/v1/completions", b'{"prompt": "\\ud800"}', 400),
        ("/v1/completions", b'{"prompt": "' + b"x" * (9 << 20) + b'"}', 413),
        ("/v1/completions", {}, 400),
        ("/v1/completions", {"prompt": [1, 2]}, 400),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400),
        ("/v1/completions", {**COMPLETION, "n": 2}, 400),
        ("/v1/completions", {**COMPLETION, "echo": True}, 400),
        ("/v1/completions", {**COMPLETION, "max_tokens": 10**9}, 400),
        ("/v1/completions", {**COMPLETION, "max_tokens": 0}, 400),
        ("/v1/completions", {**COMPLETION, "kind": "all"}, 400),
        ("/v1/completions", {**COMPLETION, "stop": [["a"]]}, 400),
        ("/v1/completions", {**COMPLETION, "stream_options": 3}, 400),
        ("/infill", {"input_extra": {}}, 400),
        ("/infill", {"input_extra": [{"filename": "a"}]}, 400),
        ("/infill", {"input_prefix": 3}, 400),
        ("/infill", {"t_max_predict_ms": -1}, 400),
        ("/infill", {"response_fields": "content"}, 400),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "wizard", "content": ""}]}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": ""}]}, 400),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, 400),
        ("/v1/nothing", {}, 404),
        ("/../etc/passwd", {}, 404),
    ],
)
def test_what_cannot_be_used_is_refused(
    server: Server, path: str, body: object, status: int
) -> None:
    """With a status of the client's fault and a sentence."""
    answer = server.ask(path, body)
    assert answer.status == status
    assert answer.json["error"]["message"]


def test_other_forms_are_refused(server: Server) -> None:
    """Of the body, of the method, and of HTTP itself."""
    assert server.ask("/infill", b"{}", Content_Type="text/plain").status == 415
    assert server.ask("/infill", b"{}", Content_Type=None).status == 415
    assert server.ask("/infill").status == 405
    nonsense, nameless = b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"
    for raw in (nonsense, nameless, b"GET /\xff HTTP/9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(4096).startswith(b"HTTP/1.1 4"), raw
    connection = server.connect()
    connection.request("GET", "/health", headers={"X-Big": "x" * 200_000})
    assert connection.getresponse().status == 400
    connection.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*COMPLETION, *LLAMA_VIM, *CHAT, "stop", "seed", "n", "max_tokens", "kind"})


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    path=st.sampled_from(["/v1/completions", "/infill", "/v1/chat/completions"]),
    change=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3),
)
def test_fuzzed_requests_are_answered_or_refused(
    server: Server, path: str, change: dict[str, object]
) -> None:
    """200 or 400, never a failure, and the server goes on."""
    body = {**COMPLETION, "messages": CHAT["messages"], **change}
    assert server.ask(path, body).status in (200, 400)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_bodies_are_read_or_refused(data: bytes) -> None:
    """Nothing but RequestError is raised, whatever comes."""
    for read in (
        lambda body: read_completion(body, ContextLimits()),
        lambda body: read_infill(body, ContextLimits()),
        read_chat,
    ):
        with contextlib.suppress(RequestError):
            read(parse_body(data))


def test_a_client_that_goes_away_takes_its_fill_along(tmp_path: Path) -> None:
    """A request that would take 20 s ends when its connection does, waiting or running."""
    with served(tmp_path, *fakes(pass_seconds=1.0)) as server:
        connections = [server.connect(), server.connect()]
        headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
        for connection, stream in zip(connections, (False, True), strict=True):
            body = json.dumps({**CHAT, "stream": stream})
            connection.request("POST", "/v1/chat/completions", body, headers)
        wait_for(lambda: server.metric("dgemma_engine_waiting") == 1)
        for connection in connections:
            connection.close()
        wait_for(lambda: server.metric('dgemma_engine_requests_total{outcome="withdrawn"}') == 2)
        assert server.metric("dgemma_engine_waiting") == 0


def test_a_real_client_fills_and_chats(server: Server) -> None:
    """The openai package, plain and streaming, and its errors."""
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0) as client:
        done = client.completions.create(model="fake", prompt="x = ", suffix="\n", max_tokens=9)
        assert done.choices[0].text == "answer x = "
        stream = client.completions.create(model="fake", prompt="x = ", suffix="", stream=True)
        assert "".join(event.choices[0].text for event in stream) == "answer x = "
        reply = client.chat.completions.create(model="fake", messages=CHAT["messages"])
        assert reply.choices[0].message.content == "answer hello" * 2
        chunks = client.chat.completions.create(
            model="fake",
            messages=CHAT["messages"],
            stream=True,
            stream_options={"include_usage": True},
        )
        said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(said) == "answer hello" * 2
        assert [model.id for model in client.models.list()] == ["fake"]
        with pytest.raises(openai.BadRequestError, match="n must be 1"):
            client.completions.create(model="fake", prompt="", n=2)
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_only_this_machine_is_served(run_folder: Path) -> None:
    """Another address is refused at the start; without a token it is loopback all the same."""
    path = os.pathsep.join(filter(None, sys.path))
    for address in ("0.0.0.0:0", "example.org:80", "127.0.0.1", "127.0.0.1:99999"):
        done = subprocess.run(
            [*fakes(), "serve", "--http", address],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 2
        assert "takes an address of this machine alone" in done.stderr


def test_windows_and_tools_share_one_model(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor attaches to the very process that speaks HTTP."""
    address = next(tmp_path_factory.getbasetemp().glob("run*/dgemma-lsp/*.http"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(address.parent.parent))
    engine = SharedEngine(command=None)
    assert engine.pid == server.process.pid
    assert server.metric("dgemma_engine_clients") == 1
    engine.close()
    assert place_of("default").http_token.stat().st_mode & 0o777 == 0o600


def test_context_is_cut_at_lines() -> None:
    """The end of the prefix, the start of the suffix, the last of the extras that have room."""
    limits = ContextLimits(prefix_chars=40, suffix_chars=20)
    body = {
        "input_prefix": "first line of the file\n" * 3,
        "prompt": "    return ",
        "input_suffix": "\nnext line\nanother line that is long\n",
        "input_extra": [{"text": "x" * 50}, {"text": "near"}],
    }
    asked = read_infill(body, limits)
    assert asked.request.prefix == "near\nfirst line of the file\n    return "
    assert asked.request.suffix == "\nnext line\n"
    assert asked.was_truncated
    assert asked.request.kind is HoleKind.LINE
    assert read_infill({"prompt": "    ", "input_suffix": "\n"}, limits).request.kind is (
        HoleKind.BLOCK
    )
    assert read_completion({**COMPLETION, "kind": "block"}, limits).request.kind is HoleKind.BLOCK


def test_turns_and_stops_are_read() -> None:
    """Parts of text are joined, developers are the system, an empty stop is none."""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    asked = read_chat({"messages": messages, "stop": "", "seed": -1, "max_completion_tokens": 7})
    assert asked.request.turns == ((Role.SYSTEM, "Be brief."), (Role.USER, "ab"))
    assert (asked.stops, asked.request.max_tokens, asked.request.seed) == ((), 7, 2**63 - 1)
    assert cut_at_stop("a; b, c", (",", ";")) == "a"


def test_the_token_is_long_and_never_told(server: Server) -> None:
    """Not by what anybody may read, nor by what needs it."""
    assert len(server.token) >= 32
    for path in ("/health", "/metrics", "/v1/models"):
        assert server.token not in server.ask(path).text


@pytest.mark.slow
def test_the_shipped_model_over_http(tmp_path: Path) -> None:
    """The fill is the private engine's; it does not chat and says so."""
    from dgemma_engine import InfillRequest, load_engine

    prefix, suffix = "def area(width, height):\n    return ", "\n\n\nprint(area(2, 3))\n"
    expected = load_engine().fill(InfillRequest(prefix, suffix, language_id="python"))
    with served(tmp_path, sys.executable, "-m", "dgemma_engine") as server:
        body = {"prompt": prefix, "suffix": suffix, "language": "python"}
        answer = server.ask("/v1/completions", body).json
        assert answer["choices"][0]["text"] == expected.text
        assert answer["model"] == "fill-4m"
        assert answer["usage"]["prompt_tokens"] == expected.num_context_tokens
        infill = server.ask("/infill", LLAMA_VIM).json
        assert infill["content"]
        assert infill["timings/predicted_n"] > 0
        refusal = server.ask("/v1/chat/completions", {**CHAT, "stream": True})
        assert refusal.status == 400
        assert "fills holes and does not chat" in refusal.json["error"]["message"]
