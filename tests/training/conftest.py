"""A small corpus: this repository's own training code, and the tokenizer trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import training
from training.corpus import Document
from training.documents import tokenize
from training.rows import RowSource
from training.tokenizer import train_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts():
    folder = Path(training.__file__).parent
    emoji = 'NAMES = ["ü", "😀", "日本語"]  # 👩‍👩‍👧\n' * 30
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))] + [emoji]


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=600)


@pytest.fixture(scope="session")
def documents(texts, tokenizer):
    return tokenize([Document("own", str(i), "train", t) for i, t in enumerate(texts)], tokenizer)


@pytest.fixture(scope="session")
def source(documents, tokenizer):
    return RowSource(documents, tokenizer)
