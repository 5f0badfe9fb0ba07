"""Clients as they introduce themselves, and what they do with an edit, for `RawClient`.

The capabilities were recorded by pytest-lsp; where a newer version of the client has inline
completion, or another order of encodings, that is put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsprotocol import converters
from pytest_lsp import client_capabilities

from .json_rpc import RawClient, RpcError, position

REWRITE = {"codeActionKinds": ["refactor.rewrite", "quickfix"]}
_TELLING = ("explainLast", "context", "toggle", "restart", "status")
_EDITING = ("fill", "fillAll", "implement", "docstring", "rewrite")
COMMANDS_TO_TELL = {"commands": [f"dgemma.{name}" for name in _TELLING]}
COMMANDS_TO_EDIT = {"commands": [f"dgemma.{name}" for name in _EDITING + _TELLING]}


@dataclass(frozen=True)
class Profile:
    """One kind of client.

    Attributes:
        recording: name in pytest-lsp; None for a client that offers nothing.
        encodings: position encodings, its favourite first.
        has_inline_completion: whether its present version has it.
        providers: what the server should offer it.
    """

    recording: str | None
    encodings: tuple[str, ...]
    has_inline_completion: bool
    providers: dict[str, Any]

    def capabilities(self) -> dict[str, Any]:
        """As JSON, made anew."""
        if self.recording is None:
            return {}
        recorded = client_capabilities(self.recording)
        made: dict[str, Any] = converters.get_converter().unstructure(recorded)
        made.setdefault("general", {})["positionEncodings"] = list(self.encodings)
        if self.has_inline_completion:
            made["textDocument"]["inlineCompletion"] = {"dynamicRegistration": False}
        return made

    def introduce(self, client: RawClient) -> dict[str, Any]:
        """Shake hands, and return what the server can do."""
        client.handlers["workspace/configuration"] = lambda params: [None]
        params = {"processId": None, "rootUri": None, "capabilities": self.capabilities()}
        result: dict[str, Any] = client.request("initialize", params)["capabilities"]
        client.notify("initialized", {})
        return result


CLIENTS = {
    "Visual Studio Code": Profile(
        "visual_studio_code",
        ("utf-16",),
        True,
        {
            "inlineCompletionProvider": {},
            "codeActionProvider": {**REWRITE, "resolveProvider": True},
            "executeCommandProvider": COMMANDS_TO_EDIT,
        },
    ),
    "Neovim": Profile(
        "neovim@0.11.0",
        ("utf-8", "utf-16", "utf-32"),
        True,
        {
            "inlineCompletionProvider": {},
            "codeActionProvider": {**REWRITE, "resolveProvider": True},
        },
    ),
    "Emacs eglot": Profile(
        "emacs",
        ("utf-32", "utf-8", "utf-16"),
        False,
        {"codeActionProvider": REWRITE, "executeCommandProvider": COMMANDS_TO_EDIT},
    ),
    "bare": Profile(None, ("utf-16",), False, {}),
}


def outcome(client: RawClient, request_id: int) -> Any:
    """The result of a request, or the code of its error."""
    try:
        return client.wait(request_id)
    except RpcError as error:
        return error.code


def applied(edit: dict[str, Any], uri: str, text: str, encoding: str) -> str:
    """A text after a WorkspaceEdit of one place in it, versioned (1) or not."""
    if "documentChanges" in edit:
        (change,) = edit["documentChanges"]
        assert change["textDocument"] == {"uri": uri, "version": 1}
        (piece,) = change["edits"]
    else:
        (piece,) = edit["changes"][uri]
    start, end = (
        next(i for i in range(len(text) + 1) if position(text, i, encoding) == piece["range"][side])
        for side in ("start", "end")
    )
    return text[:start] + piece["newText"] + text[end:]
