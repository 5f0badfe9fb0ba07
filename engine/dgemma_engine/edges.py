"""The edges of a hole: the token that the cursor cut, and where a fill ends.

Knows text and token ids, no tensors: the engine on this machine and the one on a server share it.
"""

from __future__ import annotations

import re

from .tokenizer import Tokenizer
from .types import HoleKind


def heal(tokenizer: Tokenizer, token_ids: list[int]) -> tuple[list[int], bytes]:
    """Take back the last token before the cursor, which may be the start of a longer one.

    The first token of the hole then has to begin with the bytes taken back.

    Returns:
        the remaining ids, and the bytes taken back (empty if none were).
    """
    last = tokenizer.token_bytes(token_ids[-1]) if token_ids else b""
    return (token_ids[:-1], last) if last else (token_ids, b"")


def last_tokens(tokenizer: Tokenizer, token_ids: list[int], limit: int) -> list[int]:
    """The end of a prefix, from a start that stays put while text is typed behind it.

    Dropping exactly what is too much would move every token at each keystroke and leave nothing of
    the cache. The start therefore moves by a quarter of the limit at a time, then to a line start.
    """
    if len(token_ids) <= limit:
        return token_ids
    chunk = max(1, limit // 4)
    start = -(-(len(token_ids) - limit) // chunk) * chunk
    for index in range(start, min(start + chunk, len(token_ids))):
        if tokenizer.token_bytes(token_ids[index]).startswith(b"\n"):
            return token_ids[index:]
    return token_ids[start:]


def cut_to_kind(text: str, kind: HoleKind) -> str:
    """Cut text to the shape of the hole: a line ends at a line break, a block holds whole lines."""
    if kind is HoleKind.LINE:
        return re.split(r"[\r\n]", text, maxsplit=1)[0]
    if kind is HoleKind.BLOCK:
        return text.rstrip()
    return text


def without_overlap(text: str, suffix: str) -> str:
    """Drop the end of `text` where it already says how `suffix` begins."""
    for length in range(min(len(text), len(suffix)), 0, -1):
        if text.endswith(suffix[:length]) and suffix[:length].strip():
            return text[:-length]
    return text
