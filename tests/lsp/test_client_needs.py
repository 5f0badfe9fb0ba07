"""What the server does follows what the client offered: providers, commands, edits, settings."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from .clients import COMMANDS_TO_EDIT, COMMANDS_TO_TELL
from .json_rpc import RawClient, RpcError

FAKE = str(Path(__file__).with_name("fake_server.py"))
SCRIPTED = str(Path(__file__).with_name("scripted_server.py"))
URI = "file:///a.py"
TEXT = "x = \r\ny = 1\r\n"
CONTENT_MODIFIED = -32801
CURSOR = {"line": 0, "character": 4}
INLINE = {"textDocument": {"uri": URI}, "position": CURSOR, "context": {"triggerKind": 2}}

LITERALS = {"codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["refactor"]}}}
LAZY = {**LITERALS, "dataSupport": True, "resolveSupport": {"properties": ["edit"]}}
COMMANDS = {"applyEdit": True, "executeCommand": {}}


def provided(capabilities: dict[str, Any]) -> dict[str, Any]:
    """What the server offers such a client, beyond documents and folders."""
    with RawClient(FAKE) as client:
        offered: dict[str, Any] = client.initialize(**capabilities)["capabilities"]
        assert client.close() == 0
    ours = ("inlineCompletionProvider", "codeActionProvider", "executeCommandProvider")
    return {name: offered[name] for name in ours if name in offered}


OFFERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "inline completion only": (
        {"textDocument": {"inlineCompletion": {}}},
        {"inlineCompletionProvider": {}},
    ),
    "actions with lazy edits": (
        {"textDocument": {"codeAction": LAZY}},
        {
            "codeActionProvider": {
                "codeActionKinds": ["refactor.rewrite", "quickfix"],
                "resolveProvider": True,
            }
        },
    ),
    "actions without data cannot be lazy": (
        {"textDocument": {"codeAction": {**LAZY, "dataSupport": False}}},
        {},
    ),
    "actions with commands": (
        {"textDocument": {"codeAction": LITERALS}, "workspace": COMMANDS},
        {
            "codeActionProvider": {"codeActionKinds": ["refactor.rewrite", "quickfix"]},
            "executeCommandProvider": COMMANDS_TO_EDIT,
        },
    ),
    "actions that could not be carried out": ({"textDocument": {"codeAction": LITERALS}}, {}),
    "commands without edits": (
        {"workspace": {"executeCommand": {}}},
        {"executeCommandProvider": COMMANDS_TO_TELL},
    ),
}


@pytest.mark.parametrize("name", OFFERS)
def test_nothing_is_offered_that_the_client_cannot_use(name: str) -> None:
    """Each provider needs the client's side of it."""
    capabilities, expected = OFFERS[name]
    assert expected == provided(capabilities)


def list_actions(client: RawClient, **more: Any) -> list[dict[str, Any]]:
    span = {"start": CURSOR, "end": CURSOR}
    params = {"textDocument": {"uri": URI}, "range": span, "context": {"diagnostics": []}}
    actions: list[dict[str, Any]] = client.request("textDocument/codeAction", {**params, **more})
    return actions


@pytest.mark.parametrize("has_literals", [True, False])
@pytest.mark.parametrize("has_versions", [True, False])
def test_command_path(has_literals: bool, has_versions: bool) -> None:
    """Without lazy edits an action carries a command, whose edit the client is sent."""
    workspace = {**COMMANDS, "workspaceEdit": {"documentChanges": has_versions}}
    code_action = LITERALS if has_literals else {}
    with RawClient(FAKE, "a\nb") as client:
        client.initialize(textDocument={"codeAction": code_action}, workspace=workspace)
        client.open(URI, TEXT)
        selected = {"start": CURSOR, "end": {"line": 1, "character": 5}}
        action = list_actions(client, range=selected)[0]
        assert action["title"] == "Refill selection"
        command = action["command"] if has_literals else action
        edits: list[Any] = []

        def apply(params: Any) -> dict[str, bool]:
            edits.append(params["edit"])
            return {"applied": True}

        client.handlers["workspace/applyEdit"] = apply
        arguments = {"command": command["command"], "arguments": command["arguments"]}
        assert client.request("workspace/executeCommand", arguments) is True
        change = {"range": selected, "newText": "a\r\nb"}  # the document's own separator
        if has_versions:
            document = {"uri": URI, "version": 1}
            assert edits == [{"documentChanges": [{"textDocument": document, "edits": [change]}]}]
        else:
            assert edits == [{"changes": {URI: [change]}}]
        assert client.close() == 0


def test_a_refused_edit_is_told() -> None:
    """The client did not apply it: a message, and false."""
    with RawClient(FAKE) as client:
        client.initialize(textDocument={"codeAction": LITERALS}, workspace=COMMANDS)
        client.open(URI, TEXT)
        client.handlers["workspace/applyEdit"] = lambda params: {"applied": False}
        fill = {"uri": URI, "range": {"start": CURSOR, "end": CURSOR}}
        arguments = {"command": "dgemma.fill", "arguments": [fill]}
        assert client.request("workspace/executeCommand", arguments) is False
        (note,) = client.notifications
        assert note["params"]["message"] == "dgemma: the editor refused the edit; try again"


def test_nothing_to_fill_in_is_told_who_asked() -> None:
    """An empty fill: the action comes back without an edit, and the user reads why."""
    with RawClient(FAKE, "  ") as client:
        client.initialize(textDocument={"codeAction": LAZY, "inlineCompletion": {}})
        client.open(URI, TEXT)
        assert client.request("textDocument/inlineCompletion", INLINE)["items"] == []
        assert client.notifications == [], "while typing nobody is told"
        (action,) = list_actions(client)
        assert "edit" not in client.request("codeAction/resolve", action)
        (note,) = client.notifications
        expected = "dgemma: nothing was filled in: the model has nothing to insert here"
        assert expected == note["params"]["message"]


def test_an_edit_during_a_fill_that_was_asked_for_voids_it() -> None:
    """What was computed for the text before is not applied to the text after."""
    with RawClient(FAKE, "answer", "20", "0.05") as client:
        client.initialize(textDocument={"codeAction": LAZY})
        client.open(URI, TEXT)
        (action,) = list_actions(client)
        request_id = client.send("codeAction/resolve", action)
        while client.request("test/state", {"uri": URI})["num_requests"] == 0:
            time.sleep(0.01)
        client.change(URI, 2, [{"text": "#" + TEXT}])
        with pytest.raises(RpcError, match=r"version 1 then, 2 now") as caught:
            client.wait(request_id)
        assert caught.value.code == CONTENT_MODIFIED
        assert client.close() == 0


@pytest.mark.parametrize(
    ("only", "is_listed"),
    [
        (["refactor"], True),
        (["refactor.rewrite"], True),
        (["quickfix", "refactor"], True),
        ([""], True),
        (["quickfix"], False),
        (["refactor.rewrite.foreign"], False),
        (["refac"], False),
        ([], False),
    ],
)
def test_only_the_kinds_asked_for(only: list[str], is_listed: bool) -> None:
    """`only` names our kind or one above it."""
    with RawClient(FAKE) as client:
        client.initialize(textDocument={"codeAction": LAZY})
        client.open(URI, TEXT)
        listed = list_actions(client, context={"diagnostics": [], "only": only})
        assert is_listed == bool(listed)


def test_a_cursor_of_one_character() -> None:
    """Where the cursor is a block, both actions are listed: the place and the character."""
    with RawClient(FAKE) as client:
        client.initialize(textDocument={"codeAction": LAZY})
        client.open(URI, TEXT)
        block = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 1}}
        titles = [action["title"] for action in list_actions(client, range=block)]
        assert titles == ["Fill here", "Refill selection"]


def items(client: RawClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.request("textDocument/inlineCompletion", INLINE)["items"]
    return found


def logged(client: RawClient) -> list[str]:
    return [
        note["params"]["message"]
        for note in client.notifications
        if note["method"] == "window/logMessage"
    ]


def test_settings_are_pulled_before_the_first_fill() -> None:
    """What the client answers holds from the first request on, and again when it changes."""
    settings: dict[str, Any] = {"disabledLanguages": ["python"]}
    asked: list[Any] = []
    registered: list[Any] = []

    def configuration(params: Any) -> list[Any]:
        asked.extend(params["items"])
        return [settings]

    with RawClient(FAKE) as client:
        client.handlers["workspace/configuration"] = configuration
        client.handlers["client/registerCapability"] = registered.append
        client.initialize(
            textDocument={"inlineCompletion": {}, "codeAction": LAZY},
            workspace={
                "configuration": True,
                "didChangeConfiguration": {"dynamicRegistration": True},
            },
        )
        client.open(URI, TEXT)
        assert items(client) == []
        assert list_actions(client) == []
        assert asked == [{"section": "dgemma"}]
        client.take_until(lambda: bool(registered))
        (registration,) = registered[0]["registrations"]
        assert registration["method"] == "workspace/didChangeConfiguration"
        assert registration["registerOptions"] == {"section": "dgemma"}

        settings = {"disabledLanguages": []}
        client.notify("workspace/didChangeConfiguration", {"settings": None})
        client.take_until(lambda: len(asked) == 2)
        assert len(items(client)) == 1
        assert logged(client) == []
        assert client.close() == 0


def test_settings_are_pushed_by_a_client_that_cannot_be_asked() -> None:
    """didChangeConfiguration carries them; another program's section is not ours."""
    with RawClient(FAKE) as client:
        client.initialize(textDocument={"inlineCompletion": {}})
        client.open(URI, TEXT)
        for settings, num_items in [
            ({"dgemma": {"disabledLanguages": ["python"]}}, 0),
            ({"other": {"disabledLanguages": []}}, 0),
            (None, 0),
            ({"dgemma": {}}, 1),
        ]:
            client.notify("workspace/didChangeConfiguration", {"settings": settings})
            assert len(items(client)) == num_items
        assert client.close() == 0


def test_bad_settings_are_told_once() -> None:
    """One log message for a bad value, one for an unknown key; good ones are taken."""
    settings = {"maxTokens": 0, "modle": "x", "disabledLanguages": ["python"]}
    with RawClient(FAKE) as client:
        client.initialize(options=settings, textDocument={"inlineCompletion": {}})
        client.open(URI, TEXT)
        assert items(client) == []
        client.notify("workspace/didChangeConfiguration", {"settings": {"dgemma": settings}})
        assert items(client) == []
        first, second = sorted(logged(client))
        assert "'maxTokens' must be a whole number from 1 to 4096, got 0; 64 is kept" in first
        assert "unknown setting 'modle'" in second


def test_another_engine_is_built_when_its_place_is_changed() -> None:
    """The model stays as it is; the server that holds it is another: no restart."""
    options = {"urls": ["http://there:1/v1"]}
    with RawClient(SCRIPTED, json.dumps(options)) as client:
        client.initialize(options={"engine": "vllm"}, textDocument={"inlineCompletion": {}})
        client.open(URI, TEXT)
        assert items(client) == []
        there = {"engine": "vllm", "engineUrl": "http://there:1/v1"}
        client.notify("workspace/didChangeConfiguration", {"settings": {"dgemma": there}})
        assert len(items(client)) == 1
        assert client.close() == 0


def test_fewer_bits_are_loaded_when_they_are_chosen() -> None:
    """A model that does not fit, then one that does: no restart."""
    with RawClient(SCRIPTED, json.dumps({"quantizations": ["int4"]})) as client:
        client.initialize(options={}, textDocument={"inlineCompletion": {}})
        client.open(URI, TEXT)
        assert items(client) == []
        smaller = {"settings": {"dgemma": {"quantization": "int4"}}}
        client.notify("workspace/didChangeConfiguration", smaller)
        assert len(items(client)) == 1
        assert client.close() == 0


def test_another_model_is_loaded_when_it_is_chosen() -> None:
    """A model that cannot be loaded, then one that can: no restart."""
    options = {"models": ["default", "better"]}
    with RawClient(SCRIPTED, json.dumps(options)) as client:
        client.initialize(options={"model": "nowhere"}, textDocument={"inlineCompletion": {}})
        client.open(URI, TEXT)
        assert items(client) == []
        better = {"settings": {"dgemma": {"model": "better"}}}
        client.notify("workspace/didChangeConfiguration", better)
        assert len(items(client)) == 1
        assert client.close() == 0
