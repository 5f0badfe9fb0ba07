"""Many clients, one model: each has its own cached prompt, all within a plan of memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dgemma_engine import Decoder
from dgemma_engine.cache import PrefixCaches
from dgemma_engine.infill import DiffusionEngine, build_engine

from .tiny import build_model, sample_request, save_checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder: Path = tmp_path_factory.mktemp("tiny")
    return build_engine(str(save_checkpoint(folder / "model")), "cpu", "float32")


def test_clients_do_not_disturb_each_other(engine: DiffusionEngine) -> None:
    """Two that take turns with different texts each find their own prompt, and the same fills."""
    one = sample_request()
    other = sample_request(prefix="class Point:\n    def __init__(self, x, y):\n        self.x = ")
    expected = [engine.fill(one, client="alone").text, engine.fill(other, client="alone 2").text]
    for client, request in (("one", one), ("other", other)) * 2:
        result = engine.fill(request, client=client)
        assert result.text == expected[request is other]
    again = engine.fill(dataclasses.replace(one, seed=3), client="one")
    assert again.num_cached_tokens == again.num_context_tokens
    assert engine.fill(one).num_cached_tokens == 0  # nobody's client


@pytest.mark.parametrize("decoder", [Decoder.DIFFUSION, Decoder.LEFT_TO_RIGHT])
def test_what_was_encoded_ahead_is_found(engine: DiffusionEngine, decoder: Decoder) -> None:
    """All of the prompt; the fill is the same."""
    request = dataclasses.replace(sample_request(), decoder=decoder)
    cold, warm = f"cold {decoder.value}", f"warm {decoder.value}"
    expected = engine.fill(request, client=cold)
    assert engine.encode(request, client=warm) == expected.num_context_tokens
    assert engine.encode(request, client=warm) == 0
    result = engine.fill(request, client=warm)
    assert result.num_cached_tokens == result.num_context_tokens
    assert result.text == expected.text
    assert result.token_ids == expected.token_ids


def test_who_leaves_frees_the_cache(engine: DiffusionEngine) -> None:
    """Its next prompt is encoded anew."""
    engine.fill(sample_request(), client="guest")
    held = engine.caches.num_bytes
    engine.forget("guest")
    assert engine.caches.num_bytes < held
    assert "guest" not in engine.caches.clients
    assert engine.fill(sample_request(), client="guest").num_cached_tokens == 0


def test_the_plan_of_memory_holds() -> None:
    """The one that was not used for longest goes; the one in use stays whatever it holds."""
    model = build_model()
    caches = PrefixCaches(model)
    caches.of("a").prompt.encode(range(20))
    size = caches.num_bytes
    assert size > 0
    caches.max_bytes = 2 * size
    for client in "bcab":
        caches.of(client).judged.encode(range(20))
        caches.trim()
        assert caches.num_bytes <= 2 * size
    assert caches.clients == ("a", "b")
    caches.max_bytes = 1
    caches.of("c").prompt.encode(range(20))
    caches.trim()
    assert caches.clients == ("c",)


def test_as_many_clients_as_were_planned() -> None:
    """Those that hold nothing are counted too."""
    caches = PrefixCaches(build_model(), max_clients=2)
    for client in "abc":
        caches.of(client)
        caches.trim()
    assert caches.clients == ("b", "c")
