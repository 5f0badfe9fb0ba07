"""Text to ids and back, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from dgemma_engine import CheckpointError
from dgemma_engine.edges import heal, last_tokens
from dgemma_engine.special_tokens import SPECIAL_TOKENS
from dgemma_engine.tokenizer import Tokenizer

from .tiny import build_tokenizer

TOKENIZER = Tokenizer(build_tokenizer(SPECIAL_TOKENS))


def gemma_like() -> Tokenizer:
    """A vocabulary in Gemma's manner: a mark for the space, bytes as `<0xNN>`, no pre-tokenizer."""
    pieces = ["<pad>", "<|turn>", "\n", "▁", "▁▁", "a", "b", "ab", "▁ab"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    vocab |= {f"<0x{byte:02X}>": len(pieces) + byte for byte in range(256)}
    merges = [("a", "b"), ("▁", "▁"), ("▁", "ab")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<pad>", "<|turn>"])
    return Tokenizer(backend)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_byte_level_round_trip(text: str) -> None:
    """Any text survives, control characters and emoji included."""
    assert text == TOKENIZER.decode(TOKENIZER.encode(text))


def test_byte_fallback_round_trip() -> None:
    """Spaces, line breaks and characters outside the vocabulary survive."""
    text = "ab  ab\n é😋 b"
    assert text == gemma_like().decode(gemma_like().encode(text))
    assert gemma_like().token_bytes(8) == b" ab"


def test_text_never_becomes_a_special_token() -> None:
    """Source code that spells a special token stays text."""
    for tokenizer, text in ((TOKENIZER, "<eom> <pad><mid>"), (gemma_like(), "<|turn>ab<pad>")):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids)
        assert text == tokenizer.decode(ids)


def test_a_cut_character_is_left_out() -> None:
    """Half an emoji is not text; the halves together are."""
    ids = TOKENIZER.encode("x😋")
    assert TOKENIZER.decode(ids[:-1]) == "x"
    assert TOKENIZER.decode_bytes(ids).decode() == "x😋"


def test_ids_starting_with_finds_all() -> None:
    """The sorted look-up finds exactly what a scan finds."""
    for start in (b"r", b"re", b"    ", b"\xc4\xa0", b"return"):
        expected = [
            index
            for index in range(TOKENIZER.vocab_size)
            if TOKENIZER.token_bytes(index).startswith(start)
        ]
        assert expected == sorted(TOKENIZER.ids_starting_with(start))


def test_healing_takes_back_one_token() -> None:
    """The token before the cursor is taken back; what is left and it make the text."""
    ids = TOKENIZER.encode("return le")
    rest, healed = heal(TOKENIZER, ids)
    assert TOKENIZER.decode_bytes(rest) + healed == b"return le"
    assert len(rest) == len(ids) - 1
    assert heal(TOKENIZER, []) == ([], b"")
    assert heal(TOKENIZER, [0]) == ([0], b""), "special tokens stay"


def test_prefix_window_stays_put_while_typing() -> None:
    """Over a whole limit's worth of typing the window's start moves at most a few times."""
    ids = TOKENIZER.encode("    print(index, add(index, 1))\n" * 40)
    limit = 100
    starts = set()
    for length in range(200, 300):
        window = last_tokens(TOKENIZER, ids[:length], limit)
        assert len(window) <= limit
        assert window == ids[length - len(window) : length]
        starts.add(length - len(window))
    assert len(starts) <= 5
    assert last_tokens(TOKENIZER, ids[:limit], limit) == ids[:limit]


def test_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)
