"""Emacs, the real one, with eglot: a code action of the server is applied to a file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).with_name("eglot.el")
SCRIPTED = str(Path(__file__).parents[1] / "lsp/scripted_server.py")
TEXT = "def area(width, height):\n    return width * height  # 😋\n"


def run(path: Path, *server: str) -> str:
    """What Emacs printed; the file is changed."""
    emacs = shutil.which("emacs")
    if emacs is None:
        pytest.skip("Emacs is not installed")
    has_eglot = subprocess.run(
        [emacs, "-q", "--batch", "--eval", "(require 'eglot)"], capture_output=True, check=False
    )
    if has_eglot.returncode != 0:
        pytest.skip("this Emacs has no eglot (it comes with Emacs 29)")
    path.write_text(TEXT, encoding="utf-8")
    command = [emacs, "-q", "--batch", "-l", str(SCRIPT), str(path), sys.executable, *server]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_code_action_is_applied(tmp_path: Path) -> None:
    """The docstring is in the file."""
    path = tmp_path / "a.py"
    assert "Emacs" in run(path, SCRIPTED, json.dumps({"answer": "Of a rectangle."}))
    header, body = TEXT.split("\n", 1)
    expected = f'{header}\n    """Of a rectangle."""\n{body}'
    assert expected == path.read_text(encoding="utf-8")
