"""A file on disk, and the places in it that a command line can name.

Lines and columns count from 1 and columns count characters, as compilers print them. The language
server does not use this: its documents come from the editor.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dgemma_engine import DGemmaError

from .document import DocumentSnapshot, LineIndex
from .languages import language_id_of_path

# The engine reads a window around the hole; a source file beyond this is not one a person edits.
MAX_FILE_BYTES = 5 * 1024 * 1024

_LOCATION = re.compile(
    r"(?P<path>.+?):(?P<line>\d+):(?P<column>\d+)(?:-(?P<end_line>\d+):(?P<end_column>\d+))?"
)


class InputError(DGemmaError):
    """What the user named on the command line cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Location:
    """FILE:LINE:COL, or FILE:L1:C1-L2:C2 for a span. Numbers count from 1."""

    path: Path
    line: int
    column: int
    end_line: int | None = None
    end_column: int | None = None

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read a location as typed.

        Raises:
            InputError: it has another form.
        """
        match = _LOCATION.fullmatch(text)
        if match is None:
            raise InputError(
                f"{text!r} is not a location; write FILE:LINE:COL or FILE:L1:C1-L2:C2, "
                "counting from 1"
            )
        end_line, end_column = match["end_line"], match["end_column"]
        return cls(
            Path(match["path"]),
            int(match["line"]),
            int(match["column"]),
            int(end_line) if end_line else None,
            int(end_column) if end_column else None,
        )


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A text file, read whole. `text` has the file's own line breaks."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        """Read a UTF-8 file.

        Raises:
            InputError: missing, a folder, too large, not text, or unreadable.
        """
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder, not a file")
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise InputError(
                    f"{path} has {size / 2**20:.1f} MiB; files over "
                    f"{MAX_FILE_BYTES // 2**20} MiB are not filled"
                )
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"no such file: {path}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        if b"\0" in content:
            raise InputError(f"{path} is a binary file")
        try:
            return cls(path, content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error

    @property
    def language_id(self) -> str:
        """The LSP language identifier that the file's ending stands for."""
        return language_id_of_path(self.path)

    def snapshot(self) -> DocumentSnapshot:
        """The file as the hole selection and the context see a document; its tree is there."""
        uri = self.path.resolve().as_uri()
        snapshot = DocumentSnapshot(uri, 0, self.language_id, self.text)
        snapshot.syntax.wait()
        return snapshot

    def span(self, location: Location) -> tuple[int, int]:
        """Character offsets of a location, start and end; equal for a cursor.

        Raises:
            InputError: a line or column past the end, a column or line of 0, or an end before the
                start.
        """
        start = self._offset(location.line, location.column)
        if location.end_line is None or location.end_column is None:
            return start, start
        end = self._offset(location.end_line, location.end_column)
        if end < start:
            raise InputError(f"{self.path}: the span ends before it starts")
        return start, end

    def write(self, text: str) -> None:
        """Replace the file's content in one step: a failure leaves the old content.

        Raises:
            InputError: the file cannot be written.
        """
        target = self.path.resolve()  # a link keeps pointing where it did
        try:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(text.encode("utf-8"))
                temporary.chmod(target.stat().st_mode)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error

    def _offset(self, line: int, column: int) -> int:
        lines = LineIndex(self.text)
        if not 1 <= line <= len(lines):
            raise InputError(f"{self.path} has {len(lines)} lines; there is no line {line}")
        start, end = lines.bounds(line - 1)
        if not 1 <= column <= end - start + 1:
            raise InputError(
                f"{self.path}: line {line} has {end - start} characters; "
                f"the cursor can be in columns 1 to {end - start + 1}, not {column}"
            )
        return start + column - 1
