"""What is installed, what runs, and whether a fill works: the text of `dgemma-lsp doctor`.

Finds out by doing: it loads the model and fills one hole. Knows no LSP.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata

import dgemma_engine
from dgemma_engine import DGemmaError, InfillRequest

from . import __version__

_PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "pygls", "lsprotocol", "tree-sitter")
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


def examine(model: str, device: str, dtype: str) -> Report:
    """Look at the installation, load the model, fill one hole.

    Args:
        model: as for `dgemma_engine.load_engine`, like `device` and `dtype`.
    """
    report = Report()
    add = report.facts.append
    add(("dgemma-lsp", __version__))
    add(("python", f"{platform.python_version()} at {sys.executable}"))
    add(("system", f"{platform.platform()}, {os.cpu_count()} cores"))
    for package in _PACKAGES:
        add((package, _installed_version(package)))
    try:
        start = time.monotonic()
        engine = dgemma_engine.load_engine(model, device, dtype)
        info = engine.info
        add(("kernels", "PyTorch reference"))
        add(("device", f"{info.device} in {info.dtype}"))
        add(
            (
                "model",
                f"{info.model}, {info.parameters / 1e6:.1f} M parameters, strategy "
                f"{info.strategy}, loaded in {time.monotonic() - start:.1f} s",
            )
        )
        engine.fill(_SAMPLE)
        result = engine.fill(_SAMPLE)
        add(
            (
                "fill",
                f"{result.num_passes} passes in {result.timings.denoise_ms:.0f} ms (warm): "
                f"return {result.text!r}",
            )
        )
    except DGemmaError as error:
        report.problem = str(error)
    return report


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
