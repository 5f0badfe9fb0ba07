"""Tokenized documents know where in the text their tokens came from."""

import numpy as np

from dgemma_engine.special_tokens import LANGUAGE_TAGS
from training.corpus import Document
from training.documents import tokenize
from training.rows import Mixture, RowSource

MIXTURE = Mixture(block=0.2, exact=0.2, slack=0.6, canvas_tokens=256)


def test_tokens_lie_where_the_tokenizer_says(texts, tokenizer):
    """Also where a character is several tokens: only the first of them is an edge."""
    documents = [Document("own", str(i), "train", text) for i, text in enumerate(texts)]
    divided = 0
    for document, actual in zip(documents, tokenize(documents, tokenizer), strict=True):
        encoding = tokenizer.encode(document.text)
        starts = [start for start, _ in encoding.offsets]
        assert encoding.ids == actual.token_ids.tolist()
        assert [*starts, len(document.text)] == actual.token_starts.tolist()
        ends = [0, *(end for _, end in encoding.offsets)]
        is_edge = np.array([*starts, len(document.text)]) == ends
        is_edge[1:] &= np.diff(actual.token_starts) > 0
        assert is_edge.tolist() == actual.is_edge.tolist()
        divided += int((~is_edge).sum())
    assert divided > 0


def test_a_row_names_its_document_s_language(texts, tokenizer):
    """The tag behind <bos> is that of the document the row was cut from."""
    documents = [Document("own", "a", "train", texts[0], language="go")]
    source = RowSource(tokenize(documents, tokenizer), tokenizer)
    rng = np.random.default_rng(0)
    tags = {source.row(rng, MIXTURE, 128).token_ids[1] for _ in range(8)}
    assert tags == {tokenizer.token_to_id(LANGUAGE_TAGS["go"])}
