"""Weights in 8 bits: how far they are off, and that they load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dgemma_engine import CheckpointError, load_model
from dgemma_engine.quantization import (
    QUANT_METHOD,
    dequantize_rows,
    is_quantizable,
    quantize_rows,
    save_int8,
)

from .tiny import save_checkpoint


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(1, 1), (3, 7), (2, 5, 16)]),
    size=st.floats(-30.0, 20.0),
)
def test_weights_are_off_by_half_a_step(seed: int, shape: tuple[int, ...], size: float) -> None:
    """A step is the row's largest weight / 127, whatever its size."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**size
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8
    assert scale.shape == weight.shape[:-1]
    back = dequantize_rows(quantized, scale, torch.float32)
    assert ((back - weight).abs() <= 0.501 * scale[..., None]).all()
    again, _ = quantize_rows(back)
    assert torch.equal(again, quantized), "what was rounded is rounded to itself"


def test_rows_of_zeros_stay_zeros() -> None:
    """No division by zero, and no NaN."""
    quantized, scale = quantize_rows(torch.zeros(2, 4))
    assert not dequantize_rows(quantized, scale, torch.bfloat16).any()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint, its weights in 8 bits and in several files."""
    saved = save_checkpoint(tmp_path / "tiny")
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").rename(tmp_path / "plain.safetensors")
    save_int8(tensors, saved, max_shard_bytes=8000)
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] = {"quant_method": QUANT_METHOD}
    (saved / "config.json").write_text(json.dumps(config))
    return saved


def test_quantised_checkpoints_load(folder: Path, tmp_path: Path) -> None:
    """Every tensor comes back, matrices nearly, the rest as bfloat16 keeps it."""
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    plain = load_file(tmp_path / "plain.safetensors")
    assert sum(path.stat().st_size for path in shards) < 0.5 * sum(t.nbytes for t in plain.values())
    model = load_model(str(folder), dtype="float32")
    expected = load_model(str(save_checkpoint(tmp_path / "again")), dtype="float32").state_dict()
    for name, actual in model.state_dict().items():
        if is_quantizable(name, actual):
            difference = (actual - expected[name]).abs().amax(dim=-1)
            assert (difference <= expected[name].abs().amax(dim=-1) / 250).all()
        else:
            assert torch.equal(actual, expected[name].bfloat16().float())


def test_a_weight_without_its_scales_is_reported(folder: Path) -> None:
    """Missing or misshapen scales are named, like any other problem of a checkpoint."""
    for path in folder.glob("model-*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith("q_proj.weight_scale")]:
            tensors[name] = torch.ones(3)
        save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"misshapen: .*q_proj\.weight_scale .* is \(3,\)"):
        load_model(str(folder))


def test_other_quantisations_are_refused_by_name(tmp_path: Path) -> None:
    """The error says which method it is and what to take instead."""
    saved = save_checkpoint(tmp_path)
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised by 'awq' cannot be read.*--quantization"):
        load_model(str(saved))
