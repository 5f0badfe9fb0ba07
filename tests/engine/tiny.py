"""Tiny random checkpoints of ours with tiny tokenizers: everything but sensible text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dgemma_engine import InfillRequest
from dgemma_engine.config import ModelConfig
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.special_tokens import SPECIAL_TOKENS
from dgemma_engine.stored_model import our_name_to_stored

SAMPLE = (
    "def add(left, right):\n    return left + right\n\n\nclass Point:\n"
    "    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n"
    "for index in range(10):\n    print(index, add(index, 1))\n"
)

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "sliding_window": 24,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 1024,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}

CHAT_TOKENS = ("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")


def build_tokenizer(special_tokens: tuple[str, ...], vocab_size: int = 400) -> Tokenizer:
    """A byte-level BPE that has seen only `SAMPLE`, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


def build_model(seed: int = 0, canvas_length: int = 64, **text_config: Any) -> DiffusionGemma:
    """A random model with every parameter away from its neutral value."""
    model = DiffusionGemma(ModelConfig.from_json(config_json(canvas_length, **text_config)))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            centre = 0.3 if "q_norm" in name else 1.0
            tensor.normal_(centre, 0.1, generator=generator)
        else:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def config_json(canvas_length: int = 64, **text_config: Any) -> dict[str, Any]:
    return {
        "model_type": "diffusion_gemma",
        "canvas_length": canvas_length,
        "dtype": "float32",
        "text_config": {**TEXT_CONFIG, **text_config},
    }


def save_checkpoint(
    folder: Path, special_tokens: tuple[str, ...] = SPECIAL_TOKENS, **text_config: Any
) -> Path:
    """Write a tiny checkpoint folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(**text_config)
    (folder / "config.json").write_text(json.dumps(config_json(**text_config)))
    (folder / "generation_config.json").write_text(json.dumps({"max_denoising_steps": 6}))
    tensors = {
        our_name_to_stored(name): tensor.contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    build_tokenizer(special_tokens).save(str(folder / "tokenizer.json"))
    return folder


def engine_of(folder: Path, **layout: object) -> DiffusionEngine:
    """An engine on a tiny checkpoint with this "layout" part of its `infill_config.json`."""
    save_checkpoint(folder)
    (folder / "infill_config.json").write_text(json.dumps({"layout": layout}), encoding="utf-8")
    return build_engine(str(folder))


def sample_request(**changes: object) -> InfillRequest:
    """A hole in the middle of a word of `SAMPLE`."""
    cursor = SAMPLE.index("left + right") + 2
    values: dict[str, object] = {
        "prefix": SAMPLE[:cursor],
        "suffix": SAMPLE[cursor + 8 :],
        "language_id": "python",
        "max_tokens": 20,
    }
    return InfillRequest(**{**values, **changes})  # type: ignore[arg-type]
