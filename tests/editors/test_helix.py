"""Helix, the real one, in a terminal: a code action chosen from its menu is applied to a file."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from .get_editors import NotHere, get

pytestmark = pytest.mark.e2e
pyte = pytest.importorskip("pyte", reason="pip install -e '.[e2e]'")

SCRIPTED = str(Path(__file__).parents[1] / "lsp/scripted_server.py")
TEXT = "def area(width, height):\n    return width * height\n"
WIDTH, HEIGHT = 100, 24
TIMEOUT = 30.0  # seconds


class Screen(pyte.Screen):  # type: ignore[misc,name-defined]
    """One that is not taken aback by questions it does not know."""

    def report_device_status(self, mode: int = 0, **_: object) -> None:
        pass


class Terminal:
    """A program on a screen."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._screen = Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)
        ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))

    def keys(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def until(self, is_so: Callable[[str], bool], what: str, seconds: float = TIMEOUT) -> None:
        """Read on until the screen shows something."""
        give_up = time.monotonic() + seconds
        while not is_so("\n".join(self._screen.display)):
            assert time.monotonic() < give_up, f"{what}:\n" + "\n".join(self._screen.display)
            if select.select([self._file], [], [], 0.1)[0]:
                self._stream.feed(os.read(self._file, 65536))

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self._file)


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
