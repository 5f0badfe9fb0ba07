"""What is installed, what runs, and whether a fill works: the text of `dgemma-lsp doctor`.

Finds out by doing: it loads the model and fills one hole, then starts a server as an editor does
and asks it for a suggestion.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from dgemma_engine import DGemmaError, InfillRequest
from dgemma_engine.process import EngineProcess

from . import __version__
from .languages import LANGUAGES
from .settings import Settings, project_folder, read_project
from .syntax import has_grammar

_PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "pygls", "lsprotocol", "tree-sitter")
# A server that has not answered by then will not; loading the 26B takes minutes.
_SERVER_SECONDS = 600.0
_SAMPLE = InfillRequest(
    prefix="def area(width, height):\n    return ",
    suffix="\n\n\nprint(area(2, 3))\n",
    language_id="python",
)


@dataclass
class Report:
    """Facts in the order to show them; `problem` is what keeps a fill from working, if anything."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problem: str | None = None


def examine(model: str, device: str, dtype: str, quantization: str | None) -> Report:
    """Look at the installation, load the model, fill one hole.

    Args:
        model: as for `dgemma_engine.load_engine`, like the others.
    """
    report = Report()
    add = report.facts.append
    add(("dgemma-lsp", __version__))
    add(("python", f"{platform.python_version()} at {sys.executable}"))
    add(("system", f"{platform.platform()}, {os.cpu_count()} cores"))
    add(("command", shutil.which("dgemma-lsp") or "not on PATH: tell your editor where it is"))
    for package in _PACKAGES:
        add((package, _installed_version(package)))
    parsed = [language.name for language in LANGUAGES if has_grammar(language)]
    more = "" if len(parsed) > 1 else "; for others: pip install 'dgemma-lsp[languages]'"
    add(("grammars", ", ".join(parsed) + more))
    folder = project_folder(Path.cwd())
    _, problems = read_project(folder, Settings())
    for problem in problems:
        add(("settings", problem))
    try:
        start = time.monotonic()
        engine = EngineProcess(model, device, dtype, quantization)
        info = engine.info
        add(("kernels", "PyTorch reference"))
        held = f", weights in {info.quantization}" if info.quantization else ""
        add(("device", f"{info.device} in {info.dtype}{held}"))
        add(
            (
                "model",
                f"{info.model}, {info.parameters / 1e6:.1f} M parameters, strategy "
                f"{info.strategy}, loaded in {time.monotonic() - start:.1f} s",
            )
        )
        first = engine.fill(_SAMPLE)
        result = engine.fill(_SAMPLE)
        add(
            (
                "fill",
                f"{result.num_passes} passes in {result.timings.denoise_ms:.0f} ms (warm; "
                f"{first.timings.total_ms:.0f} ms at first): return {result.text!r}",
            )
        )
        engine.close()  # before the server loads another one
        add(("server", asyncio.run(_ask_a_server(model, device, dtype, quantization))))
    except (DGemmaError, JsonRpcException, OSError, TimeoutError) as error:
        report.problem = str(error) or type(error).__name__
    return report


async def _ask_a_server(model: str, device: str, dtype: str, quantization: str | None) -> str:
    """Start a server, open a document in it, ask it twice, and end it.

    Raises:
        TimeoutError: it does not answer.
    """
    client = LanguageClient("dgemma-doctor", __version__)
    options = ["--model", model, "--device", device, "--dtype", dtype, "--log-level", "warning"]
    options += ["--quantization", quantization] if quantization else []
    started = time.monotonic()
    await client.start_io(sys.executable, "-m", "dgemma_lsp", "serve", *options)
    inline = types.InlineCompletionClientCapabilities()
    capabilities = types.ClientCapabilities(
        text_document=types.TextDocumentClientCapabilities(inline_completion=inline)
    )
    text, uri = _SAMPLE.prefix + _SAMPLE.suffix, "untitled:doctor"
    lines = _SAMPLE.prefix.split("\n")
    place = types.Position(len(lines) - 1, len(lines[-1]))
    item = types.TextDocumentItem(uri, _SAMPLE.language_id, 1, text)
    params = types.InlineCompletionParams(
        types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic),
        types.TextDocumentIdentifier(uri),
        place,
    )

    async def talk() -> str:
        await client.initialize_async(types.InitializeParams(capabilities=capabilities))
        client.initialized(types.InitializedParams())
        client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        await client.text_document_inline_completion_async(params)
        ready = time.monotonic() - started
        await client.text_document_inline_completion_async(params)
        answered = time.monotonic() - started - ready
        await client.shutdown_async(None)
        client.exit(None)
        return f"first answer after {ready:.1f} s, the next in {answered * 1000:.0f} ms"

    try:
        return await asyncio.wait_for(talk(), _SERVER_SECONDS)
    finally:
        await client.stop()  # type: ignore[no-untyped-call]  # pygls has no type for it


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
