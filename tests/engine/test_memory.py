"""Memory by arithmetic: the 26B's numbers, worked out by hand, and what an error proposes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dgemma_engine import ConfigError
from dgemma_engine.config import ModelConfig
from dgemma_engine.known import KNOWN, published_config
from dgemma_engine.memory import (
    HELD_AS,
    PREFILL_TOKENS,
    SLACK_TOKENS,
    does_not_fit,
    held_bytes,
    longest_context,
    memory_plan,
    num_parameters,
    prefill_tokens,
    sliding_capacity,
    weight_bytes,
    what_fits,
)
from dgemma_engine.model import DiffusionGemma

from .tiny import build_model, config_json

GB = 1e9


@pytest.fixture(scope="module")
def published() -> ModelConfig:
    return published_config()


def test_parameters_are_counted_to_the_last(published: ModelConfig) -> None:
    """The text stack, self-conditioning and the encoder's 30 scalars, as the published files have
    them; and a tiny model's by asking it."""
    assert num_parameters(published) == 25_233_141_790 + 17_844_992 + 30
    tiny = ModelConfig.from_json(config_json())
    assert num_parameters(tiny) == sum(t.numel() for t in build_model().state_dict().values())


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (None, 50.5),
        ("fp8", 26.0),
        # Experts at 4 bits and an e4m3 scale for 16; the rest in 8 bits, the embedding in bfloat16.
        ("nvfp4", 16.0),
        # Experts 22,838 M / 2 and a 2-byte scale for 128; 1,645 M in 8 bits; 778 M in 16.
        ("int4", 11.419 + 0.357 + 1.645 + 1.556),
    ],
)
def test_weights_of_the_26b(
    published: ModelConfig, quantization: str | None, expected: float
) -> None:
    """Within 1 percent of what was worked out by hand; the scales of rows are the difference."""
    assert weight_bytes(published, quantization) / GB == pytest.approx(expected, rel=0.01)


def test_cache_of_the_26b(published: ModelConfig) -> None:
    """204.8 kB a token in the sliding layers up to their capacity, 20.48 kB in the full ones."""
    capacity = 1023 + SLACK_TOKENS + PREFILL_TOKENS
    assert sliding_capacity(published) == capacity
    assert memory_plan(published, None, 1000).cache_bytes == 1000 * (204_800 + 20_480)
    assert memory_plan(published, None, 16_384).cache_bytes == (
        capacity * 204_800 + 16_384 * 20_480
    )


def test_four_bits_run_in_18_gb(published: ModelConfig) -> None:
    """With a context of 4,096 tokens, everything counted."""
    assert memory_plan(published, "int4", 4096).total_bytes < 18 * GB


def test_unknown_names_are_refused(published: ModelConfig) -> None:
    """The error lists what there is."""
    with pytest.raises(ConfigError, match="one of fp8, int8, int4, nvfp4 or none, got 'int3'"):
        memory_plan(published, "int3", 1024)


def test_an_error_says_what_would_fit(published: ModelConfig) -> None:
    """On 24 GB no 8 bits, but 4; and a context that fits is longer where more is free."""
    fitting = dict(what_fits(published, int(23.5 * GB)))
    assert set(fitting) == {"int4", "nvfp4"}
    assert fitting["int4"] >= 8192
    assert (
        longest_context(published, weight_bytes(published, "int4"), int(40 * GB)) > fitting["int4"]
    )
    plan = memory_plan(published, "fp8", 4096)
    text = does_not_fit(published, plan, int(23.5 * GB), "cuda:0")
    assert "the model in fp8 needs 28.7 GB for" in text
    assert "4,096 tokens of context" in text
    assert "cuda:0 has 23.5 GB free" in text
    assert f"--quantization int4 with {fitting['int4']:,} tokens" in text
    assert "no form of it fits, int4 needs 1" in does_not_fit(
        published, plan, int(8 * GB), "cuda:0"
    )


def test_long_contexts_are_encoded_in_smaller_pieces(published: ModelConfig) -> None:
    """So that the work's memory stays bounded up to the longest context."""
    assert prefill_tokens(1) == prefill_tokens(4096) == PREFILL_TOKENS
    assert prefill_tokens(262_144) == 128
    longest = memory_plan(published, None, 262_144)
    # 3.2 GB of scores, 8.6 of keys and values for every query head, 1.1 of the rest.
    assert longest.work_bytes / GB == pytest.approx(12.9, rel=0.02)
    # The published figure: 5 GiB of keys and values in the full layers at 256K.
    assert longest.cache_bytes == 262_144 * 20_480 + sliding_capacity(published) * 204_800


def test_known_checkpoints_take_what_they_hold(published: ModelConfig) -> None:
    """In memory each takes about what its files do, less the vision tower's 573 M numbers."""
    for known in KNOWN:
        held = held_bytes(published, known.forms) + 2 * 572_794_416
        assert held == pytest.approx(known.disk_bytes, rel=0.01), known.repository
        assert known.download_command.startswith(f"hf download {known.repository} --local-dir ")


def test_the_plan_of_a_tiny_model_is_what_it_takes() -> None:
    """Bytes of a cache that was filled, in bfloat16, rounded to the steps in which it grows."""
    config = dataclasses.replace(build_model().config, max_position_embeddings=4096)
    model = DiffusionGemma(config).bfloat16()
    cache = model.prefill(torch.zeros(1, 256, dtype=torch.int64))
    held = sum(t.nbytes for part in (cache._keys, cache._values) for t in part)
    assert held == memory_plan(config, None, 256).cache_bytes
    assert set(HELD_AS) == {"fp8", "int8", "int4", "nvfp4"}
