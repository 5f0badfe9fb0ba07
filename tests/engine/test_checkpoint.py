"""Checkpoint folders: what loads, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma_engine import CheckpointError, ConfigError, EngineUnavailable, load_engine, load_model
from dgemma_engine.config import ModelConfig

from .tiny import build_model, config_json, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tiny")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors by name ("." written as "__"), or drop them."""
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_loads_what_was_saved(folder: Path) -> None:
    """Every parameter and buffer comes back."""
    expected = build_model().state_dict()
    actual = load_model(folder).state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_shards_load_like_a_single_file(folder: Path) -> None:
    """An index of two files gives the same model."""
    expected = load_model(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    actual = load_model(folder).state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not there: model-1\.safetensors"):
        load_model(folder)


def test_bfloat16_and_tied_and_vision_tensors_load(folder: Path) -> None:
    """Stored bf16 runs in float32 on a CPU; ties and the vision tower are skipped knowingly."""
    tensors = load_file(folder / "model.safetensors")
    stored = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    embedding = stored["model.decoder.embed_tokens.weight"]
    stored["lm_head.weight"] = embedding.clone()
    stored["model.encoder.language_model.embed_tokens.weight"] = embedding.clone()
    stored["model.encoder.vision_tower.std_bias"] = torch.zeros(3)
    stored["model.encoder.embed_vision.embedding_projection.weight"] = torch.zeros(3, 3)
    save_file(stored, folder / "model.safetensors")
    model = load_model(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.embed_tokens.weight, embedding.float())
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    """Missing, unexpected and misshapen tensors are named in one error, with their file."""
    edit_tensors(
        folder,
        model__decoder__norm__weight=None,
        model__decoder__surplus__weight=torch.zeros(2),
        model__decoder__layers__0__router__scale=torch.zeros(5),
    )
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "1 missing: model.decoder.norm.weight;" in message
    assert "1 unexpected: model.decoder.surplus.weight (model.safetensors)" in message
    assert "router.scale (model.safetensors) is (5,), expected (32,)" in message
    assert "\n" not in message


def test_truncated_file_is_named(folder: Path) -> None:
    """A download that broke off is told as such."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        load_model(folder)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    """A missing folder, an empty folder and one without weights are told apart."""
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "unsupported architecture: model_type is 'llama'"),
        ({"text_config": None}, "has no text_config"),
        ({"text_config": {"hidden_size": 8}}, "text_config has no 'vocab_size'"),
    ],
)
def test_other_architectures_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    """The error says what was found and what would run."""
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 cannot be shared among .* 3"),
        ({"top_k_experts": 9}, "top_k_experts is 9, more than num_experts 4"),
        ({"head_dim": 7}, "head_dim must be even, got 7"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"layer_types": ["linear"] * 3}, "unknown type 'linear'"),
        ({"vocab_size": "many"}, "wrong type"),
        ({"sliding_window": 0}, "sliding_window must be at least 2, got 0"),
    ],
)
def test_bad_dimensions_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each is told with the value that was found."""
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(config_json(**changes))


def test_both_spellings_of_the_full_layers_are_read() -> None:
    """Google's keys and the per-layer form of transformers mean the same."""
    google = config_json()
    transformers = config_json(
        global_head_dim=None,
        num_global_key_value_heads=None,
        per_layer_config={"2": {"head_dim": 16, "num_key_value_heads": 1}},
    )
    assert ModelConfig.from_json(google) == ModelConfig.from_json(transformers)
    assert ModelConfig.from_json(google).layers[2].head_dim == 16


def test_published_configuration_is_read() -> None:
    """The 26B's own numbers give its parameter count, to the last one."""
    from dgemma_engine.model import DiffusionGemma

    text = {
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
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": "vision",
    }
    with torch.device("meta"):
        model = DiffusionGemma(
            ModelConfig.from_json({"model_type": "diffusion_gemma", "text_config": text})
        )
    num_stored = sum(tensor.numel() for tensor in model.state_dict().values())
    # Text stack with 30 decoder scalars, self-conditioning, 30 encoder scalars.
    assert num_stored == 25_233_141_790 + 17_844_992 + 30


def test_device_and_dtype_that_are_not_there(folder: Path) -> None:
    """The error says what to use instead."""
    with pytest.raises(EngineUnavailable, match="use 'auto' or 'cpu'"):
        load_model(folder, device="nonsense")
    with pytest.raises(ConfigError, match="got 'int3'"):
        load_model(folder, dtype="int3")


def test_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    """More tokens than embeddings cannot be right."""
    edit_json(folder / "config.json", text_config={**config_json()["text_config"], "vocab_size": 9})
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_engine(str(folder))


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without torch gets one line that says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(EngineUnavailable, match="pip install 'torch"):
        load_engine()
