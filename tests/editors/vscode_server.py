"""A server that says exactly what a test of the VS Code extension must see.

    python vscode_server.py REPORT

Built with pygls directly, so that every message of the protocol can be sent, at a pace that can be
photographed. Every suggestion is `a + b`. A fill is drafted in passes of PASS_SECONDS, each with
a `dgemma/canvas`, if the client opted in to it. Commands and settings that came in are appended to
the file REPORT, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from lsprotocol import types
from lsprotocol.converters import get_converter
from pygls.lsp.server import LanguageServer

PASS_SECONDS = 0.8

# Each pass: text, confidence, accepted. From noise to text.
PASSES = [
    [("%zq", 0.05, False), (" lambda", 0.1, False), (" 0x", 0.02, False)],
    [("a", 0.9, True), (" lambda", 0.3, False), (" self", 0.1, False)],
    [("a", 0.95, True), (" +", 0.8, True), (" x", 0.7, False)],
    [("a", 0.99, True), (" +", 0.97, True), (" b", 0.95, True)],
]

_convert = get_converter().unstructure


def build_server(report: Path) -> LanguageServer:
    server = LanguageServer("scripted", "1")
    opted_in: dict[str, bool] = {}
    state = {"on": True, "shown": 0}

    def note(kind: str, value: Any) -> None:
        with report.open("a", encoding="utf-8") as file:
            file.write(json.dumps({kind: value}) + "\n")

    def send_status(name: str) -> None:
        if opted_in.get("status"):
            status = {
                "state": name,
                "message": f"The model is {name}.",
                "model": "scripted",
                "device": "cpu",
                "lastLatencyMs": 42 if state["shown"] else None,
                "shown": state["shown"],
                "silent": {"low_confidence": 3},
            }
            server.protocol.notify("dgemma/status", status)

    async def draft(uri: str, version: int | None, span: types.Range) -> None:
        for step, tokens in enumerate([*PASSES, []]):
            if opted_in.get("canvas"):
                server.protocol.notify(
                    "dgemma/canvas",
                    {
                        "uri": uri,
                        "version": version,
                        "id": 1,
                        "step": step,
                        "maxSteps": len(PASSES),
                        "done": not tokens,
                        "range": _convert(span),
                        "text": "".join(text for text, _, _ in tokens),
                        "tokens": [
                            {"text": text, "confidence": confidence, "accepted": accepted}
                            for text, confidence, accepted in tokens
                        ],
                    },
                )
                if tokens:
                    await asyncio.sleep(PASS_SECONDS)

    @server.feature(types.INITIALIZE)
    def initialize(params: types.InitializeParams) -> None:
        experimental = getattr(params.capabilities, "experimental", None) or {}
        wanted = experimental.get("dgemma") if isinstance(experimental, dict) else None
        wanted = wanted or getattr(experimental, "dgemma", None) or {}
        as_dict = wanted if isinstance(wanted, dict) else wanted._asdict()
        opted_in.update(as_dict)
        note("experimental", as_dict)
        note("options", _plain(params.initialization_options))

    @server.feature(types.INITIALIZED)
    def initialized(params: types.InitializedParams) -> None:
        send_status("ready")

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    async def opened(params: types.DidOpenTextDocumentParams) -> None:
        item = types.ConfigurationItem(section="dgemma")
        answer = await server.workspace_configuration_async(types.ConfigurationParams([item]))
        note("configuration", _plain(answer[0]))

    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def complete(params: types.InlineCompletionParams) -> types.InlineCompletionList:
        send_status("busy")
        document = server.workspace.get_text_document(params.text_document.uri)
        span = types.Range(params.position, params.position)
        await draft(document.uri, document.version, span)
        state["shown"] += 1
        send_status("ready")
        return types.InlineCompletionList([types.InlineCompletionItem("a + b", range=span)])

    @server.command("dgemma.toggle")
    def toggle(*arguments: Any) -> bool:
        state["on"] = not state["on"]
        note("dgemma.toggle", None)
        send_status("ready" if state["on"] else "off")
        return state["on"]

    @server.command("dgemma.context")
    def context(*arguments: Any) -> str:
        note("dgemma.context", [_plain(argument) for argument in arguments])
        return "what stands before<hole>what stands after"

    def noted(name: str, answer: Any) -> None:
        @server.command(name)
        def command(*arguments: Any) -> Any:
            note(name, [_plain(argument) for argument in arguments])
            return answer

    for name in ("fill", "fillAll", "implement", "docstring", "rewrite"):
        noted(f"dgemma.{name}", True)
    noted("dgemma.explainLast", {"reason": "low_confidence", "detail": "12 % sure of `a`"})
    return server


def _plain(value: Any) -> Any:
    """What pygls made objects of, as it came."""
    return json.loads(json.dumps(_convert(value), default=lambda it: it._asdict()))


if __name__ == "__main__":
    build_server(Path(sys.argv[1])).start_io()
