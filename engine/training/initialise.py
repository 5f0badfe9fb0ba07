"""Random weights to start training from, and the configurations of our own models."""

from __future__ import annotations

from typing import Any

import torch

from dgemma_engine.model import DiffusionGemma
from dgemma_engine.special_tokens import BOS, EOS, PAD, SPECIAL_TOKENS

# Layers alternate two sliding to one full in "4m" and "16m", four to one in "33m".
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {  # for tests of the trainer
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "head_dim": 16,
        "num_experts": 2,
        "top_k_experts": 1,
        "moe_intermediate_size": 16,
        "layers": "sf",
        "sliding_window": 32,
        "max_position_embeddings": 512,
        "canvas_length": 64,
    },
    "4m": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_attention_heads": 3,
        "head_dim": 64,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "layers": "ssfssf",
        "sliding_window": 512,
        "max_position_embeddings": 4096,
        "canvas_length": 128,
    },
    "16m": {  # "4m" twice as wide
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 128,
        "layers": "ssfssf",
        "sliding_window": 512,
        "max_position_embeddings": 4096,
        "canvas_length": 128,
    },
}
_SIZES["33m"] = _SIZES["16m"] | {"num_experts": 8, "layers": "ssssfssssf"}
SIZES = tuple(_SIZES)


def build_config(size: str, vocab_size: int) -> dict[str, Any]:
    """The `config.json` of one of our sizes, in the Hugging Face layout."""
    values = dict(_SIZES[size])
    layers = values.pop("layers")
    canvas_length = values.pop("canvas_length")
    head_dim = values["head_dim"]
    text_config = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": vocab_size,
        "num_key_value_heads": 1,
        **values,
        "num_hidden_layers": len(layers),
        "layer_types": [
            "sliding_attention" if kind == "s" else "full_attention" for kind in layers
        ],
        "global_head_dim": head_dim,
        "num_global_key_value_heads": 1,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": canvas_length,
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "text_config": text_config,
        "vision_config": None,
    }


@torch.no_grad()
def initialise(model: DiffusionGemma, generator: torch.Generator) -> None:
    """Fill every parameter in place.

    Matrices: normal, 1 / sqrt(inputs). Query norms: 1 / sqrt(head size), since attention has no
    scale of its own and norms of 1 would give logits of up to the head size. Norms behind a
    sublayer: 1 / sqrt(sublayers), so that the residual stream ends near unit size.
    """
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            parameter.normal_(std=model.config.hidden_size**-0.5, generator=generator)
        elif parameter.ndim >= 2:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("q_norm.weight"):
            parameter.fill_(parameter.shape[0] ** -0.5)
        elif name.endswith(
            ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
        ):
            parameter.fill_((2 * len(model.layers)) ** -0.5)
        else:
            parameter.fill_(1.0)
