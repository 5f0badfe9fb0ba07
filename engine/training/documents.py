"""Documents as token ids that remember where in the text they came from.

Everything is tokenised once, at the start; rows are then cut out of ids. Read `spans.py` next.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from .corpus import SHINGLE_LINES, Document

_BATCH_SIZE = 64  # encodings are large objects: few at a time


@dataclass
class TokenizedDocument:
    """One document.

    Attributes:
        text: as in the file.
        token_ids: (S,) int32.
        token_starts: (S + 1,) int64, the character at which each token starts; last the text's end.
        is_edge: (S + 1,) bool, False where a token starts inside a character (bytes of an emoji).
        source: package and path.
        leaked_lines: lines that training files share (held-out documents only).
    """

    text: str
    token_ids: np.ndarray
    token_starts: np.ndarray
    is_edge: np.ndarray
    source: str = ""
    leaked_lines: frozenset[int] = frozenset()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def line_starts(self) -> list[int]:
        """Character at which each line starts."""
        starts = [0]
        while (newline := self.text.find("\n", starts[-1])) >= 0:
            starts.append(newline + 1)
        return starts

    def line_at(self, char_offset: int) -> int:
        return bisect.bisect_right(self.line_starts, char_offset) - 1

    def line_end(self, line: int) -> int:
        """Character behind the last one of a line, its line break not counted."""
        if line + 1 < len(self.line_starts):
            return self.line_starts[line + 1] - 1
        return len(self.text)

    def line_text(self, line: int) -> str:
        return self.text[self.line_starts[line] : self.line_end(line)]

    def token_at(self, char_offset: int) -> int:
        """The last token edge at or before a character: where a healed cut lies."""
        index = int(np.searchsorted(self.token_starts, char_offset, side="right")) - 1
        while not self.is_edge[index]:
            index -= 1
        return index


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer) -> list[TokenizedDocument]:
    """Encode documents, in order."""
    tokenizer.encode_special_tokens = True
    tokenized = []
    pending = list(documents)
    for first in range(0, len(pending), _BATCH_SIZE):
        batch = pending[first : first + _BATCH_SIZE]
        encodings = tokenizer.encode_batch([document.text for document in batch])
        for document, encoding in zip(batch, encodings, strict=True):
            tokenized.append(_from_encoding(document, encoding.ids, encoding.offsets))
    return tokenized


def _from_encoding(
    document: Document, token_ids: list[int], offsets: list[tuple[int, int]]
) -> TokenizedDocument:
    spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    starts = np.append(spans[:, 0], len(document.text))
    is_edge = np.ones(len(starts), dtype=bool)
    is_edge[1:] = starts[1:] == spans[:, 1]
    is_edge[1:] &= starts[1:] != starts[:-1]
    return TokenizedDocument(
        document.text,
        np.array(token_ids, dtype=np.int32),
        starts,
        is_edge,
        f"{document.package}/{document.path}",
        frozenset(line + i for line in document.leaked_lines for i in range(SHINGLE_LINES)),
    )
