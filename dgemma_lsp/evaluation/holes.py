"""Holes cut out of Python files, by what an editor's user might be writing.

The same files, seed and count give the same holes. Read `methods.py` next.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import random
import tokenize
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dgemma_engine.types import HoleKind, InfillRequest

from ..context import ContextBudget, build_request
from ..document import DocumentSnapshot, LineIndex
from ..hole import Hole
from ..nearby import texts_near
from ..settings import Settings
from ..source_file import InputError, SourceFile

LEAKS_FILE = "leaks.json"  # {path in the folder: [lines that training files share, from 0]}

_LONGEST_LINE_FILL = 120  # characters
_LONGEST_BLOCK_FILL = 220
# A word is cut by the cursor in this share of the holes that begin anywhere in a line.
_INSIDE_WORD_SHARE = 0.3
_MAX_TOKENS = {HoleKind.LINE: 31, HoleKind.BLOCK: 63}
_ATTEMPTS = 400  # per hole, before a bucket is given up

# Where nothing is suggested unasked, so that it says nothing about what is.
PROSE = "prose"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EvalHole:
    """A hole whose true text is known.

    Attributes:
        source: path of the file, as given.
        bucket: of `BUCKETS`.
        before, middle, after: the file; `middle` is what was taken out.
        kind: what the engine is told.
        path, root: of the file and its project, absolute; None for a file that is not on a disk.
    """

    source: str
    bucket: str
    before: str
    middle: str
    after: str
    kind: HoleKind
    path: Path | None = None
    root: Path | None = None

    @property
    def snapshot(self) -> DocumentSnapshot:
        """The file without `middle`, as an editor has held it for a while."""
        text = self.before + self.after
        snapshot = DocumentSnapshot(f"file:///{self.source}", 0, "python", text)
        snapshot.syntax.wait()
        return snapshot

    @property
    def hole(self) -> Hole:
        return Hole(len(self.before), len(self.before), self.kind)

    def request(self, seed: int = 0) -> InfillRequest:
        """As the server asks, with what the server gives; no other file is open."""
        snapshot = self.snapshot
        request = build_request(
            snapshot,
            self.hole,
            ContextBudget(),
            max_tokens=_MAX_TOKENS[self.kind],
            seed=seed,
        )
        if self.path is None:
            return request
        nearby = texts_near(self.path, snapshot, self.hole, Settings(), self.root)
        return dataclasses.replace(request, nearby=nearby)


@dataclass(frozen=True, eq=False)
class EvalFile:
    """A file to cut holes out of."""

    name: str
    text: str
    tree: ast.Module
    lines: LineIndex
    leaked_lines: frozenset[int] = frozenset()
    path: Path | None = None
    root: Path | None = None

    @classmethod
    def build(
        cls,
        name: str,
        text: str,
        leaked_lines: frozenset[int] = frozenset(),
        path: Path | None = None,
        root: Path | None = None,
    ) -> EvalFile:
        """Raises SyntaxError or ValueError if Python cannot read the text."""
        return cls(name, text, ast.parse(text), LineIndex(text), leaked_lines, path, root)

    def offset(self, line: int, byte_column: int) -> int:
        """Character offset of an `ast` place: its lines count from 1, its columns are bytes."""
        start, end = self.lines.bounds(line - 1)
        data = self.text[start:end].encode()
        return start + len(data[:byte_column].decode(errors="ignore"))

    def span(self, node: ast.expr | ast.stmt) -> Span:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.offset(node.lineno, node.col_offset),
            self.offset(node.end_lineno, node.end_col_offset),
        )


def read_files(paths: Sequence[Path]) -> list[EvalFile]:
    """Every Python file at or under the paths; a folder's `leaks.json` is heeded.

    Raises:
        InputError: no such path, or nothing in it that Python 3 can read.
    """
    files: list[EvalFile] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        leaks: dict[str, list[int]] = {}
        if (path / LEAKS_FILE).is_file():
            leaks = json.loads((path / LEAKS_FILE).read_text("utf-8"))
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            try:
                text = SourceFile.read(file).text.replace("\r\n", "\n")
                leaked = frozenset(leaks.get(name, ()))
                places = file.resolve(), (path.resolve() if path.is_dir() else None)
                files.append(EvalFile.build(name, text, leaked, *places))
            except (InputError, SyntaxError, ValueError, RecursionError):
                continue
    if not files:
        raise InputError(f"no Python file that can be read in {', '.join(map(str, paths))}")
    return files


def sample_holes(
    files: Sequence[EvalFile], bucket: str, count: int, seed: int = 0
) -> list[EvalHole]:
    """At most `count` holes of a bucket, fewer if the files have no more; never one twice.

    Longer files give more holes. None lies on a line that training files share.
    """
    rng = random.Random(f"{bucket} {seed}")
    weights = [1 + len(file.text) for file in files]
    find, kind = BUCKETS[bucket]
    holes: dict[tuple[str, Span], EvalHole] = {}
    for _ in range(count * _ATTEMPTS):
        if len(holes) >= count:
            break
        (file,) = rng.choices(files, weights)
        span = find(file, rng)
        if span is not None and _is_fair(file, span, kind):
            start, end = span
            text = file.text
            holes[file.name, span] = EvalHole(
                file.name,
                bucket,
                text[:start],
                text[start:end],
                text[end:],
                kind,
                file.path,
                file.root,
            )
    return list(holes.values())


def _is_fair(file: EvalFile, span: Span, kind: HoleKind) -> bool:
    middle = file.text[slice(*span)]
    lines = range(file.lines.line_at(span[0]), file.lines.line_at(span[1]) + 1)
    longest = _LONGEST_LINE_FILL if kind is HoleKind.LINE else _LONGEST_BLOCK_FILL
    return (
        bool(middle.strip())
        and len(middle) <= longest
        and (len(lines) > 1) == (kind is HoleKind.BLOCK)
        and file.leaked_lines.isdisjoint(lines)
    )


# --- the buckets: each finds a span of a file, or None, which means to try again ---


def _rest_of_line(file: EvalFile, rng: random.Random) -> Span | None:
    """From a place where a word may be typed, sometimes inside a word, to the line's end."""
    span = _rest_of_any_line(file, rng)
    return None if span is None or _is_prose(file, span[0]) else span


def _prose(file: EvalFile, rng: random.Random) -> Span | None:
    """The same in a comment or a docstring."""
    span = _rest_of_any_line(file, rng)
    return span if span is not None and _is_prose(file, span[0]) else None


def _rest_of_any_line(file: EvalFile, rng: random.Random) -> Span | None:
    offset = rng.randrange(len(file.text) + 1)
    if _is_word_edge(file.text, offset) == (rng.random() < _INSIDE_WORD_SHARE):
        return None
    _, end = file.lines.bounds(file.lines.line_at(offset))
    return offset, end


def _mid_line(file: EvalFile, rng: random.Random) -> Span | None:
    """From a cursor to a later edge of a word, with something left behind it on the line."""
    start, line_end = _rest_of_line(file, rng) or (0, 0)
    edges = [
        edge
        for edge in range(start + 1, line_end)
        if _is_word_edge(file.text, edge) and file.text[edge:line_end].strip()
    ]
    return (start, rng.choice(edges)) if edges else None


def _whole_line(file: EvalFile, rng: random.Random) -> Span | None:
    line = rng.randrange(len(file.lines))
    start, end = file.lines.bounds(line)
    text = file.text[start:end]
    first = start + len(text) - len(text.lstrip())
    return None if _is_prose(file, first) else (first, end)


def _block(file: EvalFile, rng: random.Random) -> Span | None:
    """The statements of a body from one of them on."""
    if not (bodies := _parts(file).bodies):
        return None
    body = rng.choice(bodies)
    return file.span(rng.choice(body))[0], file.span(body[-1])[1]


def _argument_list(file: EvalFile, rng: random.Random) -> Span | None:
    """All that stands between the parentheses of a call."""
    if not (calls := _parts(file).calls):
        return None
    call = rng.choice(calls)
    start, end = file.span(call.func)[1], file.span(call)[1]
    opening = file.text.find("(", start, end)
    return (opening + 1, end - 1) if opening >= 0 else None


def _expression(file: EvalFile, rng: random.Random) -> Span | None:
    """What is assigned, returned or tested."""
    values = _parts(file).values
    return file.span(rng.choice(values)) if values else None


class _Parts(NamedTuple):
    bodies: list[list[ast.stmt]]
    calls: list[ast.Call]
    values: list[ast.expr]


@cache
def _parts(file: EvalFile) -> _Parts:
    nodes = list(ast.walk(file.tree))
    bodies = [
        body
        for node in nodes
        if not isinstance(node, ast.Module)
        for name in ("body", "orelse", "finalbody")
        if isinstance(body := getattr(node, name, None), list) and body
    ]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return _Parts(bodies, calls, [value for node in nodes for value in _values(node)])


@cache
def _prose_spans(file: EvalFile) -> list[Span]:
    """Comments, and strings that are statements of their own."""
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
        if token.type == tokenize.COMMENT:
            start = file.lines.bounds(token.start[0] - 1)[0] + token.start[1]
            comments.append((start, start + len(token.string)))
    strings = [
        file.span(node)
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return sorted(comments + strings)


def _is_prose(file: EvalFile, offset: int) -> bool:
    spans = _prose_spans(file)
    index = bisect_right(spans, (offset, len(file.text))) - 1
    return index >= 0 and offset <= spans[index][1]


def _values(node: ast.AST) -> list[ast.expr]:
    value: ast.expr | None = None
    if isinstance(node, (ast.If, ast.While, ast.Assert)):
        value = node.test
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.AnnAssign)):
        value = node.value
    return [] if value is None else [value]


def _is_word_edge(text: str, offset: int) -> bool:
    around = text[max(0, offset - 1) : offset + 1]
    return len(around) < 2 or not all(
        character.isalnum() or character == "_" for character in around
    )


# Name -> how to find a span, and what kind of hole the engine is told it is.
BUCKETS: dict[str, tuple[Callable[[EvalFile, random.Random], Span | None], HoleKind]] = {
    "rest of line": (_rest_of_line, HoleKind.LINE),
    "mid-line": (_mid_line, HoleKind.LINE),
    "argument list": (_argument_list, HoleKind.LINE),
    "expression": (_expression, HoleKind.LINE),
    "whole line": (_whole_line, HoleKind.LINE),
    "block": (_block, HoleKind.BLOCK),
    PROSE: (_prose, HoleKind.LINE),
}
