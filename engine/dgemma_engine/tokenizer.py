"""Text to token ids and back, and which tokens begin with given bytes.

A thin holder of `tokenizers.Tokenizer`. What a token stands for is kept as bytes, since a token may
end in the middle of a character; byte-level BPE (ours) and SentencePiece-like vocabularies with
byte fallback (Gemma's) are read.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers

from .errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A checkpoint's tokenizer. Text never becomes a special token, whatever it says."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # User code may contain "<eom>" or "<|turn>" as text; it must stay text.
        self._backend.encode_special_tokens = True
        self._is_byte_level = '"ByteLevel"' in backend.to_str()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing or not a tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; copy it from where the checkpoint came from"
            )
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error

    @property
    def vocab_size(self) -> int:
        """V, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name, None if there is none."""
        return self._backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Text to ids, nothing added before or after."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; special tokens stand for nothing."""
        return self._bytes_by_id[token_id]

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of some tokens; the last character may be incomplete."""
        return b"".join(self._bytes_by_id[token_id] for token_id in token_ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of some tokens. An incomplete character at either end is left out."""
        return self.decode_bytes(token_ids).decode("utf-8", errors="ignore")

    def render(self, token_ids: Iterable[int]) -> str:
        """The text of some tokens with the special ones by their names, for a person."""
        return self._backend.decode(list(token_ids), skip_special_tokens=False)

    def ids_starting_with(self, start: bytes) -> list[int]:
        """All tokens whose bytes begin with `start`, which is not empty."""
        first = bisect_left(self._sorted_bytes, (start, -1))
        found = []
        for token, token_id in self._sorted_bytes[first:]:
            if not token.startswith(start):
                break
            found.append(token_id)
        return found

    def ids_containing(self, part: bytes) -> list[int]:
        """All tokens whose bytes contain `part`."""
        return [index for index, token in enumerate(self._bytes_by_id) if part in token]

    @cached_property
    def special_ids(self) -> list[int]:
        """Ids of all special tokens, ascending."""
        added = json.loads(self._backend.to_str())["added_tokens"]
        return sorted(token["id"] for token in added if token["special"])

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        special = set(self.special_ids)
        by_id = [b""] * self.vocab_size
        for token, token_id in self._backend.get_vocab(with_added_tokens=True).items():
            if token_id not in special:
                by_id[token_id] = self._to_bytes(token)
        return by_id

    @cached_property
    def _sorted_bytes(self) -> list[tuple[bytes, int]]:
        return sorted((token, index) for index, token in enumerate(self._bytes_by_id) if token)

    def _to_bytes(self, token: str) -> bytes:
        if self._is_byte_level:
            return bytes(_BYTE_LEVEL_ALPHABET[character] for character in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match.group(1), 16)])
        return token.replace("▁", " ").encode("utf-8")


def _byte_level_alphabet() -> dict[str, int]:
    """Which byte a character of a byte-level vocabulary stands for.

    Printable bytes stand for themselves; the others were moved up, in order, from U+0100.
    Source: the ByteLevel pre-tokenizer of Hugging Face tokenizers.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(moved)})
    return alphabet


_BYTE_LEVEL_ALPHABET = _byte_level_alphabet()
