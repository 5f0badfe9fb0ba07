"""Servers for editors: the real and the scripted one, as commands and as `dgemma-lsp` on PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FAKE = ROOT / "tests/lsp/fake_server.py"


def scripted(answer: str, num_passes: int = 1, pass_seconds: float = 0.0) -> list[str]:
    """A server that fills in `answer` everywhere."""
    return [sys.executable, str(_FAKE), answer, str(num_passes), str(pass_seconds)]


REAL = [sys.executable, "-m", "dgemma_lsp", "serve"]
SCRIPTED = scripted("sum(values)")


def put_on_path(folder: Path, server: list[str] | None = None) -> Path:
    """A folder with a `dgemma-lsp`: this tree's, or one that always starts `server`."""
    programs = folder / "bin"
    programs.mkdir()
    script = programs / "dgemma-lsp"
    run = f'{shlex.join(REAL[:-1])} "$@"' if server is None else shlex.join(server)
    script.write_text(f"#!/bin/sh\nexec {run}\n", encoding="utf-8")
    script.chmod(0o755)
    return programs


def environment(home: Path, programs: Path | None = None) -> dict[str, str]:
    """For an editor that sees nothing of this machine's user."""
    inherited = ("PATH", "OMP_NUM_THREADS")
    made = {name: os.environ[name] for name in inherited if name in os.environ}
    if programs is not None:
        made["PATH"] = f"{programs}{os.pathsep}{made['PATH']}"
    folders = {"CONFIG": "config", "DATA": "data", "STATE": "state", "CACHE": "cache"}
    made.update({f"XDG_{name}_HOME": str(home / path) for name, path in folders.items()})
    packages = [ROOT, ROOT / "engine", ROOT / "kernels"]
    made.update(HOME=str(home), LC_ALL="C.UTF-8", PYTHONPATH=os.pathsep.join(map(str, packages)))
    return made
