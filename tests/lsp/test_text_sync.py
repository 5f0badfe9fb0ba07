"""The server's text equals the client's, whatever is typed, in every position encoding."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from .json_rpc import RawClient, position

NUM_SEQUENCES = 500
EDITS_PER_SEQUENCE = 12

# Separators of LSP, characters that only look like separators, and wide and combining ones.
PIECES = (
    *("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"),
    *("\t", " ", "x", "def f(x):", "é", "e\u0301", "😋", "👩\u200d💻", "漢字", "\u00a0", "'"),
)


def random_text(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(most)))


def safe_offset(rng: random.Random, text: str) -> int:
    """An offset that a client can name: not between the halves of a separator."""
    offset = rng.randrange(len(text) + 1)
    return offset - 1 if text[max(0, offset - 1) : offset + 1] == "\r\n" else offset


def random_change(rng: random.Random, text: str, encoding: str) -> tuple[dict[str, Any], str]:
    """One content change and the text after it."""
    kind = rng.random()
    new = random_text(rng, 6)
    if kind < 0.05:
        return {"text": new}, new
    if kind < 0.15:  # far past the end, which means the end
        beyond = {"line": text.count("\n") + text.count("\r") + 5, "character": 99}
        return {"range": {"start": beyond, "end": beyond}, "text": new}, text + new
    start, end = sorted((safe_offset(rng, text), safe_offset(rng, text)))
    if rng.random() < 0.5:
        end = start
    span = {"start": position(text, start, encoding), "end": position(text, end, encoding)}
    return {"range": span, "text": new}, text[:start] + new + text[end:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_text_equals_the_clients(encoding: str) -> None:
    """500 random edit sequences: after each, the server has exactly the client's text."""
    rng = random.Random(encoding)
    with RawClient(str(Path(__file__).with_name("fake_server.py"))) as client:
        result = client.initialize(encoding)
        assert encoding == result["capabilities"]["positionEncoding"]
        for sequence in range(NUM_SEQUENCES):
            uri, text = f"file:///{sequence}.py", random_text(rng, 30)
            client.open(uri, text)
            for version in range(2, 2 + EDITS_PER_SEQUENCE):
                changes = []
                for _ in range(rng.choice((1, 1, 1, 3))):
                    change, text = random_change(rng, text, encoding)
                    changes.append(change)
                client.change(uri, version, changes)
            assert text == client.request("test/state", {"uri": uri})["text"]
            client.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        assert client.close() == 0


def test_line_past_the_end_of_the_last_line_is_its_end() -> None:
    """A column beyond the last line, which has no separator, means its end."""
    with RawClient(str(Path(__file__).with_name("fake_server.py"))) as client:
        client.initialize()
        client.open("file:///a.py", "abc")
        beyond = {"line": 0, "character": 99}
        client.change("file:///a.py", 2, [{"range": {"start": beyond, "end": beyond}, "text": "X"}])
        assert client.request("test/state", {"uri": "file:///a.py"})["text"] == "abcX"
