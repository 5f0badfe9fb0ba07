"""What is asked for: listed without the engine, done as one edit, shown while it forms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .json_rpc import RawClient, RpcError, position

FAKE = str(Path(__file__).with_name("fake_server.py"))
URI = "file:///a.py"
CONTENT_MODIFIED, REQUEST_CANCELLED, INVALID_PARAMS = -32801, -32800, -32602
LAZY = {
    "codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["refactor", "quickfix"]}},
    "dataSupport": True,
    "resolveSupport": {"properties": ["edit"]},
}
CAPABILITIES: dict[str, Any] = {
    "textDocument": {"codeAction": LAZY, "inlineCompletion": {}, "completion": {}},
    "workspace": {
        "applyEdit": True,
        "executeCommand": {},
        "workspaceEdit": {
            "documentChanges": True,
            "changeAnnotationSupport": {"groupsOnLabel": True},
        },
    },
}
TEXT = '''\
def area(width, height):
    ...


def empty():
    """Nothing."""
    raise NotImplementedError


def done(x):
    return x
'''


@contextmanager
def talking(*arguments: str, options: Any = None, **more: Any) -> Iterator[RawClient]:
    with RawClient(FAKE, *arguments) as client:
        client.initialize(options=options, **{**CAPABILITIES, **more})
        client.open(URI, TEXT)
        yield client
        assert client.close() == 0


def span(start: int, end: int, text: str = TEXT) -> dict[str, Any]:
    return {"start": position(text, start, "utf-16"), "end": position(text, end, "utf-16")}


def actions(client: RawClient, start: int, end: int, **context: Any) -> dict[str, Any]:
    """The actions of a place, by title."""
    params = {
        "textDocument": {"uri": URI},
        "range": span(start, end),
        "context": {"diagnostics": [], **context},
    }
    listed = client.request("textDocument/codeAction", params)
    return {action["title"]: action for action in listed}


def filled(client: RawClient, action: Any) -> str:
    """The document after an action."""
    return applied(client.request("codeAction/resolve", action)["edit"])


def applied(edit: Any, text: str = TEXT) -> str:
    (change,) = edit["documentChanges"]
    assert change["textDocument"] == {"uri": URI, "version": 1}
    places = {}
    for offset in range(len(text) + 1):
        place = position(text, offset, "utf-16")
        places[place["line"], place["character"]] = offset
    for piece in sorted(change["edits"], key=lambda item: -item["range"]["start"]["line"]):
        ends = (piece["range"][side] for side in ("start", "end"))
        start, end = (places[end["line"], end["character"]] for end in ends)
        text = text[:start] + piece["newText"] + text[end:]
        assert piece["annotationId"] in edit["changeAnnotations"]
    return text


def kept_edits(client: RawClient) -> list[Any]:
    """The edits that the client is told to apply, from now on."""
    edits: list[Any] = []

    def apply(params: Any) -> dict[str, bool]:
        edits.append(params["edit"])
        return {"applied": True}

    client.handlers["workspace/applyEdit"] = apply
    return edits


def num_requests(client: RawClient) -> int:
    number: int = client.request("test/state", {"uri": URI})["num_requests"]
    return number


def test_what_is_listed_where() -> None:
    """By what stands there; the engine is not touched."""
    body, docstring, written = TEXT.index("..."), TEXT.index("width"), TEXT.index("return x") + 8
    with talking() as client:
        assert list(actions(client, body, body)) == [
            "Fill here",
            "Implement the body",
            "Write the docstring",
            "Fill all holes (2)",
        ]
        assert "Write the docstring" in actions(client, docstring, docstring)
        assert "Implement the body" not in actions(client, written, written)
        selection = actions(client, 0, TEXT.index("def done"))
        assert list(selection) == ["Refill selection", "Rewrite selection", "Fill all holes (2)"]
        assert num_requests(client) == 0


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["quickfix"], {"Fix: undefined name 'x'"}),
        (["refactor"], {"Fill here", "Fill all holes (2)", "Write the docstring"}),
        (["source"], set()),
    ],
)
def test_only_the_kinds_that_are_asked_for(only: list[str], expected: set[str]) -> None:
    """A fix is a quick fix, the others rewrite."""
    start = TEXT.index("return x")
    found = {"range": span(start, start + 8), "message": "undefined\n  name 'x'"}
    with talking() as client:
        assert expected == set(actions(client, start, start, diagnostics=[found], only=only))


def test_a_fix_replaces_what_is_complained_about() -> None:
    """And carries the diagnostic, so that the editor can show them together."""
    start = TEXT.index("return x")
    found = {"range": span(start, start + 8), "message": "bad " * 40}
    with talking("return 2 * x") as client:
        listed = actions(client, start, start, diagnostics=[found])
        (title,) = (title for title in listed if title.startswith("Fix: bad bad"))
        assert title.endswith("…")
        assert listed[title]["diagnostics"][0]["range"] == found["range"]
        assert filled(client, listed[title]) == TEXT.replace("return x", "return 2 * x")


def test_the_body_is_implemented() -> None:
    """The placeholder goes."""
    with talking("return width * height") as client:
        action = actions(client, 5, 5)["Implement the body"]
        assert filled(client, action) == TEXT.replace("...", "return width * height")


def test_the_docstring_is_written() -> None:
    """Below the header, in quotes, indented like the body."""
    with talking("Of a rectangle.") as client:
        action = actions(client, 5, 5)["Write the docstring"]
        header = "def area(width, height):\n"
        expected = TEXT.replace(header, f'{header}    """Of a rectangle."""\n')
        assert expected == filled(client, action)


def test_all_holes_are_filled_with_the_others_in_place() -> None:
    """One edit; the later hole is filled, and the first revised, with the other's text in place."""
    with talking("return {seed}") as client:
        action = actions(client, 5, 5)["Fill all holes (2)"]
        expected = TEXT.replace("...", "return 0").replace("raise NotImplementedError", "return 0")
        assert expected == filled(client, action)
        told = client.request("test/state", {"uri": URI})
        assert told["num_requests"] == 4
        assert ["return 0" in prefix for prefix in told["prefixes"]] == [False, True, False, True]


THREE = TEXT.replace("    return x\n", "    ...\n")


def test_holes_near_one_another_are_revised_together() -> None:
    """On one canvas each group that fits, split where the holes are farthest apart."""
    with talking("({draft})", "2", "0", "2") as client:
        client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        client.open(URI, THREE)
        title = "Fill all holes (3)"
        edit = client.request("codeAction/resolve", actions(client, 5, 5)[title])["edit"]
        told = client.request("test/state", {"uri": URI})["together"]
        expected = THREE.replace("...", "((None))").replace("raise NotImplementedError", "((None))")
        assert expected == applied(edit, THREE)
        first, second, third = THREE.index("..."), THREE.index("raise"), THREE.rindex("...")
        whole, pair = told
        between = THREE[second + len("raise NotImplementedError") : third]
        assert whole == [THREE[:first], THREE[first + 3 : second], between, "\n"]
        # The first is by itself, and stands as it was revised.
        assert pair == [THREE[:second].replace("...", "((None))"), between, "\n"]


@pytest.mark.parametrize("watches", [False, True])
def test_the_canvas_of_several_holes_is_shown(watches: bool) -> None:
    """Each hole's draft at its place, every one of them said to be done."""
    more = {"experimental": {"dgemma": {"canvas": True}}} if watches else {}
    with talking("pass_", "3", "0", "2", **more) as client:
        client.request("codeAction/resolve", actions(client, 5, 5)["Fill all holes (2)"])
        notes = [note for note in client.notifications if note["method"] == "dgemma/canvas"]
        shown = [note["params"] for note in notes]
        numbers = {params["id"] for params in shown} if shown else set()
        assert len(numbers) == (4 if watches else 0)
        done = [params["id"] for params in shown if params["done"]]
        assert sorted(done) == sorted(numbers)


def test_a_document_that_was_reopened_is_another_one() -> None:
    """Though its version is the same: the action is refused."""
    with talking() as client:
        action = actions(client, 5, 5)["Fill here"]
        client.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
        client.open(URI, TEXT + "\n")
        with pytest.raises(RpcError, match="reopened") as caught:
            client.request("codeAction/resolve", action)
        assert caught.value.code == CONTENT_MODIFIED


@pytest.mark.parametrize(
    ("command", "argument", "expected"),
    [
        ("dgemma.implement", {"range": span(5, 5)}, TEXT.replace("...", "pass_")),
        ("dgemma.fillAll", {}, None),
        ("dgemma.rewrite", {"range": span(TEXT.index("return x"), len(TEXT) - 1)}, None),
    ],
)
def test_commands_do_the_same(command: str, argument: Any, expected: str | None) -> None:
    """The edit is sent to be applied; a range is not needed for the whole document."""
    with talking("pass_") as client:
        edits = kept_edits(client)
        params = {"command": command, "arguments": [{"uri": URI, **argument}]}
        assert client.request("workspace/executeCommand", params) is True
        assert "pass_" in applied(edits[0])
        if expected is not None:
            assert expected == applied(edits[0])


def test_a_wrong_strength_is_refused() -> None:
    """With the value and the limits."""
    with talking() as client:
        argument = {"uri": URI, "range": span(0, 5), "strength": 2}
        params = {"command": "dgemma.rewrite", "arguments": [argument]}
        with pytest.raises(RpcError, match="above 0 and at most 1, got 2") as caught:
            client.request("workspace/executeCommand", params)
        assert caught.value.code == INVALID_PARAMS


def values(client: RawClient) -> list[dict[str, Any]]:
    """Of the progress that was reported."""
    notes = (note for note in client.notifications if note["method"] == "$/progress")
    return [note["params"]["value"] for note in notes]


@pytest.mark.parametrize("has_token", [True, False])
def test_progress_names_the_pass(has_token: bool) -> None:
    """With the client's token, or one of ours for a client that takes it."""
    more: dict[str, Any] = {} if has_token else {"window": {"workDoneProgress": True}}
    with talking("pass_", "10", "0.03", **more) as client:
        client.handlers["workspace/applyEdit"] = lambda params: {"applied": True}
        params: dict[str, Any] = {
            "command": "dgemma.fill",
            "arguments": [{"uri": URI, "range": span(5, 5)}],
        }
        if has_token:
            params["workDoneToken"] = "mine"
        assert client.request("workspace/executeCommand", params) is True
        begin, *reports, end = values(client)
        assert begin == {
            "kind": "begin",
            "title": "Fill here",
            "cancellable": True,
            "percentage": 0,
        }
        assert reports
        assert all(report["message"].endswith("of at most 10") for report in reports)
        assert end == {"kind": "end"}


def test_progress_can_be_cancelled() -> None:
    """The request is answered as cancelled, and the engine stops."""
    with talking("pass_", "1000", "0.01") as client:
        params = {
            "command": "dgemma.fill",
            "arguments": [{"uri": URI, "range": span(5, 5)}],
            "workDoneToken": "mine",
        }
        asked = client.send("workspace/executeCommand", params)
        client.take_until(lambda: len(values(client)) >= 2)
        client.notify("window/workDoneProgress/cancel", {"token": "mine"})
        with pytest.raises(RpcError) as caught:
            client.wait(asked)
        assert caught.value.code == REQUEST_CANCELLED
        while client.request("test/state", {"uri": URI})["num_cancelled"] == 0:
            pass


class PatientClient(RawClient):
    """Answers nothing while it waits for an action to be resolved, as Helix does."""

    def take(self, message: dict[str, Any] | None) -> None:
        if message is None or message.get("method") != "window/workDoneProgress/create":
            super().take(message)


def test_a_fill_does_not_wait_for_its_progress() -> None:
    """The client need not answer before it has the fill."""
    with PatientClient(FAKE, "pass_") as client:
        client.initialize(**CAPABILITIES, window={"workDoneProgress": True})
        client.open(URI, TEXT)
        assert "pass_" in filled(client, actions(client, 5, 5)["Fill here"])
        assert values(client) == []
        assert client.close() == 0


def notes(client: RawClient, method: str) -> list[dict[str, Any]]:
    return [note["params"] for note in client.notifications if note["method"] == method]


def test_the_canvas_and_the_status_are_for_those_who_opted_in() -> None:
    """Every pass, and the last one marked; loading, busy, ready."""
    for opted_in in (True, False):
        experimental = {"dgemma": {"status": opted_in, "canvas": opted_in}}
        with talking("pass_", "3", experimental=experimental) as client:
            client.request("codeAction/resolve", actions(client, 5, 5)["Fill here"])
            client.request("test/state", {"uri": URI})
            canvas, status = notes(client, "dgemma/canvas"), notes(client, "dgemma/status")
        if not opted_in:
            assert not canvas
            assert not status
            continue
        assert [step["step"] for step in canvas] == [0, 1, 2, 2]
        assert [step["done"] for step in canvas] == [False, False, False, True]
        assert canvas[0]["tokens"] == [{"text": "pass_", "confidence": 1.0, "accepted": True}]
        assert {step["version"] for step in canvas} == {1}
        states = [told["state"] for told in status]
        assert states[0] == "loading"
        assert "busy" in states
        assert states[-1] == "ready"
        assert status[-1]["shown"] == 1


def test_completion_is_off_unless_it_is_wanted() -> None:
    """By the setting at the start, or by the client's own capability."""
    wanted = {"dgemma": {"completion": True}}
    for options, more in (({"completion": "on"}, {}), (None, {"experimental": wanted})):
        with RawClient(FAKE, "pass_") as client:
            offered = client.initialize(options=options, **CAPABILITIES, **more)
            assert offered["capabilities"]["completionProvider"] == {"resolveProvider": True}
            client.open(URI, "x = ar\n")
            place = {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 6}}
            (item,) = client.request("textDocument/completion", place)["items"]
            assert item["textEdit"]["newText"] == item["filterText"] == "ar"
            assert num_requests(client) == 0
            resolved = client.request("completionItem/resolve", item)
            assert resolved["documentation"]["value"] == "```python\npass_\n```"
            edits = kept_edits(client)
            command = {key: item["command"][key] for key in ("command", "arguments")}
            assert client.request("workspace/executeCommand", command) is True
            assert edits
            assert client.close() == 0
    with RawClient(FAKE) as client:
        assert "completionProvider" not in client.initialize(**CAPABILITIES)["capabilities"]
        assert client.close() == 0


def test_the_context_is_what_the_engine_renders() -> None:
    """For a cursor; nothing where nothing is read."""
    with talking() as client:
        argument = {"uri": URI, "position": {"line": 0, "character": 4}}
        params = {"command": "dgemma.context", "arguments": [argument]}
        assert client.request("workspace/executeCommand", params).startswith("def <hole>area(")
        with pytest.raises(RpcError, match="takes"):
            client.request("workspace/executeCommand", {**params, "arguments": [{"uri": URI}]})
