"""New tokens of a prefix in the first pass over a canvas: what `prefill` and a pass would make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_engine import ContextTooLong, RequestError
from dgemma_engine import cache as cache_module
from dgemma_engine.cache import KVCache
from dgemma_engine.layers import Experts

from .tiny import build_model

MODEL = build_model()  # its window is of 24 tokens
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def tokens(rows: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 400, (rows, count), generator=generator)


def assert_same_cache(expected: KVCache, actual: KVCache) -> None:
    assert expected.length == actual.length
    for index in range(len(MODEL.layers)):
        for left, right in zip(
            expected.prefix(index, expected.length, 1),
            actual.prefix(index, actual.length, 1),
            strict=True,
        ):
            torch.testing.assert_close(right, left, **TOLERANCE)


@pytest.mark.parametrize("num_new", [1, 2, 23, 24, 25, 60])
@pytest.mark.parametrize("num_cached", [0, 1, 22, 23, 24, 40, 100])
def test_it_is_prefill_and_a_pass(num_cached: int, num_new: int) -> None:
    """On both sides of the window, of layers of both kinds, for one canvas and for several."""
    before, new = tokens(1, num_cached, 1), tokens(1, num_new, 2)
    for rows, slots in ((1, None), (3, torch.tensor([[0, 4], [1, 2], [7, 8]]))):
        canvas = tokens(rows, 9, 3)
        caches = []
        for _ in range(2):
            cache = MODEL.new_cache(1)
            if num_cached:
                MODEL.prefill(before, cache)
            caches.append(cache)
        MODEL.prefill(new, caches[0])
        expected = MODEL.denoise_logits(canvas, caches[0], None, slots)
        actual = MODEL.fold_logits(new, canvas, caches[1], slots)
        torch.testing.assert_close(actual, expected, **TOLERANCE)
        assert_same_cache(caches[0], caches[1])
        # What follows cannot tell the two apart.
        following = [MODEL.next_token_logits(tokens(1, 3, 4), cache) for cache in caches]
        torch.testing.assert_close(following[1], following[0], **TOLERANCE)


def test_it_goes_on_where_old_tokens_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sliding layer whose memory is full makes room; pieces of a prefill end anywhere."""
    monkeypatch.setattr(cache_module, "SLACK_TOKENS", 8)
    monkeypatch.setattr(cache_module, "_GROWTH_TOKENS", 1)
    monkeypatch.setattr(cache_module, "sliding_capacity", lambda config: 40)
    model = build_model()
    model.prefill_tokens = 7
    whole, folded = model.new_cache(1), model.new_cache(1)
    for cache in (whole, folded):
        model.prefill(tokens(1, 30, 0), cache)
    for seed in range(1, 9):
        new, canvas = tokens(1, 5 + seed, seed), tokens(2, 6, seed)
        model.prefill(new, whole)
        expected = model.denoise_logits(canvas, whole)
        torch.testing.assert_close(model.fold_logits(new, canvas, folded), expected, **TOLERANCE)
        assert_same_cache(whole, folded)
    assert folded.num_held(0) < folded.length == folded.num_held(2)


def test_a_pass_that_is_broken_off_leaves_the_cache_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even in the middle of the layers, with some keys already written."""
    cache = MODEL.prefill(tokens(1, 40, 0))
    expected = MODEL.next_token_logits(tokens(1, 2, 1), MODEL.prefill(tokens(1, 40, 0)))
    calls = []

    def fail(*_: object) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return forward(*_)

    forward = Experts.forward
    monkeypatch.setattr(Experts, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        MODEL.fold_logits(tokens(1, 9, 2), tokens(1, 6, 3), cache)
    monkeypatch.undo()
    assert cache.length == 40
    assert torch.equal(expected, MODEL.next_token_logits(tokens(1, 2, 1), cache))


def test_what_cannot_be_read_is_refused() -> None:
    """As `prefill` refuses it, before anything is written."""
    cache = MODEL.prefill(tokens(1, 1020, 0))
    with pytest.raises(ContextTooLong, match="1025 tokens"):
        MODEL.fold_logits(tokens(1, 5, 1), tokens(1, 4, 2), cache)
    with pytest.raises(RequestError, match="token ids must be in 0"):
        MODEL.fold_logits(torch.tensor([[400]]), tokens(1, 4, 2), cache)
    assert cache.length == 1020
