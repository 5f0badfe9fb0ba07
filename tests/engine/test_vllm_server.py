"""A server that is not as one would wish, and the ways to ask one that knows no canvas."""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from dgemma_engine import (
    CancellationToken,
    Cancelled,
    CheckpointError,
    ConfigError,
    ContextTooLong,
    Decoder,
    DGemmaError,
    DraftStep,
    EngineUnavailable,
    HoleKind,
    RequestError,
    StopReason,
)
from dgemma_engine.tokenizer import Tokenizer
from dgemma_engine.vllm import Patience, ServerUnreachable, VllmEngine
from dgemma_engine.vllm import client as client_module
from dgemma_engine.vllm.prompted import read_reply

from .replay_server import (
    Answer,
    Asked,
    Reply,
    chat_chunk,
    completion,
    completion_chunk,
    error,
    models,
    serving,
    some_json,
    tokens,
    wait_until,
)
from .tiny import CHAT_TOKENS, save_checkpoint
from .tiny import sample_request as request

KEY = "team-key-0123456789"
SHORT = Patience(connect_seconds=1.0, read_seconds=1.0, attempts=3, first_wait_seconds=0.01)


def chats(*parts: str) -> Answer:
    """A server that knows chat and nothing else."""

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/models":
            return models()
        if asked.path == "/v1/chat/completions":
            events = [chat_chunk(part) for part in parts]
            return Reply(events=[*events, chat_chunk("", "stop")])
        return Reply({"detail": "Not Found"}, 404)

    return answer


def after(first: list[Reply], then: Answer, path: str = "/v1/chat/completions") -> Answer:
    """These replies, one after another, to a path; then as `then` says."""
    left = list(first)

    def answer(asked: Asked) -> Reply:
        return left.pop(0) if asked.path == path and left else then(asked)

    return answer


@pytest.fixture
def connect() -> Iterator[Callable[..., VllmEngine]]:
    engines: list[VllmEngine] = []

    def start(url: str, *arguments: Any, **changes: Any) -> VllmEngine:
        engines.append(VllmEngine(url, *arguments, **{"patience": SHORT, **changes}))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", CHAT_TOKENS)


# --- failures: each says what happened and what to do ---

FAILURES = {
    "no key": (error(401, "Unauthorized"), None, EngineUnavailable, "put one into TEAM_KEY"),
    "wrong key": (error(401, "Unauthorized"), KEY, EngineUnavailable, "Check the key in TEAM_KEY"),
    "forbidden": (error(403, "not yours"), KEY, EngineUnavailable, "not yours"),
    "too long": (
        error(400, "This model's maximum context length is 4096 tokens."),
        None,
        ContextTooLong,
        "--max-model-len",
    ),
    "too large": (error(413, "Payload too large"), None, ContextTooLong, "Lower prefixChars"),
    "refused": (error(400, "temperature must be 0"), None, RequestError, "temperature must be 0"),
    "invalid": (error(422, "no such field"), None, RequestError, "no such field"),
    "busy": (error(429, "slow down"), None, ServerUnreachable, "too many requests"),
    "broken": (error(500, "EngineCore died"), None, ServerUnreachable, "EngineCore died"),
    "overloaded": (error(503, "no replicas"), None, ServerUnreachable, "no replicas"),
    "moved": (
        Reply({}, 307, {"location": "http://x"}),
        None,
        EngineUnavailable,
        "points elsewhere",
    ),
    "no json": (Reply(data=b"<html>hello"), None, EngineUnavailable, "OpenAI-compatible"),
    "no list": (Reply([1, 2]), None, EngineUnavailable, "OpenAI-compatible"),
    "other shape": (
        Reply(events=[{"choices": ["text"]}]),
        None,
        EngineUnavailable,
        "another shape",
    ),
    "error in stream": (
        Reply(events=[error(400, "maximum context length").body]),
        None,
        ContextTooLong,
        "context length",
    ),
    "cut off": (Reply(events=[], hang_up=True), None, ServerUnreachable, "broke"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_what_to_do(name: str, connect: Callable[..., VllmEngine]) -> None:
    """Every HTTP failure has its own error, with the server's words and a remedy."""
    reply, key, kind, words = FAILURES[name]
    with serving(after([reply] * 9, chats("x"))) as server:
        engine = connect(server.url, key=key, key_source="TEAM_KEY")
        with pytest.raises(kind) as caught:
            engine.fill(request())
    assert words in str(caught.value)
    assert server.url in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(data=b"<html>It works"), "not as an OpenAI-compatible server does (text/html)"),
        (Reply({"detail": "Not Found"}, 404), "has no /v1/models"),
        (Reply({"object": "list", "data": [{"name": "x"}]}), "no list of models"),
        (models("a", "b"), "serves several models, say which: a, b"),
        (Reply({"object": "list", "data": []}), "serves several models, say which: none"),
    ],
)
def test_what_is_no_such_server_is_said_at_connect(
    reply: Reply, words: str, connect: Callable[..., VllmEngine]
) -> None:
    """A URL that leads somewhere else is not taken for a server."""
    with serving(lambda asked: reply) as server, pytest.raises(EngineUnavailable) as caught:
        connect(server.url)
    assert words in str(caught.value)


def test_a_model_that_is_not_there(connect: Callable[..., VllmEngine]) -> None:
    """The message lists those that are."""
    with (
        serving(lambda asked: models("qwen", "gemma")) as server,
        pytest.raises(EngineUnavailable, match="not serve 'llama'; it serves qwen, gemma"),
    ):
        connect(server.url, "llama")


def test_a_model_that_went_away(connect: Callable[..., VllmEngine]) -> None:
    """The engine finds out anew what is served, and says so."""
    served = ["old"]

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/models":
            return models(*served)
        if asked.body.get("model") not in served:
            return error(404, "The model `old` does not exist.", "NotFoundError")
        return chats("x")(asked)

    with serving(answer) as server:
        engine = connect(server.url, "old")
        assert engine.fill(request()).text == "x"
        served[:] = ["new"]
        with pytest.raises(EngineUnavailable, match="does not serve 'old'; it serves new"):
            engine.fill(request())
        served[:] = ["old"]
        assert engine.fill(request()).text == "x"


def test_nobody_listens(connect: Callable[..., VllmEngine], monkeypatch: Any) -> None:
    """A server that is down when the engine is made is asked again by a later fill."""
    monkeypatch.setattr("dgemma_engine.vllm.engine._REST", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    engine = connect(f"http://127.0.0.1:{port}")
    assert engine.info.strategy == "not connected"
    with pytest.raises(ServerUnreachable, match="nobody listens at"):
        engine.fill(request())


def test_a_server_that_comes_back(connect: Callable[..., VllmEngine], monkeypatch: Any) -> None:
    """It is left alone for a while, then asked again; no new engine is needed."""
    monkeypatch.setattr("dgemma_engine.vllm.engine._REST", 0.2)
    is_up = False

    def answer(asked: Asked) -> Reply:
        return chats("x")(asked) if is_up else error(503, "loading")

    with serving(answer) as server:
        engine = connect(server.url)
        count = len(server.asked)
        with pytest.raises(ServerUnreachable, match="loading"):
            engine.fill(request())
        assert len(server.asked) == count
        is_up = True
        time.sleep(0.25)
        assert engine.fill(request()).text == "x"
        assert engine.info.strategy == "chat"


def test_no_such_host(connect: Callable[..., VllmEngine]) -> None:
    """A name that nobody knows is told from a server that is down."""
    once = Patience(connect_seconds=5.0, attempts=1)
    engine = connect("http://no-such-host.invalid:8000", patience=once)
    with pytest.raises(ServerUnreachable, match="no such host"):
        engine.fill(request())


def test_a_server_that_says_nothing(connect: Callable[..., VllmEngine]) -> None:
    """An answer that stops coming is given up after the time between two pieces."""
    quick = Patience(read_seconds=0.2)
    with serving(after([Reply(events=[], hangs=True)], chats("x"))) as server:
        engine = connect(server.url, patience=quick)
        with pytest.raises(ServerUnreachable, match=r"said nothing for 0\.2 s"):
            engine.fill(request())
        assert wait_until(lambda: server.num_left == 1)


def test_http_where_https_was_meant(connect: Callable[..., VllmEngine]) -> None:
    """A server without TLS, asked with it."""
    with (
        serving(chats("x")) as server,
        pytest.raises(EngineUnavailable, match="does not speak TLS"),
    ):
        connect(server.url.replace("http://", "https://"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_signed(
    tmp_path: Path, connect: Callable[..., VllmEngine]
) -> None:
    """Certificates are verified; the message names the way to add one's own authority."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=shake)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}"
        with pytest.raises(EngineUnavailable, match=r"not trusted: self.signed.*SSL_CERT_FILE"):
            connect(url.replace("localhost", "127.0.0.1"))
        thread.join()


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
def test_hostile_answers_are_errors_of_ours(
    seed: int, folder: Path, connect: Callable[..., VllmEngine], monkeypatch: Any
) -> None:
    """Whatever a server answers, at connect or to a fill: a fill, or an error that we know."""
    monkeypatch.setattr("dgemma_engine.vllm.engine._REST", 0.0)
    moments = random.Random(seed)
    good = prompts(Tokenizer.load(folder), lambda _: "x")

    def answer(asked: Asked) -> Reply:
        what = moments.random()
        if what < 0.5:
            return good(asked)
        if what < 0.7:
            return Reply(events=[some_json(moments) for _ in range(2)])
        status = moments.choice((200, 200, 400, 404, 418, 500))
        return Reply(some_json(moments), status)

    hurried = Patience(read_seconds=1.0, attempts=1)
    num_errors = 0
    with serving(answer) as server:
        for number in range(12):
            try:
                tokenizer = folder if number % 2 else None
                engine = connect(server.url, tokenizer=tokenizer, patience=hurried)
                assert isinstance(engine.fill(request()).text, str)
            except DGemmaError:
                num_errors += 1
    assert num_errors > 3


# --- the URL and the key ---


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be like https://host"),
        ("localhost:8000", "must be like https://host"),
        ("ftp://host", "must be like https://host"),
        ("https://", "must be like https://host"),
        ("http://host:99999", "cannot be read"),
        (f"https://user:{KEY}@host", "no user, password"),
        (f"https://host/v1?api-key={KEY}", "query"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, words: str) -> None:
    """It is refused before anything is sent, and no secret in it is shown."""
    with pytest.raises(ConfigError) as caught:
        VllmEngine(url)
    assert words in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_key_that_no_header_carries() -> None:
    """A line break at the key's end is found here, and the key is not shown."""
    with pytest.raises(ConfigError, match="a line break or a space") as caught:
        VllmEngine("http://127.0.0.1:1", key=f"{KEY}\n")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/team", "/team/v1"])
def test_the_url_may_end_as_people_write_it(end: str, connect: Callable[..., VllmEngine]) -> None:
    """With or without /v1, and behind a path of a gateway."""
    path = end.removesuffix("/").removesuffix("/v1")

    def answer(asked: Asked) -> Reply:
        assert asked.path.startswith(path)
        return chats("x")(Asked(asked.method, asked.path.removeprefix(path), {}, asked.body))

    with serving(answer) as server:
        assert connect(server.url + end).fill(request()).text == "x"


def test_the_key_is_sent_and_never_told(
    connect: Callable[..., VllmEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """Each request carries it; no log of any level and no error has it, even if the server does."""
    caplog.set_level(logging.DEBUG)
    replies = [
        error(503, f"busy, {KEY}"),
        Reply({}, 307, {"location": f"http://{KEY}"}),
        error(401, f"Incorrect key: {KEY}"),
        error(400, f"bad field near {KEY}", retry_after=KEY),
    ]
    with serving(after(replies, chats("x"))) as server:
        engine = connect(server.url, key=KEY)
        told = [repr(engine), str(vars(engine)), repr(engine.info), repr(engine._server.address)]
        for _ in range(3):
            with pytest.raises(DGemmaError) as caught:
                engine.fill(request())
            told += [str(caught.value), repr(caught.value), repr(caught.value.__dict__)]
        assert engine.fill(request()).text == "x"
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert not [text for text in told if KEY in text]
    assert KEY not in caplog.text


def test_no_code_in_errors(connect: Callable[..., VllmEngine]) -> None:
    """A server that quotes the request in its refusal does not get it into our message."""
    words = "1 validation error: [{'type': 'int', 'loc': ['body'], 'input': 'def secret(): pass'}]"
    with (
        serving(after([error(422, words)], chats("x"))) as server,
        pytest.raises(RequestError) as caught,
    ):
        connect(server.url).fill(request())
    assert "1 validation error" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key_over_plain_http_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """Not on loopback, not without a key, and once a server."""
    monkeypatch.setattr(client_module, "_warned", set())
    for url, key in [
        ("http://127.0.0.1:1", KEY),
        ("http://localhost:1", KEY),
        ("http://[::1]:1", KEY),
        ("http://team.example", None),
        ("https://team.example", KEY),
        ("http://team.example", KEY),
        ("http://team.example", KEY),
    ]:
        client_module.Server(url, key)
    warnings = [record for record in caplog.records if "not encrypted" in record.message]
    assert len(warnings) == 1
    assert "http://team.example" in warnings[0].message


def test_a_missing_package_is_named() -> None:
    """Without httpx2 the engine says which extra to install."""
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from dgemma_engine.errors import EngineUnavailable\n"
        "try:\n    import dgemma_engine.vllm\n"
        "except EngineUnavailable as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'dgemma-lsp[remote]'" in found.stdout


def test_torch_is_not_needed() -> None:
    """A user of a server imports no torch."""
    code = "import sys, dgemma_engine.vllm; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# --- retries ---


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_was_put_off_is_asked_again(status: int, connect: Callable[..., VllmEngine]) -> None:
    """Twice put off, the third time answered."""
    with serving(after([error(status, "later")] * 2, chats("x"))) as server:
        assert connect(server.url).fill(request()).text == "x"
        assert len(server.asked_of("/v1/chat/completions")) == 3


@pytest.mark.parametrize("reply", [error(500, "no"), error(400, "no"), Reply([], hang_up=True)])
def test_what_failed_is_not_asked_again(reply: Reply, connect: Callable[..., VllmEngine]) -> None:
    """A request that reached the server and failed there may fail there again."""
    events = Reply(events=[], hang_up=True) if reply.hang_up else reply
    with serving(after([events], chats("x"))) as server:
        engine = connect(server.url)
        with pytest.raises(DGemmaError):
            engine.fill(request())
        assert len(server.asked_of("/v1/chat/completions")) == 1


def test_retries_are_bounded(connect: Callable[..., VllmEngine]) -> None:
    """As often as it says, and not once more."""
    with serving(after([error(503, "later")] * 99, chats("x"))) as server:
        engine = connect(server.url)
        with pytest.raises(ServerUnreachable, match="later"):
            engine.fill(request())
        assert len(server.asked_of("/v1/chat/completions")) == SHORT.attempts


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool, connect: Callable[..., VllmEngine]) -> None:
    """In seconds or as a date; a date has no fractions, so it may be less than a second away."""
    value = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    with serving(after([error(429, "later", retry_after=value)], chats("x"))) as server:
        engine = connect(server.url)
        start = time.monotonic()
        assert engine.fill(request()).text == "x"
    assert 0.9 < time.monotonic() - start < 3.5


def test_a_long_retry_after_is_told_and_not_waited_for(connect: Callable[..., VllmEngine]) -> None:
    """The message says how long the server asks to wait."""
    with serving(after([error(429, "later", retry_after="600")], chats("x"))) as server:
        engine = connect(server.url)
        start = time.monotonic()
        with pytest.raises(ServerUnreachable, match="asks to wait 600 s"):
            engine.fill(request())
    assert time.monotonic() - start < 2.0


def test_waits_differ(monkeypatch: Any) -> None:
    """Jitter: two engines that were put off together do not come back together."""
    server = client_module.Server("http://127.0.0.1:1", None)
    waits = [server._wait(3, None) for _ in range(50)]
    limit = 4 * server.patience.first_wait_seconds
    assert len(set(waits)) > 40
    assert all(wait is not None and 0 <= wait <= limit for wait in waits)
    asked = [server._wait(1, "2") for _ in range(50)]
    assert len(set(asked)) > 40
    assert all(wait is not None and wait >= 2 for wait in asked)
    assert server._wait(server.patience.attempts, None) is None
    assert server._wait(1, "600") is None


# --- cancellation and deadlines of what streams ---


def test_cancelling_closes_the_stream(connect: Callable[..., VllmEngine]) -> None:
    """In mid-answer: the server sees the client leave, within moments."""
    with serving(after([Reply(events=[chat_chunk("x")], hangs=True)], chats("y"))) as server:
        engine = connect(server.url)
        cancel = CancellationToken()
        with pytest.raises(Cancelled):
            engine.fill(request(), on_step=lambda _: cancel.cancel(), cancel=cancel)
        start = time.monotonic()
        assert wait_until(lambda: server.num_left == 1)
        assert time.monotonic() - start < 1.0
        assert engine.fill(request()).text == "y"


def test_cancelled_while_it_waits_to_try_again(connect: Callable[..., VllmEngine]) -> None:
    """A retry does not hold a withdrawn request."""
    with serving(after([error(429, "later", retry_after="5")], chats("x"))) as server:
        engine = connect(server.url)
        cancel = CancellationToken()
        threading.Timer(0.2, cancel.cancel).start()
        start = time.monotonic()
        with pytest.raises(Cancelled):
            engine.fill(request(), cancel=cancel)
        assert time.monotonic() - start < 2.0


def test_cancelled_before_it_is_sent(connect: Callable[..., VllmEngine]) -> None:
    """A request withdrawn while it was queued never reaches the server."""
    with serving(chats("x")) as server:
        engine = connect(server.url)
        cancel = CancellationToken()
        cancel.cancel()
        with pytest.raises(Cancelled):
            engine.fill(request(), cancel=cancel)
        assert server.asked_of("/v1/chat/completions") == []


def test_a_deadline_takes_what_has_come(connect: Callable[..., VllmEngine]) -> None:
    """The text so far is the fill, and the stream is closed."""
    hangs = Reply(events=[chat_chunk("```\nx + ")], hangs=True)
    with serving(after([hangs], chats("y"))) as server:
        result = connect(server.url).fill(request(deadline=time.monotonic() + 0.3))
        assert wait_until(lambda: server.num_left == 1)
    assert result.text == "x + "
    assert result.stop_reason is StopReason.DEADLINE


def test_connections_are_used_again(connect: Callable[..., VllmEngine]) -> None:
    """Fill after fill over one connection: no handshake while typing."""
    with serving(chats("x")) as server:
        engine = connect(server.url)
        for _ in range(5):
            engine.fill(request())
        assert len(server.clients) == 1


def test_an_answer_that_does_not_stream(connect: Callable[..., VllmEngine]) -> None:
    """Some servers ignore that a stream was asked for."""
    whole = completion("```\nx + 1\n```", 7)
    whole["choices"][0] = {"message": {"content": "```\nx + 1\n```"}, "finish_reason": "stop"}
    with serving(after([Reply(whole)], chats("y"))) as server:
        result = connect(server.url).fill(request())
    assert (result.text, result.num_context_tokens) == ("x + 1", 7)


def test_one_request_at_a_time(connect: Callable[..., VllmEngine]) -> None:
    """Two threads that fill with one engine: the second waits for the first."""
    with serving(chats("x")) as server:
        engine = connect(server.url)
        threads = [threading.Thread(target=engine.fill, args=(request(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked_of("/v1/chat/completions")) == 4
        assert server.most_at_once == 1


def test_a_closed_engine_says_so(connect: Callable[..., VllmEngine]) -> None:
    """Closing twice is harmless, filling afterwards is an error."""
    with serving(chats("x")) as server:
        engine = connect(server.url)
        engine.close()
        engine.close()
        with pytest.raises(EngineUnavailable, match="closed"):
            engine.fill(request())


# --- chat ---

REPLIES = {
    "a block": ("```python\nx + 1\n```\n", "x + 1"),
    "prose before and after": ("Sure!\n```python\nx + 1\n```\nThat adds.", "x + 1"),
    "the line again": ("```python\n    return lex + 1\n```", "x + 1"),
    "the line again, without its indentation": ("```\nreturn lex + 1\n```", "x + 1"),
    "no block": ("x + 1", "x + 1"),
    "an empty block": ("```python\n```", ""),
    "the suffix again": ("```python\nx + 1 right\n\n\nclass Point:\n```", "x + 1"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_cut_to_the_hole(name: str) -> None:
    """Fences, talk, and what is repeated of either side are not the fill."""
    reply, expected = REPLIES[name]
    prefix, suffix = "def add(left, right):\n    return le", " right\n\n\nclass Point:\n"
    for kind in (HoleKind.LINE, HoleKind.BLOCK):
        asked_for = request(prefix=prefix, suffix=suffix, kind=kind)
        assert read_reply(reply, asked_for) == expected


def test_chat_streams_drafts(connect: Callable[..., VllmEngine]) -> None:
    """What has come so far is shown, cut like the fill."""
    steps: list[DraftStep] = []
    with serving(chats("```py", "thon\nfirst", "_line\nsecond", "_line\n```", " bye")) as server:
        engine = connect(server.url)
        result = engine.fill(request(kind=HoleKind.BLOCK), steps.append)
    assert result.text == "first_line\nsecond_line"
    assert [step.text for step in steps][-1] == result.text
    assert [step.step for step in steps] == list(range(len(steps)))
    assert "`" not in "".join(step.text for step in steps)
    assert result.decoder is Decoder.DIFFUSION  # by the model's name
    assert result.confidence == 1.0


def test_a_length_cannot_be_told(connect: Callable[..., VllmEngine]) -> None:
    """As with our own chat strategy."""
    with serving(chats("x")) as server, pytest.raises(RequestError, match="num_tokens"):
        connect(server.url).fill(request(num_tokens=3))


# --- suffix ---


def fills_in_the_middle(text: str, is_read: bool = True) -> Answer:
    """A server whose completions take a suffix, or ignore it."""

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/models":
            return models("codestral")
        if asked.path != "/v1/completions":
            return Reply({"detail": "Not Found"}, 404)
        if not asked.body.get("stream"):
            count = 3 + (40 if is_read and asked.body.get("suffix") else 0)
            logprobs = {"token_logprobs": [-0.1], "tokens": ["x"]}
            return Reply(completion("x", count, logprobs=logprobs))
        half = len(text) // 2
        first = completion_chunk(text[:half], None, [])
        last = completion_chunk(text[half:], None, [], "stop")
        first["choices"][0]["logprobs"] = {"token_logprobs": [-0.5]}
        last["choices"][0]["logprobs"] = {"token_logprobs": [-0.25]}
        return Reply(events=[first, last])

    return answer


def test_a_suffix_is_sent_and_not_repeated(connect: Callable[..., VllmEngine]) -> None:
    """Both sides go as they are; what the fill repeats of the suffix is cut."""
    asked_for = request(max_tokens=7)
    with serving(fills_in_the_middle("ft + right\n")) as server:
        engine = connect(server.url)
        assert engine.info.strategy == "suffix"
        result = engine.fill(asked_for)
        body = server.asked[-1].body
    assert (body["prompt"], body["suffix"]) == (asked_for.prefix, asked_for.suffix)
    assert (body["max_tokens"], body["seed"], body["stop"]) == (7, 0, ["\n"])
    assert result.decoder is Decoder.LEFT_TO_RIGHT
    assert not (result.text + asked_for.suffix).startswith("ft + right right")
    assert result.confidence == pytest.approx(2.718281828**-0.75)


def test_a_suffix_that_is_ignored_is_not_trusted(connect: Callable[..., VllmEngine]) -> None:
    """Servers that take the field and do not read it would repeat the rest of the file."""
    with serving(fills_in_the_middle("x", is_read=False)) as server:
        assert connect(server.url).info.strategy == "chat"
    with (
        serving(fills_in_the_middle("x", is_read=False)) as server,
        pytest.raises(EngineUnavailable, match="suffix: it takes no suffix"),
    ):
        connect(server.url, level="suffix")


# --- the chat strategy's own prompt ---


def prompts(tokenizer: Tokenizer, reply: Callable[[Asked], str]) -> Answer:
    """An older vLLM: token ids go in and come out, a canvas is not known, nor a suffix."""

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/models":
            return models()
        if asked.path == "/tokenize":
            special = tokenizer.token_id(asked.body["prompt"])
            return tokens(tokenizer.encode(asked.body["prompt"]) if special is None else [special])
        if asked.path != "/v1/completions":
            return Reply({"detail": "Not Found"}, 404)
        if "suffix" in asked.body:
            return error(400, "suffix is only supported for models with FIM completion rendering")
        if not asked.body.get("stream"):
            return Reply(completion("x", 3))
        end = tokenizer.token_id("<turn|>")
        assert end is not None
        ids = [*tokenizer.encode(reply(asked)), end, 0, 0]
        return Reply(events=[completion_chunk("", ids, [-0.1] * len(ids), "stop")])

    return answer


def test_an_older_vllm_gets_our_own_prompt(
    folder: Path, connect: Callable[..., VllmEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """The ids are the chat strategy's; the reply is healed and cut like its; the log says why."""
    import torch

    from dgemma_engine.config import ModelConfig
    from dgemma_engine.strategies.chat import ChatStrategy

    from .tiny import config_json

    caplog.set_level(logging.INFO)
    tokenizer = Tokenizer.load(folder)
    config = ModelConfig.from_json(config_json())
    asked_for = request()
    plan = ChatStrategy(tokenizer, config, torch.device("cpu")).plan(asked_for)
    healed = plan.healed.decode()
    assert healed
    with serving(prompts(tokenizer, lambda _: f"{healed}ft + left\n```\nDone.")) as server:
        engine = connect(server.url, tokenizer=folder)
        result = engine.fill(asked_for)
        body = server.asked[-1].body
    assert engine.info.strategy == "prompt"
    assert body["prompt"] == plan.prompt_ids
    assert result.text == "ft + left"
    assert result.decoder is Decoder.DIFFUSION
    assert len(result.token_confidences) == len(result.token_ends) > 0
    assert "holes are filled by prompt; not by in-painting: it does not read" in caplog.text
    assert "nor by suffix: it takes no suffix" in caplog.text


def test_a_reply_that_does_not_continue_the_cursor_is_asked_again(
    folder: Path, connect: Callable[..., VllmEngine]
) -> None:
    """A token cannot be forced on a server: then the prompt keeps what the cursor cut."""
    tokenizer = Tokenizer.load(folder)
    with serving(prompts(tokenizer, lambda _: "xx")) as server:
        engine = connect(server.url, tokenizer=folder)
        assert engine.fill(request()).text == "xx"
        first, second = (asked.body["prompt"] for asked in server.asked[-2:])
    assert second[: len(first)] == first
    assert len(second) == len(first) + 1


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        VllmEngine("http://127.0.0.1:1", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        VllmEngine("http://127.0.0.1:1", tokenizer=tmp_path)


def test_a_level_that_is_not_known() -> None:
    """The message lists those that are."""
    with pytest.raises(ConfigError, match="in-painting, suffix, prompt, chat"):
        VllmEngine("http://127.0.0.1:1", level="magic")


def test_one_of_several_models_is_found_by_its_folder(
    folder: Path, connect: Callable[..., VllmEngine]
) -> None:
    """The checkpoint's folder is usually called like the model."""
    names = ["team/other", f"team/{folder.name}"]

    def answer(asked: Asked) -> Reply:
        return models(*names) if asked.path == "/v1/models" else chats("x")(asked)

    with serving(answer) as server:
        assert connect(server.url, tokenizer=folder).info.model == names[1]


def test_tokens_are_counted(folder: Path, connect: Callable[..., VllmEngine]) -> None:
    """With the tokenizer exactly, without one about."""
    with serving(chats("x")) as server:
        exact = connect(server.url, tokenizer=folder)
        about = connect(server.url)
    text = "left + right"
    assert exact.count_tokens(request(prefix=""), text) == len(Tokenizer.load(folder).encode(text))
    assert 1 <= about.count_tokens(request(), text) <= len(text)
