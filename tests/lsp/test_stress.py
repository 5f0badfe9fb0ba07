"""What nobody does on purpose: storms of edits, killed engines, 10,000 requests, large files."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .json_rpc import RawClient, RpcError, position

FAKE = str(Path(__file__).with_name("fake_server.py"))
URI = "file:///a.py"
EXPERIMENTAL = {"dgemma": {"status": True}}
CAPABILITIES: dict[str, Any] = {
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": []}},
            "dataSupport": True,
            "resolveSupport": {"properties": ["edit"]},
        },
    },
    "workspace": {"executeCommand": {}},
    "experimental": EXPERIMENTAL,
}
LINES = ["def f(x):", "    return x", "y = 'é😋'", "\tz = [1, 2]", "", "# a note", "f(y)"]
is_linux = sys.platform.startswith("linux")


@contextmanager
def talking(*command: str) -> Iterator[RawClient]:
    with RawClient(*command) as client:
        client.initialize(**CAPABILITIES)
        yield client
        assert client.close() == 0


def state(client: RawClient, uri: str | None = URI) -> dict[str, Any]:
    told: dict[str, Any] = client.request("test/state", {"uri": uri})
    return told


def inline(uri: str, text: str, offset: int) -> dict[str, Any]:
    return {
        "textDocument": {"uri": uri},
        "position": position(text, offset, "utf-16"),
        "context": {"triggerKind": 2},
    }


@pytest.mark.slow
def test_a_storm() -> None:
    """2,000 edits, requests and cancels at 50 a second: one answer each, and nothing is left."""
    dice = random.Random(7)
    text, version = "\n".join(LINES * 20), 1
    asked: list[int] = []
    with talking(FAKE, "answer", "3", "0.01") as client:
        client.open(URI, text)
        client.request("textDocument/inlineCompletion", inline(URI, text, 0))
        time.sleep(0.5)
        before = state(client)
        for _ in range(2000):
            began = time.monotonic()
            offset = dice.randrange(len(text) + 1)
            kind = dice.random()
            if kind < 0.5:
                end = min(len(text), offset + dice.choice([0, 0, 0, 1, 30]))
                typed = dice.choice([*"abc ():\n", "é", "😋", "\r\n", dice.choice(LINES)])
                span = {
                    "start": position(text, offset, "utf-16"),
                    "end": position(text, end, "utf-16"),
                }
                if offset > 0 and text[offset - 1 : offset + 1] == "\r\n":
                    continue  # between the two there is no position
                if text[end - 1 : end + 1] == "\r\n":
                    continue
                version += 1
                client.change(URI, version, [{"range": span, "text": typed}])
                text = text[:offset] + typed + text[end:]
            elif kind < 0.8:
                asked.append(
                    client.send("textDocument/inlineCompletion", inline(URI, text, offset))
                )
            elif kind < 0.9 and asked:
                client.notify("$/cancelRequest", {"id": dice.choice(asked[-5:])})
            else:
                place = position(text, offset, "utf-16")
                params = {
                    "textDocument": {"uri": URI},
                    "range": {"start": place, "end": place},
                    "context": {"diagnostics": []},
                }
                asked.append(client.send("textDocument/codeAction", params))
            time.sleep(max(0.0, 0.02 - (time.monotonic() - began)))
        # The client fails if one is answered twice.
        failures = [failure_of(client, request_id) for request_id in asked]
        assert {failure and failure.code for failure in failures} <= {None, -32800}
        time.sleep(0.5)
        after = state(client)
        assert text == after["text"]
        assert after["num_futures"] == 0
        for held in ("num_tasks", "num_files"):
            assert after[held] == before[held], held
        assert after["num_threads"] <= before["num_threads"] + 1  # the one that parses


@pytest.mark.slow
def test_memory_over_many_requests() -> None:
    """10,000 requests in changing text: flat after the first 2,000."""
    with talking(FAKE, "answer", "1") as client:
        text = "x = \n" * 200
        client.open(URI, text)
        seen = []
        for number in range(10_000):
            span = {"start": {"line": 7, "character": 0}, "end": {"line": 8, "character": 0}}
            line = f"x{number:05} = "
            client.change(URI, number + 2, [{"range": span, "text": line + "\n"}])
            params = {
                "textDocument": {"uri": URI},
                "position": {"line": 7, "character": len(line)},
                "context": {"triggerKind": 2},
            }
            client.request("textDocument/inlineCompletion", params)
            client.answers.clear()
            if number in (2_000, 9_999):
                seen.append(state(client)["memory_kib"])
        assert state(client)["num_requests"] == 10_000
    assert seen[1] - seen[0] < 3_000, "KiB that the requests between left behind"


@pytest.mark.slow
@pytest.mark.skipif(not is_linux, reason="finds the engine's process in /proc")
def test_the_engine_is_killed_twenty_times() -> None:
    """In the middle of a fill of the shipped model: an error, a status, and the next one works."""
    text = "def read(path):\n    \n"
    place = {"line": 1, "character": 4}
    action = {"title": "", "data": {"uri": URI, "range": {"start": place, "end": place}}}
    with talking("-m", "dgemma_lsp", "serve") as client:
        client.open(URI, text)
        client.request("codeAction/resolve", dict(action))
        num_killed = 0
        for _ in range(40):
            worker = worker_of(client.process.pid)
            told = len(errors(client))
            asked = client.send("codeAction/resolve", dict(action))
            busy = number_of(client, "busy")
            client.take_until(lambda busy=busy: number_of(client, "busy") > busy)
            os.kill(worker, signal.SIGKILL)
            failure = failure_of(client, asked)
            client.request("codeAction/resolve", dict(action))
            assert worker_of(client.process.pid) != worker
            if failure is not None:  # else it was done before this process had its turn
                assert "was killed (SIGKILL)" in str(failure)
                num_killed += 1
                (problem,) = set(errors(client)[told:])
                assert problem.endswith("it is being started again"), num_killed
            if num_killed == 20:
                break
        assert num_killed == 20


def failure_of(client: RawClient, request_id: int) -> RpcError | None:
    """The error a request was answered with, None for a result."""
    try:
        client.wait(request_id)
    except RpcError as error:
        return error
    return None


def errors(client: RawClient) -> list[str]:
    return [told["message"] for told in statuses(client) if told["state"] == "error"]


def number_of(client: RawClient, wanted: str) -> int:
    return sum(told["state"] == wanted for told in statuses(client))


def statuses(client: RawClient) -> list[dict[str, Any]]:
    notes = client.notifications
    return [note["params"] for note in notes if note["method"] == "dgemma/status"]


def worker_of(pid: int) -> int:
    """The engine's process: the only one below the server."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in threads for child in (task / "children").read_text().split()]
    (worker,) = children
    return worker


@pytest.mark.skipif(not is_linux, reason="finds the engine's process in /proc")
def test_an_engine_killed_while_idle_is_there_again() -> None:
    """Nobody has to ask for it."""
    with talking("-m", "dgemma_lsp", "serve") as client:
        client.open(URI, "x = \n")
        client.request("textDocument/inlineCompletion", inline(URI, "x = \n", 4))
        worker = worker_of(client.process.pid)
        os.kill(worker, signal.SIGKILL)
        client.take_until(lambda: bool(errors(client)))
        ready = number_of(client, "ready")
        client.take_until(lambda: number_of(client, "ready") > ready)
        assert len(errors(client)) == 1
        assert worker_of(client.process.pid) != worker


GUARD = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{event} {arguments}\\n")
sys.addaudithook(watch)
with open(os.environ["SEEN"], "a") as file:
    file.write(f"started {os.path.basename(sys.argv[0]) if sys.argv else ''}\\n")
"""


def test_no_connection_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server or its engine, from start to end, with the shipped model."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    paths = (str(tmp_path), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    text = "def area(width, height):\n    return \n"
    with talking("-m", "dgemma_lsp", "serve") as client:
        client.open(URI, text)
        client.request("textDocument/inlineCompletion", inline(URI, text, len(text) - 1))
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) >= 2, "the hook was in the server and in its engine"
    assert all(line.startswith("started") for line in seen)


LARGE = {
    "50,000 lines": "def f(x):\n    return x + 1\n" * 25_000,
    "a line of 1 MB": "x = [" + "1, " * 350_000 + "]\ny = 1\n",
}


@pytest.mark.parametrize("name", LARGE)
def test_large_files(name: str) -> None:
    """Typing in them is answered, and other requests are not held up."""
    text = LARGE[name]
    with talking(FAKE) as client:
        client.open(URI, text)
        last = text.count("\n")
        for number, letter in enumerate("value"):
            place = {"line": last, "character": number}
            client.change(
                URI, number + 2, [{"range": {"start": place, "end": place}, "text": letter}]
            )
            params = {
                "textDocument": {"uri": URI},
                "position": {"line": last, "character": number + 1},
                "context": {"triggerKind": 2},
            }
            began = time.monotonic()
            assert "items" in client.request("textDocument/inlineCompletion", params)
            assert time.monotonic() - began < 2.0
        assert state(client)["text"] == text + "value"


def test_two_hundred_documents() -> None:
    """All answered, the closed ones forgotten."""
    with talking(FAKE) as client:
        for number in range(200):
            client.open(f"untitled:Untitled-{number}", "x = \n")
        for number in range(200):
            uri = f"untitled:Untitled-{number}"
            answer = client.request("textDocument/inlineCompletion", inline(uri, "x = \n", 4))
            assert [item["insertText"] for item in answer["items"]] == ["answer"]
            client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        uri = "untitled:Untitled-7"
        with pytest.raises(RpcError, match="not open"):
            client.request("textDocument/inlineCompletion", inline(uri, "x = \n", 4))
