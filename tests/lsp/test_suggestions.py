"""Inline completions beyond the first: from memory, as alternatives, and not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dgemma_lsp.features.inline_completion import _plain_snippet

from .json_rpc import RawClient, position

FAKE = str(Path(__file__).with_name("fake_server.py"))
URI = "file:///work/a.py"
CAPABILITIES: dict[str, Any] = {
    "textDocument": {"inlineCompletion": {}},
    "workspace": {"executeCommand": {}},
}
TEXT = "x = \ny = 1\n"
AUTOMATIC, INVOKED = 2, 1


class Editor:
    """One document of a client, with a cursor in it."""

    def __init__(self, client: RawClient, text: str, uri: str = URI) -> None:
        self.client, self.text, self.uri, self.version = client, text, uri, 1
        client.open(uri, text)

    def type(self, offset: int, typed: str, deleted: int = 0) -> None:
        span = {
            "start": position(self.text, offset, "utf-16"),
            "end": position(self.text, offset + deleted, "utf-16"),
        }
        self.version += 1
        self.client.change(self.uri, self.version, [{"range": span, "text": typed}])
        self.text = self.text[:offset] + typed + self.text[offset + deleted :]

    def suggestions(self, offset: int, kind: int = AUTOMATIC) -> list[str]:
        params = {
            "textDocument": {"uri": self.uri},
            "position": position(self.text, offset, "utf-16"),
            "context": {"triggerKind": kind},
        }
        items = self.client.request("textDocument/inlineCompletion", params)["items"]
        for item in items:
            assert item["range"]["start"]["line"] == item["range"]["end"]["line"]
        return [item["insertText"] for item in items]

    def state(self) -> dict[str, Any]:
        told: dict[str, Any] = self.client.request("test/state", {"uri": self.uri})
        return told

    def explain(self) -> dict[str, str]:
        params = {"command": "dgemma.explainLast", "arguments": [{"uri": self.uri}]}
        told: dict[str, str] = self.client.request("workspace/executeCommand", params)
        return told


@contextmanager
def editing(
    text: str, answer: str = "answer", options: Any = None, uri: str = URI, alternatives: str = ""
) -> Iterator[Editor]:
    with RawClient(FAKE, answer, "2", "0", "0", alternatives) as client:
        client.initialize(options=options, **CAPABILITIES)
        yield Editor(client, text, uri)
        assert client.close() == 0


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_typing_along_does_not_ask_the_engine() -> None:
    """The rest is offered at every key, and again after going back."""
    with editing(TEXT) as editor:
        assert editor.suggestions(4) == ["answer"]
        for count, letter in enumerate("answe"):
            editor.type(4 + count, letter)
            assert editor.suggestions(5 + count) == ["answer"[count + 1 :]]
        editor.type(6, "", deleted=3)
        assert editor.suggestions(6) == ["swer"]
        assert editor.state()["num_requests"] == 1
        assert editor.explain()["reason"] == "shown"


def test_typing_something_else_asks_again() -> None:
    """So does another place, and another text around it."""
    with editing(TEXT) as editor:
        editor.suggestions(4)
        editor.type(4, "b")
        editor.suggestions(5)
        editor.type(0, "z = 2\n")
        editor.suggestions(11)
        assert editor.state()["num_requests"] == 3


def test_what_is_asked_for_has_alternatives() -> None:
    """Different ones from different seeds, as many as wanted; the same text counts once."""
    with editing(TEXT, "answer{seed}", {"alternatives": 4}) as editor:
        assert editor.suggestions(4) == ["answer0"]
        texts = editor.suggestions(4, INVOKED)
        assert texts == ["answer0", "answer1", "answer2", "answer3"]
    with editing(TEXT, "answer", {"alternatives": 3}) as editor:
        assert editor.suggestions(4, INVOKED) == ["answer"]


def test_an_engine_that_knows_what_else_is_likely_is_asked_once() -> None:
    """Its alternatives come in its order, but for those that would not fit; none while typing."""
    known = "other a! answer third"
    with editing(TEXT, "answer{seed}", {"alternatives": 3}, alternatives=known) as editor:
        assert editor.suggestions(4) == ["answer0"]
        assert editor.suggestions(4, INVOKED) == ["answer0", "other", "answer"]
        assert editor.state()["num_requests"] == 2
    with editing(TEXT, "answer", {"alternatives": 1}, alternatives=known) as editor:
        assert editor.suggestions(4, INVOKED) == ["answer"]
        assert editor.state()["num_requests"] == 1


QUIET = {
    "in a comment": ("# a note ║\n", {}, "off"),
    "in a string": ("x = 'a ║'\n", {}, "off"),
    "in code behind a string": ("x = 'a' + ║\n", {}, None),
    "in a comment, where that is wanted": ("# a note ║\n", {"disabledIn": []}, None),
    "in a language that is left out": (TEXT, {"disabledLanguages": ["python"]}, "off"),
    "switched off": (TEXT, {"enabled": False}, "off"),
    "where it has to be asked for": (TEXT, {"trigger": "invoked"}, "off"),
    "in a file that is left out": (TEXT, {"ignoreGlobs": ["work/"]}, "off"),
}


@pytest.mark.parametrize("name", QUIET)
def test_silence_has_a_reason(name: str) -> None:
    """Nothing is offered, the engine is not asked, and it can be told why."""
    text, options, reason = QUIET[name]
    offset = text.index("║") if "║" in text else 4
    with editing(text.replace("║", ""), options=options) as editor:
        assert bool(editor.suggestions(offset)) == (reason is None)
        assert editor.state()["num_requests"] == (reason is None)
        if reason is not None:
            explained = editor.explain()
            assert explained["reason"] == reason
            assert explained["detail"]


def test_files_of_secrets_are_not_read() -> None:
    """Not even when asked."""
    with editing("KEY = \n", uri="file:///work/.env") as editor:
        assert editor.suggestions(6, INVOKED) == []
        assert "secrets" in editor.explain()["detail"]
        assert editor.state()["num_requests"] == 0


def test_toggle_switches_all_of_it() -> None:
    """Off and on again, whatever the settings; the command says what it is now."""

    def toggle(argument: dict[str, bool]) -> bool:
        params = {"command": "dgemma.toggle", "arguments": [argument]}
        is_on: bool = editor.client.request("workspace/executeCommand", params)
        return is_on

    with editing(TEXT) as editor:
        assert toggle({}) is False
        assert editor.suggestions(4) == []
        assert toggle({"on": False}) is False
        assert toggle({}) is True
        assert editor.suggestions(4) == ["answer"]


def test_what_does_not_parse_is_not_offered() -> None:
    """The engine is asked again for the broken part, twice, and then it is silent."""
    with editing(TEXT, "first second") as editor:
        assert editor.suggestions(4) == []
        assert editor.explain()["reason"] == "does_not_parse"
        assert editor.state()["num_requests"] == 3
    with editing(TEXT, "first second", {"repairs": 0}) as editor:
        assert editor.suggestions(4) == []
        assert editor.state()["num_requests"] == 1


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("append", ("append", "")),
        ("append($1)$0", ("append(", ")")),
        ("append(${1:item}, ${2:more})", ("append(", ", more)")),
        ("f(${1|a,b|})", ("f(", ")")),
        ("cost \\$1", ("cost \\$1", "")),
        ("$0", ("", "")),
    ],
)
def test_an_entry_that_is_a_snippet(entry: str, expected: tuple[str, str]) -> None:
    """It is continued at its first tab stop."""
    assert expected == _plain_snippet(entry)


def test_related_text_is_read_first() -> None:
    """A signature from another open file, if the hole names it; never from one git leaves out."""
    with editing("area = \n") as editor:
        other = "def area_of(width, height):\n    return width * height\n"
        Editor(editor.client, other, "file:///work/shapes.py")
        Editor(editor.client, other.replace("width", "secret"), "file:///work/secrets.py")
        editor.type(0, "area_of\n")
        editor.suggestions(len("area_of\narea = "))
        (prefix,) = editor.state()["prefixes"]
        assert prefix == "# work/shapes.py\ndef area_of(width, height):\n\narea_of\narea = "


def test_files_edited_lately_are_read_too(tmp_path: Path) -> None:
    """After they were closed, as long as the disk has what the editor had."""
    shapes, points = tmp_path / "shapes.py", tmp_path / "points.py"
    texts = {shapes: "def area_of(width):\n    pass\n", points: "def area_of(point):\n    pass\n"}
    with editing("area_of = \n") as editor:
        for path, text in texts.items():
            other = Editor(editor.client, text[1:], path.as_uri())
            other.type(0, text[0])
            path.write_text(text, encoding="utf-8")
            editor.client.notify("textDocument/didClose", {"textDocument": {"uri": path.as_uri()}})
        points.write_text("# another text\n", encoding="utf-8")
        editor.suggestions(len("area_of = "))
        (prefix,) = editor.state()["prefixes"]
        folder = tmp_path.name
        assert prefix == f"# {folder}/shapes.py\ndef area_of(width):\n\narea_of = "
        shapes.unlink()
        editor.type(0, "\n")
        editor.suggestions(len("\narea_of = "))
        assert editor.state()["prefixes"][-1] == "\narea_of = "


def test_what_arrives_at_once_is_encoded_ahead() -> None:
    """Up to its end, once; not what is typed by key, nor where nothing may be suggested."""
    head = "# a note\nx = 1\ny = "
    with editing(head + "\n") as editor:
        wait_until(lambda: editor.state()["is_ready"])
        editor.type(len(head), "f")
        time.sleep(0.5)
        editor.type(len("# a note"), " of many words")
        time.sleep(0.5)
        assert not editor.state()["encoded"]
        head = head.replace("note", "note of many words")
        editor.type(len(head + "f"), "oo(bar)")
        wait_until(lambda: editor.state()["encoded"])
        assert editor.state()["encoded"] == [head + "foo(bar)"]
        assert editor.state()["num_requests"] == 0


def test_a_notebook_reads_the_cells_before() -> None:
    """And is a document like any other."""
    cells = [f"file:///work/book.ipynb#{number}" for number in range(3)]
    texts = ["import numpy\n", "# Heading", "x = "]
    languages = ["python", "markdown", "python"]
    with RawClient(FAKE) as client:
        synchronization = {"synchronization": {}}
        client.initialize(notebookDocument=synchronization, **CAPABILITIES)
        book = {
            "uri": "file:///work/book.ipynb",
            "notebookType": "jupyter-notebook",
            "version": 1,
            "cells": [
                {"kind": 2 if language == "python" else 1, "document": uri}
                for uri, language in zip(cells, languages, strict=True)
            ],
        }
        items = [
            {"uri": uri, "languageId": language, "version": 1, "text": text}
            for uri, language, text in zip(cells, languages, texts, strict=True)
        ]
        client.notify(
            "notebookDocument/didOpen", {"notebookDocument": book, "cellTextDocuments": items}
        )
        params = {
            "textDocument": {"uri": cells[2]},
            "position": {"line": 0, "character": 4},
            "context": {"triggerKind": AUTOMATIC},
        }
        (item,) = client.request("textDocument/inlineCompletion", params)["items"]
        assert item["insertText"] == "answer"
        (prefix,) = client.request("test/state", {"uri": cells[2]})["prefixes"]
        assert prefix == "import numpy\n\nx = "
        assert client.close() == 0


def test_a_language_that_the_model_does_not_know() -> None:
    """The shipped one knows Python: it is quiet in others, and fills what is asked for."""
    with RawClient("-m", "dgemma_lsp", "serve") as client:
        client.initialize(options={"minConfidence": 0}, **CAPABILITIES)
        editor = Editor(client, "x = 1\ny = ")
        assert editor.suggestions(10)
        item = {"uri": "file:///a.sql", "languageId": "sql", "version": 1, "text": "select x "}
        client.notify("textDocument/didOpen", {"textDocument": item})
        editor.uri, editor.text = "file:///a.sql", "select x "
        assert editor.suggestions(9) == []
        assert "not trained on sql" in editor.explain()["detail"]
        assert client.close() == 0
