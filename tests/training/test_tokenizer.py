"""The tokenizer keeps every text, and its pieces are the ones the engine's cuts rely on."""

import pytest

from dgemma_engine.special_tokens import LANGUAGE_TAGS, SPECIAL_TOKENS
from training.tokenizer import train_tokenizer

SOURCE = (
    "def add(left, right):\n    if left is None:\n        return right\n"
    "    return left + right\n\n\n"
    "class Point:\n\tdef __init__(self, x=0, y=10):\n\t\tself.x = x\n\t\tself.y = y\n"
) * 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SOURCE], vocab_size=400)


@pytest.mark.parametrize(
    "text",
    [
        SOURCE,
        "",
        "\n",
        "a\r\nb\r\n",
        "\tif x:\n\t\tpass\n",
        "x = 'ü 😀 👩‍👩‍👧 \u2028 \x0c'\n\n\n    # 日本語",
        "<pad><eom> <mid>\n<lang:python>",
        "1234567890  x  ==  y   \n   \n",
        "\x00\x7f\ufeff",
    ],
)
def test_decoding_returns_the_text(tokenizer, text):
    """Whatever the text, decode(encode(text)) is the text."""
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_text_never_becomes_a_special_token(tokenizer):
    """Source text that spells a special token is encoded as characters."""
    ids = tokenizer.encode("".join(SPECIAL_TOKENS)).ids
    assert min(ids) >= len(SPECIAL_TOKENS)


def test_special_tokens_are_first(tokenizer):
    """A special token's id is its place in the list."""
    assert [tokenizer.token_to_id(name) for name in SPECIAL_TOKENS] == list(
        range(len(SPECIAL_TOKENS))
    )
    assert LANGUAGE_TAGS["python"] == SPECIAL_TOKENS[8]


def test_line_break_and_indentation_are_one_token(tokenizer):
    """A frequent indentation is one token with its line break; digits stand alone."""
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode("if left:\n        return 10").ids]
    assert "\n        " in tokens
    assert tokens[-2:] == ["1", "0"]


def test_too_small_a_vocabulary_is_refused():
    """The message says how many tokens are needed at least."""
    with pytest.raises(ValueError, match="at least 304, got 300"):
        train_tokenizer([SOURCE], vocab_size=300)
