"""Our model, read by our loader, against transformers on random tiny checkpoints, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from dgemma_engine import load_model
from dgemma_engine.config import SamplerConfig

from .oracle import FULL, SLIDING, save_oracle

# Largest logit difference allowed, of logits around 10. Measured: below 2.2e-5 in every case here.
TOLERANCE = 1e-4

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "one_global_kv_head_of_same_size": {"global_head_dim": 16},
    "two_global_kv_heads": {"num_global_key_value_heads": 2, "global_head_dim": 24},
    "global_kv_heads_not_given": {"num_global_key_value_heads": None},
    "as_many_kv_heads_as_heads": {"num_key_value_heads": 4, "num_global_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1},
    "top_1_of_4_experts": {"num_experts": 4, "top_k_experts": 1},
    "all_of_3_experts": {"num_experts": 3, "top_k_experts": 3, "moe_intermediate_size": 8},
    "one_expert": {"num_experts": 1, "top_k_experts": 1},
    "window_of_5": {"sliding_window": 5},
    "window_beyond_the_prefix": {"sliding_window": 128},
    "full_layers_only": {"layer_types": [FULL] * 4},
    "full_layers_between": {
        "layer_types": [FULL, SLIDING, FULL, SLIDING, FULL],
        "num_hidden_layers": 5,
    },
    "other_sizes": {"hidden_size": 96, "intermediate_size": 40, "vocab_size": 300, "head_dim": 20},
    "softcap_of_5": {"final_logit_softcapping": 5.0},
    "epsilon_of_1e_3": {"rms_norm_eps": 1e-3},
    "everything_rotates": {
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 500.0},
            FULL: {
                "rope_type": "proportional",
                "partial_rotary_factor": 1.0,
                "rope_theta": 2_000.0,
            },
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    """Decoder logits over an encoded prefix agree, with and without self-conditioning."""
    oracle = save_oracle(tmp_path, **VARIANTS[variant])
    ours = load_model(tmp_path, dtype="float32")
    vocab_size = ours.config.vocab_size
    generator = torch.Generator().manual_seed(1)
    for prefix_length in (1, 8, 11, 12, 40):  # below, at and beyond the window of 12
        prefix = torch.randint(0, vocab_size, (2, prefix_length), generator=generator)
        canvas = torch.randint(0, vocab_size, (2, 16), generator=generator)
        with torch.no_grad():
            expected = oracle(input_ids=prefix, decoder_input_ids=canvas)
            conditioned = oracle(
                past_key_values=expected.past_key_values,
                decoder_input_ids=canvas,
                self_conditioning_logits=expected.logits / 0.7,
            )
            cache = ours.prefill(prefix)
            actual = ours.denoise_logits(canvas, cache)
            actual_conditioned = ours.denoise_logits(canvas, cache, expected.logits / 0.7)
        assert _distance(expected.logits, actual) < TOLERANCE, prefix_length
        assert _distance(conditioned.logits, actual_conditioned) < TOLERANCE, prefix_length
        # The test would notice: the two passes differ by far more than the tolerance.
        assert _distance(expected.logits, conditioned.logits) > 100 * TOLERANCE


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", [0, 7, 123])
def test_generate_equals_transformers_token_for_token(rows: int, seed: int, tmp_path: Path) -> None:
    """The same seed gives the same tokens over several canvases."""
    oracle = save_oracle(tmp_path, seed=seed)
    ours = load_model(tmp_path, dtype="float32")
    prompt = torch.randint(0, 256, (rows, 9), generator=torch.Generator().manual_seed(seed))
    expected = _generate(oracle, prompt, seed, max_new_tokens=48, max_denoising_steps=6)
    actual = ours.generate(prompt, 48, SamplerConfig(max_denoising_steps=6), seed=seed)
    assert actual.shape == (rows, 9 + 48)
    assert expected.tolist() == actual.tolist()


def test_generate_equals_transformers_when_rows_stop_early(tmp_path: Path) -> None:
    """Early stopping, end-of-text and padding happen at the same places in a batch."""
    # A softcap of 30 over a temperature near 0.05 makes a random model sure of itself.
    sampler = {
        "max_denoising_steps": 12,
        "t_max": 0.06,
        "t_min": 0.02,
        "confidence_threshold": 0.5,
        "stability_threshold": 1,
    }
    oracle = save_oracle(tmp_path, seed=3)
    ours = load_model(tmp_path, dtype="float32")
    prompt = torch.randint(0, 256, (4, 9), generator=torch.Generator().manual_seed(5))
    eos = list(range(0, 256, 40))
    expected = _generate(
        oracle, prompt, 11, max_new_tokens=64, eos_token_id=eos, pad_token_id=0, **sampler
    )
    config = SamplerConfig(eos_token_ids=tuple(eos), pad_token_id=0, **sampler)
    actual = ours.generate(prompt, 64, config, seed=11)
    assert expected.tolist() == actual.tolist()
    assert (actual == 0).sum() > 4, "the case does not exercise padding"


def _generate(
    oracle: DiffusionGemmaForBlockDiffusion, prompt: Tensor, seed: int, **kwargs: Any
) -> Tensor:
    torch.manual_seed(seed)
    return oracle.generate(prompt, return_dict_in_generate=False, **kwargs)


def _distance(expected: Tensor, actual: Tensor) -> float:
    return float((expected - actual).abs().max())
