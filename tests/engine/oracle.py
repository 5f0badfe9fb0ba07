"""Random tiny checkpoints written by transformers, the oracle that ours are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

SLIDING, FULL = "sliding_attention", "full_attention"

BASE_TEXT: dict[str, Any] = {
    "model_type": "diffusion_gemma_text",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": 12,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 512,
    "use_bidirectional_attention": "vision",
    "layer_types": [SLIDING, SLIDING, FULL, FULL],
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    },
}

# The text path needs no vision tower, but transformers always builds one: the smallest it takes.
TINY_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "patch_size": 4,
    "position_embedding_size": 64,
    "pooling_kernel_size": 2,
    "default_output_length": 4,
    "use_clipped_linears": False,
    "standardize": True,
}


def save_oracle(
    folder: Path, seed: int = 0, canvas_length: int = 16, **text_config: Any
) -> DiffusionGemmaForBlockDiffusion:
    """Build a random model, every parameter away from its neutral value, and save it."""
    torch.manual_seed(seed)
    config = DiffusionGemmaConfig(
        text_config={**BASE_TEXT, **text_config},
        vision_config=TINY_VISION,
        canvas_length=canvas_length,
        image_token_id=250,
        boi_token_id=251,
        eoi_token_id=252,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):  # carries the attention's scale: 1 saturates softmax
                parameter.normal_(0.3, 0.1)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            elif "vision" not in name:
                is_embedding = "embed_tokens" in name
                parameter.normal_(0.0, 0.3 if is_embedding else parameter.shape[-1] ** -0.5)
        for decoder, encoder in zip(
            model.model.decoder.layers, model.model.encoder.language_model.layers, strict=True
        ):
            decoder.layer_scalar.uniform_(0.5, 1.2)
            encoder.layer_scalar.uniform_(0.5, 1.2)
    model.save_pretrained(folder)
    return model
