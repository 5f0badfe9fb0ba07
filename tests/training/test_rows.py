"""Rows hold what the engine will show the model, and nothing that gives the answer away."""

from collections import Counter

import numpy as np
import pytest
import torch

from dgemma_engine.canvas import EOM_ID, EXACT_ID, MID_ID, PAD_ID, PRE_ID, SUF_ID
from dgemma_engine.config import ModelConfig
from dgemma_engine.model import DiffusionGemma
from training.initialise import build_config, initialise
from training.objective import corrupt
from training.rows import HOLE_LENGTHS, Mixture, _build_hole, collate
from training.spans import SPAN_SHARES, sample_span

MIXTURE = Mixture(block=0.2, exact=0.2, slack=0.6, suffix_window=0.5)


def rows_of(source, count, length=256):
    rng = np.random.default_rng(5)
    return [source.row(rng, MIXTURE, length) for _ in range(count)]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def text_of_target(tokenizer, target):
    return text_of(tokenizer, [i for i in target if i not in (EOM_ID, PAD_ID)])


def test_target_restores_the_text(source, documents, tokenizer):
    """What stands before the cut, the hole's target and the suffix are one text of a document."""
    texts = [document.text for document in documents]
    kinds = Counter()
    for row in rows_of(source, 150):
        for hole in row.holes:
            middle = text_of_target(tokenizer, hole.target)
            start = len(row.token_ids) - 1 - row.token_ids[::-1].index(PRE_ID) + 1
            before = text_of(tokenizer, row.token_ids[start : hole.cut])
            room = hole.canvas_length - hole.hole_length - 2
            if hole.second is not None:
                between, second = hole.second
                middle += text_of(tokenizer, between) + text_of_target(tokenizer, second)
                room -= len(between) + len(second) + 2
            after = text_of(tokenizer, hole.suffix_ids[:room])
            # A canvas may end inside a character, at the end of a suffix or of a block.
            joined = (before + middle + after).rstrip("\ufffd")
            kinds[hole.marker, bool(hole.suffix_ids), hole.second is not None] += 1
            assert any(joined in text for text in texts), joined
    assert len(kinds) == 5, kinds


def test_layout(source):
    """[marker] hole [suf] suffix [pad], all of the canvas' length, in every row."""
    for row in rows_of(source, 50):
        assert len(row.token_ids) <= 256
        assert sum(hole.canvas_length for hole in row.holes) == 256
        for hole in row.holes:
            token_ids, mask = hole.layout()
            size = hole.hole_length
            clamped = hole.canvas_length - size - 1
            expected = [False] + [True] * size + [False] * clamped
            if hole.second is not None:
                between, second = hole.second
                start = size + 3 + len(between)
                expected[start : start + len(second)] = [True] * len(second)
                assert token_ids[start - 1] == MID_ID
                assert token_ids[start : start + len(second)] == second
                assert token_ids[start + len(second)] == SUF_ID
                assert second.count(EOM_ID) == 1
            assert mask == expected
            assert token_ids[0] == hole.marker
            assert token_ids[1 : size + 1] == hole.target
            assert token_ids[size + 1] == SUF_ID
            if hole.marker == MID_ID:
                end = hole.target.index(EOM_ID)
                assert set(hole.target[end + 1 :]) <= {PAD_ID}
            else:
                assert hole.marker == EXACT_ID
                assert EOM_ID not in hole.target


@pytest.mark.parametrize("length", [0, 3, 15, 20])
def test_hole_length_tells_nothing_but_that_the_text_fits(length):
    """Every slack length that holds the text and its end mark is equally likely."""
    rng = np.random.default_rng(0)
    holes = [_build_hole(rng, 0, [99] * length, [], 64, False) for _ in range(3000)]
    fitting = [size for size in HOLE_LENGTHS[64] if size > length]
    counts = Counter(hole.hole_length for hole in holes)
    assert sorted(counts) == fitting
    expected = 3000 / len(fitting)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values()), counts


def test_corruption_never_touches_clamped_tokens(source):
    """Noise goes into holes only, over the whole vocabulary, as often as its level says."""
    batch = collate(rows_of(source, 16), 256, 256, sliding_window=32)
    for noise in ("uniform", "hybrid"):
        generator = torch.Generator().manual_seed(1)
        corruption = corrupt(batch, 600, noise, 0.2, 0.3, generator)
        clean, noisy = batch.token_ids[:, batch.is_canvas], corruption.canvas_ids
        assert torch.equal(clean[~batch.hole_mask], noisy[~batch.hole_mask])
        assert torch.equal(
            clean[batch.hole_mask & ~corruption.is_corrupted],
            noisy[batch.hole_mask & ~corruption.is_corrupted],
        )
        hit, is_pure = corruption.is_corrupted, corruption.is_pure & batch.hole_mask
        assert hit[is_pure].all()
        assert 0.1 < float(is_pure[batch.hole_mask].float().mean()) < 0.35
        scattered = float(hit[batch.hole_mask & ~is_pure].float().mean())
        assert 0.4 < scattered < 0.75  # half of the slots, and padding behind a front


def test_front_noise_begins_once(source):
    """Clean before the front, noise behind it; the front may stand before and behind all text."""
    batch = collate(rows_of(source, 16), 256, 256, sliding_window=32)
    corruption = corrupt(batch, 600, "uniform", 0.0, 1.0, torch.Generator().manual_seed(1))
    is_text = batch.hole_mask & (batch.token_ids[:, batch.is_canvas] != PAD_ID)
    shares = []
    for row in range(len(batch.token_ids)):
        for canvas in batch.canvas_index[row].unique():
            own = batch.hole_mask[row] & (batch.canvas_index[row] == canvas)
            hit = corruption.is_corrupted[row, own]
            text = is_text[row, own]
            # Of two holes the first one's padding is noise, be the front in the second.
            assert torch.equal(hit[text], hit[text].sort().values), "noise, then clean text again"
            shares.append(float(hit[text].float().mean()))
            assert hit[~text].all(), "padding is known only when the text is"
    assert min(shares) == 0.0
    assert max(shares) == 1.0
    assert 0.4 < sum(shares) / len(shares) < 0.6


@pytest.mark.parametrize("length", [96, 128, 256])
def test_rows_of_any_length_can_be_drawn(source, length):
    """A long suffix window and a long middle leave room for a prefix, or are drawn again."""
    for step in range(60):
        batch = source.batch(3, step, MIXTURE, 2, length, sliding_window=512)
        assert batch.num_document_tokens == length


def test_batches_depend_on_seed_and_step_alone(source):
    """The same step gives the same batch, another step another one."""
    first, again, other = (
        source.batch(3, step, MIXTURE, 2, 128, sliding_window=512).token_ids for step in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", list(SPAN_SHARES))
def test_spans_lie_in_the_text(documents, kind):
    """Every kind of span is found, is not empty and has no white space at its end."""
    rng = np.random.default_rng(0)
    found = 0
    for document in documents:
        for start in document.token_starts[:-1:23]:
            span = sample_span(document, int(start), kind, rng)
            if span is not None:
                found += 1
                assert 0 <= span[0] < span[1] <= len(document.text)
                middle = document.text[span[0] : span[1]]
                assert middle == middle.rstrip()
    assert found > 20


@pytest.mark.parametrize("has_conditioning", [False, True])
def test_joint_forward_equals_prefill_and_denoise(source, has_conditioning):
    """What training computes for a canvas is what inference computes, sliding window included."""
    config = ModelConfig.from_json(build_config("tiny", 600))
    assert config.sliding_window < 128
    model = DiffusionGemma(config)
    initialise(model, torch.Generator().manual_seed(1))
    model.requires_grad_(False)
    for layer in model.layers:
        layer.layer_scalar.fill_(0.7)
        layer.encoder_layer_scalar.fill_(0.9)
    rows = rows_of(source, 3, length=128)
    batch = collate(rows, 128, 256, config.sliding_window)
    conditioning = None
    if has_conditioning:
        conditioning = 3 * torch.randn(3, 256, 600, generator=torch.Generator().manual_seed(2))
    hidden = model.forward_joint(
        batch.token_ids,
        batch.is_canvas,
        batch.position_ids,
        batch.sliding_mask,
        batch.full_mask,
        conditioning,
    )
    actual = model.logits(hidden)
    for index, row in enumerate(rows):
        start = 0
        for hole in row.holes:
            canvas = slice(start, start + hole.canvas_length)
            start += hole.canvas_length
            cache = model.prefill(torch.tensor([row.token_ids[: hole.cut]]))
            expected = model.denoise_logits(
                torch.tensor([hole.layout()[0]]),
                cache,
                None if conditioning is None else conditioning[index : index + 1, canvas],
            )
            torch.testing.assert_close(
                actual[index : index + 1, 128 + canvas.start : 128 + canvas.stop],
                expected,
                atol=2e-5,
                rtol=1e-4,
            )
