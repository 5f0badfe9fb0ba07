"""A program in a terminal of ours: keys in, a screen out, and a picture of it."""

from __future__ import annotations

import io
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

TIMEOUT = 30.0  # seconds
# What programs ask a terminal at their start, and wait for: is it there, what is its background.
_ANSWERS = {b"\x1b[5n": b"\x1b[0n", b"\x1b]11;?": b"\x1b]11;rgb:0000/0000/0000\x07"}


class Screen(pyte.Screen):
    """One that is not taken aback by questions it does not know."""

    def report_device_status(self, mode: int = 0, **_: object) -> None:
        pass


class Terminal:
    """A program on a screen."""

    def __init__(
        self, command: list[str], environment: dict[str, str], width: int = 100, height: int = 24
    ) -> None:
        self._screen = Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, environment)
        ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def keys(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def until(self, is_so: Callable[[str], bool], what: str, seconds: float = TIMEOUT) -> None:
        """Read on until the screen shows something."""
        give_up = time.monotonic() + seconds
        while not is_so("\n".join(self._screen.display)):
            assert time.monotonic() < give_up, f"{what}:\n" + "\n".join(self._screen.display)
            if select.select([self._file], [], [], 0.1)[0]:
                data = os.read(self._file, 65536)
                self._stream.feed(data)
                for question, answer in _ANSWERS.items():
                    if question in data:
                        os.write(self._file, answer)

    def picture(self, path: Path, title: str) -> None:
        """Write what is on the screen as an SVG."""
        screen = self._screen
        console = Console(
            record=True, width=screen.columns, file=io.StringIO(), color_system="truecolor"
        )
        for row in range(screen.lines):
            line = Text()
            for column in range(screen.columns):
                cell = screen.buffer[row][column]
                colours = [_colour(cell.fg), "on " + _colour(cell.bg)]
                marks = [name for name in ("bold", "reverse") if getattr(cell, name)]
                marks += ["italic"] if cell.italics else []
                line.append(cell.data, " ".join([*marks, *colours]))
            console.print(line, end="\n", no_wrap=True, crop=True)
        path.write_text(console.export_svg(title=title), encoding="utf-8")

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self._file)


def _colour(name: str) -> str:
    """A colour of pyte's in rich's words."""
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))
