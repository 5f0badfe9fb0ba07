"""Which stretch of a document becomes a hole: what editors ask to be filled.

Spans are in characters and know no tokens' ids; `rows.py` makes holes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .documents import TokenizedDocument

# What a request covers, with the share of each in training.
SPAN_SHARES = {
    "rest_of_line": 0.25,
    "mid_line": 0.18,
    "whole_line": 0.10,
    "block": 0.12,
    "bracket": 0.15,
    "expression": 0.10,
    "lines": 0.05,
    "random": 0.05,
}
_KINDS = list(SPAN_SHARES)
_SHARES = np.array(list(SPAN_SHARES.values()))

MAX_LINES = 6
MAX_RANDOM_TOKENS = 32
_MAX_BLOCK_LINES = 40
_MAX_BRACKET_CHARS = 600

_BRACKET_OR_STRING = re.compile(
    r'"(?:[^"\\\n]|\\.)*"' r"|'(?:[^'\\\n]|\\.)*'" r"|#[^\n]*" r"|[()\[\]{}]"
)
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")
_BEFORE_EXPRESSION = re.compile(
    r"(?<![=!<>])=(?!=) ?|\b(?:return|if|elif|while|in|import|assert|raise|yield|not|and|or) "
)

Span = tuple[int, int]  # start and end character, half-open, never empty


def sample_kind(rng: np.random.Generator) -> str:
    return _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))]


def sample_span(
    document: TokenizedDocument, anchor: int, kind: str, rng: np.random.Generator
) -> Span | None:
    """A span of one kind at or just after a token edge.

    Args:
        document: the document.
        anchor: character where a token starts: the cursor.
        kind: a key of `SPAN_SHARES`.
        rng: for the choices that the kind leaves open.
    Returns:
        the span, without white space at its end; None when there is no such span here.
    """
    span = _SPANS[kind](document, anchor, rng)
    if span is None:
        return None
    start, end = span
    end = start + len(document.text[start:end].rstrip())
    return (start, end) if end > start else None


def _rest_of_line(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span:
    return anchor, document.line_end(document.line_at(anchor))


def _mid_line(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span | None:
    """To the end of a word or sign that has something behind it on its line."""
    rest = document.text[anchor : document.line_end(document.line_at(anchor))].rstrip()
    ends = [match.end() for match in _WORD_OR_SIGN.finditer(rest)][:-1]
    return (anchor, anchor + int(rng.choice(ends))) if ends else None


def _whole_line(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span | None:
    line = document.line_at(anchor)
    if not document.line_text(line).strip():
        return None
    return _start_of_line(document, line, rng), document.line_end(line)


def _block(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span | None:
    """The body below a line that ends in a colon; else from the cursor to the next dedent."""
    line = document.line_at(anchor)
    first_line = document.line_text(line)
    if not first_line.strip():
        return None
    least_indent = _indent(first_line)
    start = anchor if rng.random() < 0.5 else _start_of_line(document, line, rng)
    if first_line.rstrip().endswith(":"):
        least_indent += 1
        start = _start_of_line(document, line + 1, rng)
        if rng.random() < 0.3:  # the cursor is still behind the colon
            start = int(document.token_starts[document.token_at(document.line_end(line) - 1)])
    last = line
    for following in range(line + 1, min(line + _MAX_BLOCK_LINES, len(document.line_starts))):
        text = document.line_text(following)
        if text.strip():
            if _indent(text) < least_indent:
                break
            last = following
    else:
        return None  # it goes on beyond what a canvas holds
    return start, document.line_end(last)


def _bracket(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span | None:
    """What stands between the next opening bracket and its closing one."""
    depth, start = 0, 0
    for match in _BRACKET_OR_STRING.finditer(document.text, anchor, anchor + _MAX_BRACKET_CHARS):
        if match[0] in "([{":
            if depth == 0:
                start = match.end()
            depth += 1
        elif match[0] in ")]}" and depth:
            depth -= 1
            if depth == 0:
                return (start, match.start()) if match.start() > start else None
    return None


def _expression(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span | None:
    """What follows an assignment or a keyword on the cursor's line, up to a closing `:` or `,`."""
    line = document.line_at(anchor)
    offset = document.line_starts[line]
    text = document.line_text(line)
    starts = [match.end() for match in _BEFORE_EXPRESSION.finditer(text)]
    if not starts:
        return None
    end = len(text.rstrip())
    if text[end - 1 : end] in (":", ","):
        end -= 1
    return offset + int(rng.choice(starts)), offset + end


def _lines(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span:
    line = document.line_at(anchor)
    last = min(line + int(rng.integers(MAX_LINES)), len(document.line_starts) - 1)
    start = anchor if rng.random() < 0.3 else _start_of_line(document, line, rng)
    return start, document.line_end(last)


def _random(document: TokenizedDocument, anchor: int, rng: np.random.Generator) -> Span:
    first = document.token_at(anchor)
    last = min(first + int(rng.integers(1, MAX_RANDOM_TOKENS + 1)), document.num_tokens)
    return anchor, int(document.token_starts[last])


def _start_of_line(document: TokenizedDocument, line: int, rng: np.random.Generator) -> int:
    """Behind the indentation that the editor has put there, or at the line break before it."""
    if line >= len(document.line_starts):
        return len(document.text)
    if line > 0 and rng.random() < 0.5:
        return document.line_starts[line] - 1
    text = document.line_text(line)
    return document.line_starts[line] + len(text) - len(text.lstrip())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_SPANS: dict[str, Callable[[TokenizedDocument, int, np.random.Generator], Span | None]] = {
    "rest_of_line": _rest_of_line,
    "mid_line": _mid_line,
    "whole_line": _whole_line,
    "block": _block,
    "bracket": _bracket,
    "expression": _expression,
    "lines": _lines,
    "random": _random,
}
