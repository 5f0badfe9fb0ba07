"""The prefix cache: what is kept between calls changes nothing but the time."""

from __future__ import annotations

import random

import pytest
import torch

from dgemma_engine import CancellationToken, Cancelled, ContextTooLong, RequestError
from dgemma_engine import cache as cache_module
from dgemma_engine.cache import PrefixCache
from dgemma_engine.model import DiffusionGemma

from .tiny import build_model

# Float32 sums in another order: measured below 1e-5 of logits around 5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return build_model()


def _logits(model: DiffusionGemma, prefix: list[int], cache: PrefixCache | None) -> torch.Tensor:
    canvas = torch.arange(16)[None] * 7
    if cache is None:
        return model.denoise_logits(canvas, model.prefill(torch.tensor([prefix])))
    return model.denoise_logits(canvas, cache.encode(prefix)[0])


def test_reuse_gives_the_same_logits_as_none(model: DiffusionGemma) -> None:
    """Typing, deleting and jumping: every prompt gives what a fresh encoding gives."""
    rng = random.Random(0)
    cache = PrefixCache(model)
    prefix = [rng.randrange(400) for _ in range(30)]
    for _ in range(60):
        keep = rng.choice([len(prefix), len(prefix) - 1, rng.randrange(1, len(prefix))])
        prefix = prefix[: max(1, keep)] + [rng.randrange(400) for _ in range(rng.randrange(1, 9))]
        prefix = prefix[:90]
        difference = (_logits(model, prefix, None) - _logits(model, prefix, cache)).abs().max()
        assert difference < TOLERANCE


def test_only_what_differs_is_encoded(model: DiffusionGemma) -> None:
    """The longest shared prefix is kept, to the token."""
    cache = PrefixCache(model)
    assert cache.encode([1, 2, 3, 4])[1] == 0
    assert cache.encode([1, 2, 3, 4, 5])[1] == 4
    assert cache.encode([1, 2, 9, 4, 5])[1] == 2
    assert cache.encode([1, 2])[1] == 2
    assert cache.encode([1, 2])[0].length == 2


def test_what_was_encoded_when_it_was_withdrawn_stays(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends within a piece, and the next one goes on from there."""
    monkeypatch.setattr(cache_module, "_CANCEL_TOKENS", 16)
    cache, token, prefix = PrefixCache(model), CancellationToken(), [7 * i % 400 for i in range(60)]
    prefill, num_pieces = model.prefill, 0

    def withdraw(*arguments: torch.Tensor) -> object:
        nonlocal num_pieces
        num_pieces += 1
        if num_pieces == 2:
            token.cancel()
        return prefill(*arguments)

    monkeypatch.setattr(model, "prefill", withdraw)
    with pytest.raises(Cancelled):
        cache.encode(prefix, token)
    assert num_pieces == 2
    difference = (_logits(model, prefix, None) - _logits(model, prefix, cache)).abs().max()
    assert difference < TOLERANCE
    assert PrefixCache(model).encode(prefix, CancellationToken())[0].length == 60
    assert cache.encode(prefix)[1] == 60


def test_failed_encoding_keeps_what_was_valid(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that breaks half-way through the layers leaves the cache as it was."""
    cache = PrefixCache(model)
    before = [5, 6, 7, 8, 9, 10, 11]
    cache.encode(before)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise MemoryError

        patch.setattr(model.layers[1].self_attn, "attend", fail)
        with pytest.raises(MemoryError):
            cache.encode([5, 6, 7, 99, 98])
    prefix = [5, 6, 7, 50, 51]
    difference = (_logits(model, prefix, None) - _logits(model, prefix, cache)).abs().max()
    assert difference < TOLERANCE
    assert cache.encode(before)[1] == 3


def test_prefill_in_pieces_equals_prefill_in_one(model: DiffusionGemma) -> None:
    """Chunks of any size, across the window's edge, give the same prefix."""
    tokens = torch.randint(0, 400, (1, 70), generator=torch.Generator().manual_seed(2))
    canvas = torch.arange(8)[None]
    expected = model.denoise_logits(canvas, model.prefill(tokens))
    for size in (1, 7, 23, 24, 25, 69):
        cache = model.new_cache(1)
        for start in range(0, 70, size):
            model.prefill(tokens[:, start : start + size], cache)
        assert (expected - model.denoise_logits(canvas, cache)).abs().max() < TOLERANCE, size


def test_prefill_cuts_itself_into_pieces(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any size of a piece, before, on and after the window's edge: the same logits."""
    tokens = torch.randint(0, 400, (1, 70), generator=torch.Generator().manual_seed(3))
    canvas = torch.arange(8)[None]
    expected = model.denoise_logits(canvas, model.prefill(tokens))
    expected_next = model.next_token_logits(tokens, model.new_cache(1))
    for size in (1, 7, 23, 24, 25, 69, 70):
        monkeypatch.setattr(model, "prefill_tokens", size)
        cache = model.prefill(tokens)
        assert cache.length == 70
        assert (expected - model.denoise_logits(canvas, cache)).abs().max() < TOLERANCE, size
        actual = model.next_token_logits(tokens, model.new_cache(1))
        assert (expected_next - actual).abs().max() < TOLERANCE, size


def test_a_broken_prefill_keeps_the_pieces_that_are_done(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try goes on where the last whole piece ended."""
    monkeypatch.setattr(model, "prefill_tokens", 10)
    cache = PrefixCache(model)
    tokens = [index % 400 for index in range(40)]
    with monkeypatch.context() as patch:
        attend, calls = model.layers[1].self_attn.attend, iter(range(100))

        def fail_late(*arguments: object) -> torch.Tensor:
            if next(calls) == 2:
                raise MemoryError
            return attend(*arguments)

        patch.setattr(model.layers[1].self_attn, "attend", fail_late)
        with pytest.raises(MemoryError):
            cache.encode(tokens)
    assert cache.encode(tokens)[1] == 20
    difference = (_logits(model, tokens, None) - _logits(model, tokens, cache)).abs().max()
    assert difference < TOLERANCE


@pytest.fixture
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 32 tokens before a window of 24, and for pieces of 16."""
    monkeypatch.setattr(cache_module, "SLACK_TOKENS", 32)
    monkeypatch.setattr(cache_module, "_GROWTH_TOKENS", 1)
    monkeypatch.setattr(cache_module, "sliding_capacity", lambda config: 23 + 32 + 16)


@pytest.mark.usefixtures("little_slack")
def test_a_backspace_costs_nothing_beyond_the_window(model: DiffusionGemma) -> None:
    """Far behind the window, what was deleted and typed anew is all that is encoded."""
    rng = random.Random(1)
    prefix = [rng.randrange(400) for _ in range(300)]
    cache = PrefixCache(model)
    for length in range(0, 300, 12):  # as it is typed
        cache.encode(prefix[: length + 12])
    assert cache.encode(prefix)[1] == 300
    for deleted in (1, 5, 31):
        prefix = prefix[:-deleted] + [rng.randrange(400) for _ in range(3)]
        assert cache.encode(prefix)[1] == len(prefix) - 3
        difference = (_logits(model, prefix, None) - _logits(model, prefix, cache)).abs().max()
        assert difference < TOLERANCE, deleted
    held = [keys.shape[2] for keys in cache.encode(prefix)[0]._keys]
    assert held[0] == held[1] <= 71, "a sliding layer holds its window and the slack"
    assert held[2] >= 300


@pytest.mark.usefixtures("little_slack")
def test_typing_and_jumping_far_behind_the_window(model: DiffusionGemma) -> None:
    """Whatever was dropped, every prompt gives what a fresh encoding gives."""
    rng = random.Random(2)
    cache = PrefixCache(model)
    prefix = [rng.randrange(400) for _ in range(200)]
    kept = []
    for _ in range(60):
        keep = len(prefix) - rng.choice([0, 1, 2, 8, 20, 33, 40, 150])
        prefix = prefix[: max(1, keep)] + [rng.randrange(400) for _ in range(rng.randrange(1, 40))]
        prefix = prefix[:300]
        difference = (_logits(model, prefix, None) - _logits(model, prefix, cache)).abs().max()
        assert difference < TOLERANCE
        again = cache.encode(prefix)[0]
        kept.append(again.reusable(len(prefix) - 30) > 0)
        following = model.continuation_logits(torch.tensor([prefix[-1:]]), again, len(prefix) - 1)
        expected = model.next_token_logits(torch.tensor([prefix]), model.new_cache(1))
        assert (expected - following[:, -1]).abs().max() < TOLERANCE
    assert len(set(kept)) == 2, "both what is kept and what is dropped was tried"


def test_denoising_never_writes_the_cache(model: DiffusionGemma) -> None:
    """The same cache gives bit-equal logits before and after other canvases read it."""
    cache = model.prefill(torch.arange(40)[None])
    canvas = torch.arange(16)[None]
    before = model.denoise_logits(canvas, cache)
    for seed in range(3):
        noise = torch.randint(0, 400, (2, 16), generator=torch.Generator().manual_seed(seed))
        model.denoise_logits(noise, cache, torch.randn(2, 16, 400))
    assert torch.equal(before, model.denoise_logits(canvas, cache))
    assert cache.length == 40


def test_row_in_a_batch_equals_row_alone(model: DiffusionGemma) -> None:
    """Canvases of one batch do not see each other."""
    cache = model.prefill(torch.arange(40)[None])
    canvases = torch.randint(0, 400, (3, 16), generator=torch.Generator().manual_seed(4))
    together = model.denoise_logits(canvases, cache)
    for row in range(3):
        alone = model.denoise_logits(canvases[row : row + 1], cache)
        assert (alone[0] - together[row]).abs().max() < TOLERANCE


def test_too_long_a_prefix_is_refused(model: DiffusionGemma) -> None:
    """The error names the length and the limit."""
    with pytest.raises(ContextTooLong, match=r"1025 tokens.*1024"):
        model.prefill(torch.zeros(1, 1025, dtype=torch.int64))


@pytest.mark.parametrize("token_ids", [[[]], [[400]], [[-1]]])
def test_bad_token_ids_are_refused(model: DiffusionGemma, token_ids: list[list[int]]) -> None:
    """No id outside the vocabulary, no empty prompt, reaches the embedding."""
    with pytest.raises(RequestError, match="token ids"):
        model.prefill(torch.tensor(token_ids, dtype=torch.int64))
