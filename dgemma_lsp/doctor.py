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

from dgemma_engine import DGemmaError, InfillEngine, InfillRequest
from dgemma_engine.process import EngineProcess
from dgemma_engine.shared.client import SharedEngine

from . import __version__
from .engines import build_engine
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


def examine(chosen: Settings, dtype: str = "auto") -> Report:
    """Look at the installation, load the model, fill one hole.

    Args:
        chosen: which model, on which device, in which engine.
        dtype: as for `dgemma_engine.load_engine`.
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
        engine = build_engine(chosen, lambda error: None, dtype=dtype)
        info = engine.info
        add(("engine", _where(engine, chosen)))
        if info.kernels:
            add(("kernels", info.kernels))
        if info.loop:
            add(("denoising", info.loop))
        held = f", weights in {info.quantization}" if info.quantization else ""
        add(("device", f"{info.device} in {info.dtype}{held}"))
        # A server elsewhere does not say how many.
        size = f"{info.parameters / 1e6:.1f} M parameters, " if info.parameters else ""
        seconds = time.monotonic() - start
        how = f"strategy {info.strategy}, loaded in {seconds:.1f} s"
        add(("model", f"{info.model}, {size}{how}"))
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
        add(("server", asyncio.run(_ask_a_server(chosen, dtype))))
    except (DGemmaError, JsonRpcException, OSError, TimeoutError) as error:
        report.problem = str(error) or type(error).__name__
    return report


def _where(engine: InfillEngine, chosen: Settings) -> str:
    """Which process has the model, and who uses it."""
    if isinstance(engine, EngineProcess):
        return f"process {engine.pid}, of the language server alone"
    if isinstance(engine, SharedEngine):
        clients = engine.status()["clients"]
        this = {"label": engine.label, "pid": os.getpid()}
        others = [one for one in clients if one != this]
        names = [f"{one['label']} (process {one['pid']})" for one in others]
        users = ", ".join(sorted(names)) or "nobody else"
        return f"process {engine.pid}, shared with {users}; log {engine.place.log}"
    return f"{chosen.engine} at {chosen.engine_url}"


async def _ask_a_server(chosen: Settings, dtype: str) -> str:
    """Start a server, open a document in it, ask it twice, and end it.

    Raises:
        TimeoutError: it does not answer.
    """
    client = LanguageClient("dgemma-doctor", __version__)
    options = ["--model", chosen.model, "--device", chosen.device, "--dtype", dtype]
    options += ["--engine", chosen.engine, "--engine-url", chosen.engine_url]
    options += ["--log-level", "warning"]
    if chosen.quantization != "none":
        options += ["--quantization", chosen.quantization]
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
