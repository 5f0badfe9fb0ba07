"""A program in a terminal of its own, as a user sees it: keys go in, a screen comes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyte

T = TypeVar("T")

_STEP = 0.02  # seconds between two looks
# What programs ask a terminal at their start, and would wait for.
_DEVICE_CONTROL = re.compile(rb"\x1bP.*?\x1b\\", re.DOTALL)  # pyte would print them
_BACKGROUND_QUERY, _BACKGROUND = b"\x1b]11;?", b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07"
_EXIT_SECONDS = 5.0


def eventually(look: Callable[[], T], seconds: float = 40.0) -> T:
    """What `look` returns, once it is true; fails with the last it returned."""
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s; last seen: {seen!r}"
        time.sleep(_STEP)
    return seen


class _Screen(pyte.Screen):
    """pyte's, which takes the private forms of some sequences for errors."""

    def __init__(self, columns: int, lines: int, answer: Callable[[bytes], object]) -> None:
        super().__init__(columns, lines)
        self._answer = answer

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if not private:  # else it is about the keyboard
            super().select_graphic_rendition(*attributes)

    def report_device_status(self, mode: int, private: bool = False) -> None:
        if not private:
            super().report_device_status(mode)

    def write_process_input(self, data: str) -> None:
        self._answer(data.encode())


class Terminal:
    """Starts a program on a pseudo terminal and keeps reading its screen.

    Attributes:
        screen: pyte's, under `lock`.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        *,
        columns: int = 80,
        lines: int = 14,
    ) -> None:
        self.lock = threading.Lock()
        master, slave = pty.openpty()
        self.screen = _Screen(columns, lines, partial(os.write, master))
        self._stream = pyte.ByteStream(self.screen)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._master = master
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the program has ended
            data = b""
            while new := os.read(self._master, 65536):
                if _BACKGROUND_QUERY in new:
                    os.write(self._master, _BACKGROUND)
                data = _DEVICE_CONTROL.sub(b"", data + new)
                # What is left of such a string has not come in full yet.
                end = data.find(b"\x1bP") if b"\x1bP" in data else len(data)
                data, rest = data[:end], data[end:]
                with self.lock:
                    self._stream.feed(data)
                data = rest

    def type(self, keys: str, *, delay: float = 0.0) -> None:
        """Send keys, as a terminal would; with a delay between them."""
        for key in keys if delay else [keys]:
            os.write(self._master, key.encode())
            time.sleep(delay)

    def pause(self, seconds: float) -> None:
        """Give the program time, where there is nothing to wait for."""
        time.sleep(seconds)

    def text(self) -> str:
        """The screen, without blanks at the ends of its lines."""
        with self.lock:
            return "\n".join(line.rstrip() for line in self.screen.display)

    def see(self, wanted: str, seconds: float = 20.0) -> str:
        """Wait until something is on the screen; the screen."""
        end = time.monotonic() + seconds
        while wanted not in (text := self.text()):
            assert time.monotonic() < end, f"{wanted!r} is not on the screen:\n{text}"
            time.sleep(_STEP)
        return text

    def close(self) -> None:
        """End the program, and whatever it started, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join(_EXIT_SECONDS)
        os.close(self._master)
