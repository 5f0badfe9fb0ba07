"""The shared engine reads code: nobody else gets to it, and nothing that is said to it harms it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgemma_engine import Cancelled, EngineUnavailable, InfillRequest, RequestError
from dgemma_engine.shared import wire
from dgemma_engine.shared.client import SharedEngine
from dgemma_engine.shared.places import place_of, private_folder
from dgemma_engine.types import DraftStep, DraftToken, HoleKind, InfillResult

from .shared_fixtures import Attach, attach, run_folder

__all__ = ["attach", "run_folder"]  # fixtures

REQUEST = InfillRequest("def area(w, h):\n    return ", "\n", language_id="python")
NOBODY = 65534

# Tries, as another user, to say something to the socket.
INTRUDER = """
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(5)
try:
    connection.connect(sys.argv[1])
except PermissionError:
    print("cannot open it")
else:
    print(connection.recv(4096))
"""


def intrude(path: Path) -> str:
    program = INTRUDER.format(uid=NOBODY)
    command = ["/usr/bin/env", "python3", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose path others can walk: what keeps them out is ours."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becoming another user needs root"
)


@needs_root
def test_another_user_cannot_open_the_socket(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, attach: Attach
) -> None:
    """By the file system; and where its owner undid that, by who they are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(open_folder))
    engine = attach()
    path = engine.place.socket
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert intrude(path) == "cannot open it\n"
    path.parent.chmod(0o755)
    assert intrude(path) == "cannot open it\n"
    path.chmod(0o777)
    assert "its own user only" in intrude(path)
    assert engine.fill(REQUEST).text.startswith("answer")


@needs_root
def test_a_folder_of_somebody_else_is_refused(run_folder: Path) -> None:
    """Who owns it could put their own socket there."""
    folder = private_folder()
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(EngineUnavailable, match="belongs to another user"):
        place_of("default")


def test_a_folder_that_others_can_open_is_refused(run_folder: Path, tmp_path: Path) -> None:
    """Open to a group or to all, a link to elsewhere, or in a place where it can be replaced."""
    folder = private_folder()
    for mode in (0o750, 0o705, 0o770):
        folder.chmod(mode)
        with pytest.raises(EngineUnavailable, match="can be opened by others"):
            SharedEngine(command=None)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineUnavailable, match="is not a folder"):
        private_folder()
    folder.unlink()
    run_folder.chmod(0o777)
    with pytest.raises(EngineUnavailable, match="lets others replace"):
        private_folder()


def test_a_path_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("long" * 30)))
    with pytest.raises(EngineUnavailable, match=r"too long for a socket.*XDG_RUNTIME_DIR"):
        place_of("default")


HELLO = {
    "type": "hello",
    "protocol": wire.PROTOCOL,
    "proof": wire.proof(b"", "client", "?"),
    "nonce": "n",
}
HOSTILE_STARTS = {
    "nothing": b"",
    "half a header": b"\0\0",
    "a frame that never ends": struct.pack(">I", 1 << 20) + b"{",
    "a frame of four gigabytes": b"\xff\xff\xff\xff" + b"x" * 100,
    "no JSON": struct.pack(">I", 4) + b"\x80abc",
    "a pickle": struct.pack(">I", 17) + b"cos\nsystem\n(S'id'",
    "a list": wire._HEADER.pack(2) + b"[]",
    "deep nesting": wire._HEADER.pack(1 << 20) + b"[" * (1 << 20),
    "an endless number": wire._HEADER.pack(10_002) + b"[" + b"9" * 10_000 + b"]",
    "another protocol": wire.frame({**HELLO, "protocol": 99}),
    "a wrong proof": wire.frame(HELLO),
    "a fill before the hello": wire.frame({"type": "fill", "id": 1}),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def test_hostile_starts_end_their_own_connection_only(attach: Attach) -> None:
    """Whatever comes first; another client is served all the while."""
    engine = attach()
    for name, data in HOSTILE_STARTS.items():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(engine.place.socket))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert b"welcome" not in answer, name
        assert engine.fill(REQUEST).text.startswith("answer"), name
    assert len(engine.status()["clients"]) == 1


VALID = {
    "request": wire.to_json(InfillRequest("a", "b")),
    "seconds": None,
    "steps": False,
    "document": "",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_hostile_requests_are_refused_with_a_reason(attach: Attach) -> None:
    """Random changes to a valid fill: each is filled or answered with an error, none unanswered."""
    engine = attach(pass_seconds=0.0)
    drawn, outcomes = random.Random(0), Counter[str]()
    odd = [None, True, -1, 1 << 70, 1.5, "x", "\x00", [], [[]], {}, {"a": 1}, 10**30]
    for _ in range(150):
        message = json.loads(json.dumps({"type": "fill", **VALID}))
        for _ in range(drawn.randint(1, 3)):
            place = drawn.choice([message, message.get("request")])
            if isinstance(place, dict) and place:
                name = drawn.choice([*place, "extra"])
                if name not in ("type",):
                    place[name] = drawn.choice(odd)
        message.pop("id", None)
        try:
            engine._ask(message)
            outcomes["filled"] += 1
        except (RequestError, Cancelled) as error:  # a deadline below 0 is over
            outcomes[type(error).__name__] += 1
    assert outcomes["filled"] > 10
    assert outcomes["RequestError"] > 50
    for kind in (None, 7, "close", "__class__"):
        with pytest.raises(RequestError, match="type must be"):
            engine._ask({**VALID, "type": kind})
    assert engine.fill(REQUEST).text.startswith("answer")


def test_a_client_that_does_not_read_holds_up_nobody(attach: Attach) -> None:
    """It asks for drafts and never takes them; the others are served."""
    other = attach(pass_seconds=0.0)
    text = "x" * 400_000
    message = {**VALID, "type": "fill", "steps": True}
    message["request"] = wire.to_json(InfillRequest(text, ""))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(other.place.socket))
        length = wire.frame_length(connection.recv(4, socket.MSG_WAITALL))
        challenge = wire.parse(connection.recv(length, socket.MSG_WAITALL))
        proof = wire.proof(b"", "client", challenge["nonce"])
        connection.sendall(wire.frame({**HELLO, "proof": proof}))

        def shout() -> None:
            try:
                for number in range(20):
                    document = str(number)
                    connection.sendall(wire.frame({**message, "id": number, "document": document}))
            except OSError:
                pass

        thread = threading.Thread(target=shout)
        thread.start()
        for _ in range(5):
            assert other.fill(REQUEST).text.startswith("answer")
        thread.join(10)
        assert not thread.is_alive()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tokens = st.builds(DraftToken, texts, st.floats(0, 1), st.booleans())


@given(
    st.builds(
        DraftStep, st.integers(0, 99), st.integers(0, 99), texts, st.lists(tokens).map(tuple),
        st.floats(0, 9),
    )
)  # fmt: skip
def test_what_is_sent_arrives(step: DraftStep) -> None:
    """To a frame and back is the same value."""
    data = wire.frame({"step": wire.to_json(step)})
    assert wire.frame_length(data[:4]) == len(data) - 4
    assert step == wire.from_json(DraftStep, wire.parse(data[4:])["step"], "step")


@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(wire.WireError):
        assert isinstance(wire.parse(data), dict)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(json_values, st.sampled_from([InfillRequest, InfillResult, DraftStep, HoleKind, int, str]))
def test_values_are_of_the_kind_or_refused(data: object, kind: type) -> None:
    """Nothing else is raised, and nothing is let through because it looks alike."""
    try:
        value = wire.from_json(kind, data, "here")
    except RequestError:
        return
    assert isinstance(value, kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefix": 1}, "request.prefix must be a text, got int"),
        ({"max_tokens": True}, "request.max_tokens must be a whole number, got bool"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"kind": "all"}, "request.kind must be one of line, block, selection, got str"),
        ({"strength": 10**400}, "request.strength must be a number"),
        ({"secret": "def f()"}, "request has an unknown field; known are prefix, suffix"),
        ({"prefix": "\ud800"}, "request.prefix holds half of a surrogate pair"),
    ],
)
def test_a_refusal_names_the_place(change: dict[str, object], message: str) -> None:
    """And never the value, which may be code."""
    raw = {**wire.to_json(InfillRequest("a", "b")), **change}
    with pytest.raises(RequestError, match=message) as caught:
        wire.from_json(InfillRequest, raw, "request")
    assert "def f" not in str(caught.value)


def test_a_missing_field_is_told() -> None:
    """By its name."""
    with pytest.raises(RequestError, match=r"request\.suffix is missing"):
        wire.from_json(InfillRequest, {"prefix": ""}, "request")


def test_the_client_imports_no_torch() -> None:
    """The language server attaches; the model is elsewhere."""
    program = "import sys, dgemma_engine.shared.client; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "False\n"
