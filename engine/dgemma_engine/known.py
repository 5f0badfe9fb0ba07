"""The checkpoints that are known by name: what they are, how large, and how a user gets one.

Written down from the published files; nothing here opens a connection or reads a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import MODEL_TYPE, ModelConfig

# The config.json of google/diffusiongemma-26B-A4B-it, without its vision tower.
PUBLISHED_CONFIG: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "canvas_length": 256,
    "dtype": "bfloat16",
    "text_config": {
        "vocab_size": 262_144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "sliding_window": 1024,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "max_position_embeddings": 262_144,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": "vision",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
    },
}


def published_config() -> ModelConfig:
    """The dimensions of the 26B."""
    return ModelConfig.from_json(PUBLISHED_CONFIG)


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """A published form of the 26B.

    Attributes:
        repository: its name on the Hugging Face hub.
        holds: how its matrices are stored, in words.
        disk_bytes: of its files.
        is_measured: the size is its index's; else it is reckoned from what it holds.
        forms: how each part of it is held in memory, for `held_bytes`; bfloat16 where none is said.
    """

    repository: str
    holds: str
    disk_bytes: int
    is_measured: bool
    forms: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of the folder that `download_command` makes."""
        return self.repository.rpartition("/")[2]

    @property
    def download_command(self) -> str:
        return f"hf download {self.repository} --local-dir {self.folder}"


_BASE = "diffusiongemma-26B-A4B-it"
KNOWN = (
    KnownCheckpoint(f"google/{_BASE}", "bfloat16", 51_647_562_456, is_measured=True),
    KnownCheckpoint(
        f"RedHatAI/{_BASE}-FP8-dynamic",
        "FP8: experts, attention, dense MLPs",
        27_200_000_000,
        is_measured=False,
        forms={"experts": "fp8", "attention": "fp8", "mlp": "fp8"},
    ),
    KnownCheckpoint(
        f"nvidia/{_BASE}-NVFP4",
        "NVFP4: experts",
        18_900_000_000,
        is_measured=True,
        forms={"experts": "nvfp4"},
    ),
    KnownCheckpoint(
        f"RedHatAI/{_BASE}-NVFP4",
        "NVFP4: experts, dense MLPs",
        18_000_000_000,
        is_measured=False,
        forms={"experts": "nvfp4", "mlp": "nvfp4"},
    ),
)
