"""Emacs in batch: the snippets of editors/emacs apply a code action to a real file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .servers import ROOT, SCRIPTED, environment, put_on_path

pytestmark = [pytest.mark.e2e]

DRIVER = Path(__file__).with_name("emacs_code_action.el")
CODE = "def total(values):\n    return \n"

# Client -> the library it is.
CLIENTS = {"eglot": "eglot", "lsp-mode": "lsp-mode"}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    if shutil.which("emacs") is None:
        pytest.skip("Emacs is not installed")
    name: str = request.param
    look = f"(kill-emacs (if (locate-library {CLIENTS[name]!r:s}) 0 1))".replace("'", '"')
    if subprocess.run(["emacs", "-q", "--batch", "--eval", look]).returncode:
        pytest.skip(f"this Emacs has no {name}")
    return name


@pytest.mark.parametrize("server", ["scripted", "real"])
def test_a_code_action_is_applied(client: str, server: str, tmp_path: Path) -> None:
    """The user's key for code actions, "Fill here", and the file on disk has it."""
    file = tmp_path / "sample.py"
    file.write_text(CODE, encoding="utf-8")
    programs = put_on_path(tmp_path, SCRIPTED if server == "scripted" else None)
    snippet = ROOT / f"editors/emacs/dgemma-{client}.el"
    done = subprocess.run(
        # Not -Q: Debian's packages come by the site's start file.
        ["emacs", "-q", "--batch", "-l", snippet, "-l", DRIVER, file, client],
        env=environment(tmp_path, programs),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    text = file.read_text(encoding="utf-8")
    if server == "scripted":
        assert text == "def total(values):\n    return sum(values)\n"
    else:
        assert text.startswith("def total(values):\n    return ")
        assert text != CODE
