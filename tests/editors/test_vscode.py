"""The VS Code extension in a real VS Code, and its parts in Node.

Every test leaves its pictures in the folder that the variable DGEMMA_SHOTS names, or in pytest's
own for the test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .vscode_window import CannotInstall, Editor, Installation, editor, install

ROOT = Path(__file__).parent.parent.parent
EXTENSION = ROOT / "editors/vscode"
SCRIPTED = str(Path(__file__).with_name("vscode_server.py"))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]  # the first installation takes minutes


@pytest.fixture(scope="session")
def extension() -> Path:
    """The extension's folder with what npm brings."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not (EXTENSION / "node_modules/.package-lock.json").is_file():
        run = _npm("ci", "--no-audit", "--no-fund")
        if run.returncode:
            pytest.skip(f"npm could not install what the extension is built with: {run.stderr}")
    return EXTENSION


@pytest.fixture(scope="session")
def vsix(extension: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that a user installs."""
    file = tmp_path_factory.mktemp("vsix") / "dgemma.vsix"
    run = _npm("run", "package", "--", "--out", str(file))
    assert run.returncode == 0, run.stdout + run.stderr
    return file


@pytest.fixture(scope="session")
def installation() -> Installation:
    try:
        return install()
    except CannotInstall as error:
        pytest.skip(str(error))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("DGEMMA_SHOTS") or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Start = Callable[..., AbstractContextManager[Editor]]


@pytest.fixture
def start(installation: Installation, vsix: Path, tmp_path: Path) -> Start:
    """An editor with a new profile and these settings."""
    return partial(editor, installation, tmp_path / "profile", vsix)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def _npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["npm", *arguments], cwd=EXTENSION, capture_output=True, text=True)


def _python_server(*arguments: str) -> dict[str, Any]:
    return {"dgemma.server.path": sys.executable, "dgemma.server.arguments": list(arguments)}


class Report:
    """What the scripted server was told."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def settings(self) -> dict[str, Any]:
        return _python_server(SCRIPTED, str(self.file))

    def all(self, kind: str) -> list[Any]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [entry[kind] for line in lines if kind in (entry := json.loads(line))]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "report.jsonl")


def test_ghost_text_is_accepted_with_tab(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """Open a Python file, type, see the suggestion in grey, accept it with Tab."""
    file = workspace / "area.py"
    file.write_text("def area(a, b):\n    ", encoding="utf-8")
    with start(report.settings()) as vscode, vscode.window() as window:
        window.open(workspace, file)
        assert window.status("scripted")
        window.press("Control+End")
        window.type("return ")
        assert window.ghost_text() == "a + b"
        window.shoot(shots / "ghost.png")
        window.press("Tab", "Control+S")
        window.wait("!document.querySelector('.ghost-text-decoration')")
        window.wait("!document.querySelector('.tab.active.dirty')")
        assert "42 ms" in window.status("42 ms")
        window.shoot(shots / "accepted.png")
    assert file.read_text(encoding="utf-8") == "def area(a, b):\n    return a + b"


def test_the_draft_is_seen_settling(
    start: Start, workspace: Path, shots: Path, report: Report
) -> None:
    """With the setting, every pass is drawn behind the cursor, the uncertain fainter."""
    file = workspace / "area.py"
    file.write_text("def area(a, b):\n    return ", encoding="utf-8")
    settings = report.settings() | {"dgemma.canvas": True}
    with start(settings) as vscode, vscode.window() as window:
        window.open(workspace, file)
        window.status("scripted")
        window.press("Control+End")
        window.type(" ")
        seen: dict[str, list[tuple[str, str]]] = {}
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and "a + b" not in seen:
            pieces = window.after_text()
            text = "".join(text for text, _ in pieces)
            if text and text not in seen:
                window.shoot(shots / f"canvas-{len(seen)}.png")
                seen[text] = pieces
        assert list(seen) == ["%zq lambda 0x", "a lambda self", "a + x", "a + b"]
        noise, *_, last = seen.values()
        assert len({color for _, color in noise + last}) == 2
        assert window.ghost_text() == "a + b"
        assert not window.after_text()
        window.shoot(shots / "canvas-done.png")
    assert report.all("experimental") == [{"status": True, "canvas": True}]
