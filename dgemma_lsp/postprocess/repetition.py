"""A model that has nothing more to say says the last thing again and again."""

from __future__ import annotations

import re

from ..document import DocumentSnapshot
from ..hole import Hole

# Said so often in a row, it is not meant.
_LEAST_TIMES = 3
_MOST_CHARACTERS = 80
# A row of zeros, or of dots, may well be meant.
_LEAST_WORD_CHARACTERS = 2


def trim_repetition(snapshot: DocumentSnapshot, hole: Hole, text: str) -> str:
    """Cut a fill that ends in the same piece over and over, the last one cut off or not, to one."""
    for size in range(_LEAST_WORD_CHARACTERS, min(_MOST_CHARACTERS, len(text) // _LEAST_TIMES) + 1):
        start = len(text) - size
        while start > 0 and text[start - 1] == text[start - 1 + size]:
            start -= 1
        piece = text[start : start + size]
        is_word = len(set(re.findall(r"\w", piece))) >= _LEAST_WORD_CHARACTERS
        if is_word and len(text) - start >= _LEAST_TIMES * size:
            return text[: start + size]
    return text
