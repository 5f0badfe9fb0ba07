"""Train the tokenizer: byte-level BPE in which a line break with its indentation is one piece.

python -m training.tokenizer --corpus DIR --out DIR/tokenizer.json --vocab-size 4096
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dgemma_engine.special_tokens import SPECIAL_TOKENS

from .corpus import read_documents

# BPE never merges across pieces. Python's indentation travels with its line break, words take the
# space before them, digits stand alone. Every character matches one of these, so that no text is
# lost.
PIECES = (
    r"\n[ \t]*"  # line break and indentation
    r"| ?[A-Za-z_]+"  # word
    r"|[0-9]"  # digit
    r"| ?[^\sA-Za-z0-9_]+"  # punctuation, and letters beyond ASCII
    r"|[ \t]+"
    r"|\s"  # carriage return, form feed, Unicode spaces
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary whose first ids are `SPECIAL_TOKENS`.

    Text is encoded as it is (no normalisation), and decodes to the same text.

    Raises:
        ValueError: `vocab_size` has no room for the special tokens and the 256 bytes.
    """
    least = len(SPECIAL_TOKENS) + 256
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # In source text "<pad>" is five characters like any others: specials enter as ids only.
    tokenizer.encode_special_tokens = True
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="training.tokenizer", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by corpus")
    parser.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    parser.add_argument("--vocab-size", type=int, default=4096)
    options = parser.parse_args(arguments)
    documents = read_documents(options.corpus / "documents.jsonl")
    texts = [d.text for d in documents if d.split == "train"]
    tokenizer = train_tokenizer(texts, options.vocab_size)
    tokenizer.save(str(options.out))
    for split in ("train", "held_out"):
        own = [d.text for d in documents if d.split == split]
        num_tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(own))
        num_bytes = sum(len(text.encode()) for text in own)
        print(f"{split}: {num_tokens:,} tokens, {num_bytes / num_tokens:.2f} bytes per token")


if __name__ == "__main__":
    main()
