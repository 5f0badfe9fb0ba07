"""The pieces of a text that the parser reads, given back when it has read them.

py-tree-sitter 0.26.1 keeps a reference to whatever its read callback returned, for ever: the text
of a document at every key. Without a callback a parse cannot be stopped and lets no thread run. So
what it keeps is found by trying, and given back. `syntax.py` is the only user.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from types import TracebackType

import tree_sitter

# Bytes that the parser is handed at a time.
_SIZE = 1 << 16


class Chunks:
    """The bytes of one parse; to be used as a context, within which the parser runs."""

    def __init__(self, data: bytes, grammar: tree_sitter.Language) -> None:
        self._data = data
        self._grammar = grammar
        self._handed_out: list[bytes] = []

    def read(self, offset: int, _point: tree_sitter.Point) -> bytes:
        """The parser's callback."""
        chunk = self._data[offset : offset + _SIZE]
        if chunk:
            self._handed_out.append(chunk)
        return chunk

    def __enter__(self) -> Chunks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if _keeps_what_it_read(self._grammar):
            for chunk in self._handed_out:
                # A single character's bytes are shared by all of Python, and may be immortal.
                if len(chunk) > 1:
                    ctypes.pythonapi.Py_DecRef(ctypes.py_object(chunk))
        self._handed_out.clear()


@cache
def _keeps_what_it_read(grammar: tree_sitter.Language) -> bool:
    """Whether each call of a read callback leaves exactly one reference behind."""
    if sys.implementation.name != "cpython":
        return False
    chunk = bytes(bytearray(b"x\n" * 8))  # an object of its own
    num_whole = 0

    def read(offset: int, _point: tree_sitter.Point) -> bytes:
        nonlocal num_whole
        if offset > 0:
            return chunk[offset:]
        num_whole += 1
        return chunk

    before = sys.getrefcount(chunk)
    tree_sitter.Parser(grammar).parse(read)
    return num_whole > 0 and sys.getrefcount(chunk) == before + num_whole
