"""Helix in a terminal: the snippet of editors/helix, and a code action applied to a real file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyte", reason="there is no pyte (pip install 'dgemma-lsp[e2e]')")

from .conftest import fetched
from .servers import ROOT, SCRIPTED, environment, put_on_path
from .terminal import Terminal, eventually

pytestmark = pytest.mark.e2e

CODE = "def total(values):\n    return \n"


@pytest.fixture
def helix(tmp_path: Path) -> Iterator[Callable[[list[str] | None], tuple[Terminal, Path]]]:
    """Starts Helix on a file, with a server on PATH."""
    program = fetched("helix")
    started: list[Terminal] = []

    def start(server: list[str] | None) -> tuple[Terminal, Path]:
        configuration = tmp_path / "config/helix"
        configuration.mkdir(parents=True)
        snippet = (ROOT / "editors/helix/languages.toml").read_text(encoding="utf-8")
        (configuration / "languages.toml").write_text(snippet, encoding="utf-8")
        file = tmp_path / "sample.py"
        file.write_text(CODE, encoding="utf-8")
        programs = put_on_path(tmp_path, server)
        terminal = Terminal([program, file], environment(tmp_path, programs), tmp_path)
        started.append(terminal)
        return terminal, file

    yield start
    for terminal in started:
        print(terminal.text())
        terminal.close()


@pytest.mark.parametrize("server", ["scripted", "real"])
def test_a_code_action_is_applied(helix, server: str) -> None:
    """At the end of a line: Space a, "Fill here", Enter, :w; the file on disk has it."""
    terminal, file = helix(SCRIPTED if server == "scripted" else None)
    terminal.see("return")
    terminal.type("jA", delay=0.1)
    terminal.type("\x1b")
    open_menu(terminal)
    terminal.type("\r")
    eventually(lambda: "Fill here" not in terminal.text())
    eventually(lambda: "[+]" in terminal.text(), 60)
    terminal.type(":w\r")
    # Helix writes another file and moves it there: for a moment there is none.
    terminal.see("' written")
    text = file.read_text(encoding="utf-8")
    if server == "scripted":
        assert text == "def total(values):\n    return sum(values)\n"
    else:
        assert text.startswith("def total(values):\n    return")


def open_menu(terminal: Terminal) -> None:
    """Until the server is up, Helix says that there is none, or no action."""

    def is_open() -> bool:
        terminal.type("\x1b")  # a menu that came late
        terminal.pause(0.2)  # else it is Alt with the next key
        terminal.type(" a")
        with contextlib.suppress(AssertionError):
            terminal.see("Fill here", 3)
            return True
        return False

    eventually(is_open, 60)
