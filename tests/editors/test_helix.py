"""Helix, the real one, in a terminal: a code action chosen from its menu is applied to a file."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .get_editors import NotHere, get

pytestmark = pytest.mark.e2e
pytest.importorskip("pyte", reason="pip install -e '.[e2e]'")

from .terminal import TIMEOUT, Terminal  # noqa: E402  (needs pyte)

SCRIPTED = str(Path(__file__).parents[1] / "lsp/scripted_server.py")
TEXT = "def area(width, height):\n    return width * height\n"


@pytest.fixture
def helix(tmp_path: Path) -> Iterator[Callable[[Path], Terminal]]:
    binary = shutil.which("hx")
    if binary is None:
        try:
            binary = str(get("helix"))
        except NotHere as error:
            pytest.skip(str(error))
    folder = tmp_path / "config" / "helix"
    folder.mkdir(parents=True)
    arguments = [SCRIPTED, json.dumps({"answer": "async "})]
    (folder / "languages.toml").write_text(
        f"[language-server.dgemma]\ncommand = {json.dumps(sys.executable)}\n"
        f"args = {json.dumps(arguments)}\n\n"
        '[[language]]\nname = "python"\nlanguage-servers = ["dgemma"]\n'
    )
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TERM": "xterm-256color",
    }
    started: list[Terminal] = []

    def start(path: Path) -> Terminal:
        started.append(Terminal([binary, str(path)], environment))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def test_a_code_action_is_applied(helix: Callable[[Path], Terminal], tmp_path: Path) -> None:
    """Space a opens the menu; its entry is chosen, and the file is written."""
    path = tmp_path / "a.py"
    path.write_text(TEXT)
    terminal = helix(path)
    terminal.until(lambda screen: "def area" in screen, "it does not start")
    for _ in range(20):  # until the server runs there is no menu
        terminal.keys(" a")
        try:
            terminal.until(lambda screen: "Fill here" in screen, "no menu", seconds=2)
            break
        except AssertionError:
            terminal.keys("\x1b")
            time.sleep(0.5)  # else it is Alt with the next key
    terminal.keys("\r")  # the first entry
    terminal.until(lambda screen: "async def area" in screen, "nothing was filled in")
    terminal.keys(":wq\r")
    give_up = time.monotonic() + TIMEOUT
    while path.read_text() != f"async {TEXT}":
        assert time.monotonic() < give_up, path.read_text()
        time.sleep(0.1)
