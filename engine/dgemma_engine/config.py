"""What a checkpoint says about itself: the model's dimensions and the sampler's defaults.

Reads the dictionaries of `config.json` and `generation_config.json`; knows no files and no tensors.
Read `model.py` next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .errors import ConfigError

MODEL_TYPE = "diffusion_gemma"


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer's attention. The layers of one model differ in nothing else.

    Attributes:
        is_sliding: encoder tokens see the last `sliding_window` tokens; otherwise all before them.
        head_dim: K, even.
        num_key_value_heads: G.
        rope_theta: base of the rotary frequencies.
        rotary_fraction: share of the channel pairs that rotate, > 0 and <= 1.
        value_from_key: values are the raw key projection; the layer has no v_proj.
    """

    is_sliding: bool
    head_dim: int
    num_key_value_heads: int
    rope_theta: float
    rotary_fraction: float
    value_from_key: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The dimensions of a DiffusionGemma text model. Letters are those of ARCHITECTURE.md.

    Raises:
        ConfigError: at construction, naming the field, the value and what is allowed.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # of the dense MLP and of self-conditioning
    num_attention_heads: int  # H
    layers: tuple[LayerConfig, ...]
    sliding_window: int  # encoder query i sees j with 0 <= i - j < sliding_window
    num_experts: int  # E
    top_k_experts: int  # A
    moe_intermediate_size: int  # F
    max_position_embeddings: int
    canvas_length: int
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    dtype: str = "float32"  # of the stored weights

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_experts",
            "top_k_experts",
            "moe_intermediate_size",
            "max_position_embeddings",
            "canvas_length",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.layers:
            raise ConfigError("the model has no layers (num_hidden_layers is 0)")
        if self.sliding_window < 2:
            raise ConfigError(f"sliding_window must be at least 2, got {self.sliding_window}")
        if self.top_k_experts > self.num_experts:
            raise ConfigError(
                f"top_k_experts is {self.top_k_experts}, more than num_experts {self.num_experts}"
            )
        for index, layer in enumerate(self.layers):
            if layer.head_dim < 2 or layer.head_dim % 2:
                raise ConfigError(f"layer {index}: head_dim must be even, got {layer.head_dim}")
            groups = layer.num_key_value_heads
            if groups < 1 or self.num_attention_heads % groups:
                raise ConfigError(
                    f"layer {index}: num_attention_heads {self.num_attention_heads} "
                    f"cannot be shared among num_key_value_heads {groups}"
                )
            if not 0.0 < layer.rotary_fraction <= 1.0:
                raise ConfigError(
                    f"layer {index}: partial_rotary_factor must be in (0, 1], "
                    f"got {layer.rotary_fraction}"
                )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read the dictionary of a `config.json` in the Hugging Face layout.

        Both spellings of the full-attention layers' sizes are read: `global_head_dim` with
        `num_global_key_value_heads` (Google's file) and `per_layer_config` (transformers 5.23).

        Raises:
            ConfigError: another architecture, a missing key, or a variant this engine does not run.
        """
        model_type = config.get("model_type")
        if model_type != MODEL_TYPE:
            raise ConfigError(
                f"unsupported architecture: model_type is {model_type!r}, "
                f"this engine runs {MODEL_TYPE!r}"
            )
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise ConfigError("config.json has no text_config")
        _refuse_unsupported_variants(text)
        try:
            return cls(
                vocab_size=int(text["vocab_size"]),
                hidden_size=int(text["hidden_size"]),
                intermediate_size=int(text["intermediate_size"]),
                num_attention_heads=int(text["num_attention_heads"]),
                layers=_read_layers(text),
                sliding_window=int(text["sliding_window"]),
                num_experts=int(text["num_experts"]),
                top_k_experts=int(text["top_k_experts"]),
                moe_intermediate_size=int(text["moe_intermediate_size"]),
                max_position_embeddings=int(text["max_position_embeddings"]),
                canvas_length=int(config.get("canvas_length", 256)),
                rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
                final_logit_softcapping=float(text.get("final_logit_softcapping", 30.0)),
                dtype=str(text.get("dtype") or config.get("dtype") or "float32"),
            )
        except KeyError as error:
            raise ConfigError(f"config.json: text_config has no {error.args[0]!r}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.json: a value has the wrong type ({error})") from error


# Keys whose other values mean a different computation: (key, the values this engine runs).
_SUPPORTED_VALUES: dict[str, tuple[object, ...]] = {
    "hidden_activation": (None, "gelu_pytorch_tanh"),
    "attention_bias": (None, False),
    "use_bidirectional_attention": (None, "vision"),
    "tie_word_embeddings": (None, True),
    "enable_moe_block": (None, True),
    "attention_k_eq_v": (None, True),
    "num_kv_shared_layers": (None, 0),
}


def _refuse_unsupported_variants(text: Mapping[str, Any]) -> None:
    for key, values in _SUPPORTED_VALUES.items():
        if text.get(key) not in values:
            raise ConfigError(
                f"config.json: {key} is {text[key]!r}; this engine runs only {values[-1]!r}"
            )


def _read_layers(text: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    num_layers = int(text["num_hidden_layers"])
    layer_types = text.get("layer_types") or [
        "full_attention" if (index + 1) % 6 == 0 else "sliding_attention"
        for index in range(num_layers)
    ]
    if len(layer_types) != num_layers:
        raise ConfigError(
            f"config.json: layer_types names {len(layer_types)} layers, "
            f"num_hidden_layers is {num_layers}"
        )
    per_layer: Mapping[str, Any] = text.get("per_layer_config") or {}
    rope: Mapping[str, Any] = text.get("rope_parameters") or {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1_000_000.0,
        },
    }
    layers = []
    for index, layer_type in enumerate(layer_types):
        if layer_type not in ("sliding_attention", "full_attention"):
            raise ConfigError(f"config.json: layer {index} has unknown type {layer_type!r}")
        is_sliding = layer_type == "sliding_attention"
        head_dim = int(text["head_dim"])
        groups = int(text["num_key_value_heads"])
        if not is_sliding:
            head_dim = int(text.get("global_head_dim") or head_dim)
            groups = int(text.get("num_global_key_value_heads") or groups)
        override = per_layer.get(str(index), {})
        rotary_fraction = _read_rotary_fraction(rope[layer_type])
        layers.append(
            LayerConfig(
                is_sliding=is_sliding,
                head_dim=int(override.get("head_dim", head_dim)),
                num_key_value_heads=int(override.get("num_key_value_heads", groups)),
                rope_theta=float(rope[layer_type]["rope_theta"]),
                rotary_fraction=rotary_fraction,
                value_from_key=not is_sliding,
            )
        )
    return tuple(layers)


def _read_rotary_fraction(rope: Mapping[str, Any]) -> float:
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default":
        return 1.0
    if rope_type == "proportional":
        return float(rope.get("partial_rotary_factor", 1.0))
    raise ConfigError(
        f"config.json: rope_type is {rope_type!r}; this engine runs 'default' and 'proportional'"
    )


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How a canvas is denoised. The defaults are the published checkpoint's.

    Attributes:
        max_denoising_steps: passes at most.
        t_max: temperature of the first step.
        t_min: temperature towards which the later steps fall; the last one stays a step above it.
        entropy_bound: nats; positions are accepted while their joint entropy stays within it.
        confidence_threshold: nats; stop when the mean entropy of the hole is below it ...
        stability_threshold: ... and the argmax canvas has not changed for this many steps.
        candidates: what is accepted at a position: a "sample", or the "argmax" (small models).
        min_accept: accept at least the share of the hole that the schedule asks for by now, even
            beyond the entropy bound. A small model is never certain enough without it.
        stable_text_passes: stop when the text up to its end mark has not changed for this many
            passes; 0 turns it off. The confidence threshold is out of a small model's reach.
        eos_token_ids: end-of-text tokens of `generate`.
        pad_token_id: what follows the end in `generate`.

    Raises:
        ConfigError: at construction, naming the field, the value and what is allowed.
    """

    max_denoising_steps: int = 48
    t_max: float = 0.8
    t_min: float = 0.4
    entropy_bound: float = 0.1
    confidence_threshold: float = 0.005
    stability_threshold: int = 1
    candidates: Literal["sample", "argmax"] = "sample"
    min_accept: bool = False
    stable_text_passes: int = 0
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0

    def with_steps(self, most: int | None) -> SamplerConfig:
        """The same with so many denoising steps; None leaves them as they are."""
        return self if most is None else replace(self, max_denoising_steps=most)

    def __post_init__(self) -> None:
        if self.max_denoising_steps < 1:
            raise ConfigError(
                f"max_denoising_steps must be at least 1, got {self.max_denoising_steps}"
            )
        if not 0.0 <= self.t_min < self.t_max:
            raise ConfigError(
                f"temperatures must satisfy 0 <= t_min < t_max, got {self.t_min} and {self.t_max}"
            )
        for name in ("entropy_bound", "confidence_threshold"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("stability_threshold", "stable_text_passes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.candidates not in ("sample", "argmax"):
            raise ConfigError(f"candidates must be 'sample' or 'argmax', got {self.candidates!r}")

    @classmethod
    def from_json(
        cls, generation_config: Mapping[str, Any], ours: Mapping[str, Any] | None = None
    ) -> SamplerConfig:
        """Read a `generation_config.json`, then the "sampler" part of an `infill_config.json`.

        Raises:
            ConfigError: a value of the wrong type or out of range, or an unknown key in `ours`.
        """
        names = ("max_denoising_steps", "t_max", "t_min", "confidence_threshold")
        values: dict[str, Any] = {
            name: generation_config[name]
            for name in (*names, "stability_threshold", "pad_token_id")
            if generation_config.get(name) is not None
        }
        entropy_bound = (generation_config.get("sampler_config") or {}).get("entropy_bound")
        if entropy_bound is not None:
            values["entropy_bound"] = entropy_bound
        eos = generation_config.get("eos_token_id")
        if eos is not None:
            values["eos_token_ids"] = tuple(eos) if isinstance(eos, list) else (eos,)
        values.update(ours or {})
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"sampler settings of the checkpoint: {error}") from error
