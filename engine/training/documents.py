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
        token_starts: (S + 1,) int32, the character at which each token starts; last the text's end.
        is_edge: (S + 1,) bool, False where a token starts inside a character (bytes of an emoji).
        source: package and path.
        leaked_lines: lines that training files share (held-out documents only).
        language: of `special_tokens.LANGUAGES`.
    """

    text: str
    token_ids: np.ndarray
    token_starts: np.ndarray
    is_edge: np.ndarray
    source: str = ""
    leaked_lines: frozenset[int] = frozenset()
    language: str = "python"

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
    """Encode documents, in order, on as many threads as `tokenizers` takes."""
    tokenizer.encode_special_tokens = True
    num_bytes = _bytes_per_token(tokenizer)
    tokenized = []
    pending = list(documents)
    for first in range(0, len(pending), _BATCH_SIZE):
        batch = pending[first : first + _BATCH_SIZE]
        encodings = tokenizer.encode_batch_fast([document.text for document in batch])
        for document, encoding in zip(batch, encodings, strict=True):
            token_ids = np.array(encoding.ids, dtype=np.int32)
            tokenized.append(_locate(document, token_ids, num_bytes))
    return tokenized


def _bytes_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """By id. In a byte-level vocabulary every character of a token's name stands for a byte."""
    size = tokenizer.get_vocab_size()
    return np.array([len(tokenizer.id_to_token(index)) for index in range(size)], dtype=np.int64)


def _locate(document: Document, token_ids: np.ndarray, num_bytes: np.ndarray) -> TokenizedDocument:
    """From the tokens' lengths: `tokenizers` tells offsets too, at half the speed."""
    content = np.frombuffer(document.text.encode("utf-8"), dtype=np.uint8)
    ends = np.cumsum(num_bytes[token_ids])
    assert (ends[-1] if len(ends) else 0) == len(content), "the tokenizer changed a text"
    starts = np.concatenate(([0], ends)).astype(np.int64)  # in bytes
    begins_character = np.append((content & 0xC0) != 0x80, True)
    character = np.cumsum(begins_character) - 1  # of each byte, and behind the last
    return TokenizedDocument(
        document.text,
        token_ids,
        character[starts].astype(np.int32),
        begins_character[starts],
        f"{document.package}/{document.path}",
        frozenset(line + i for line in document.leaked_lines for i in range(SHINGLE_LINES)),
        document.language,
    )
