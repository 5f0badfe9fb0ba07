"""Published quantised forms load as they are, and mean what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgemma_engine import CheckpointError, load_model
from dgemma_engine.layers import held_weights
from dgemma_engine.model import DiffusionGemma

from . import quantised
from .quantised import Draw, save_quantised

COMPRESSED = {"config.json": {"quantization_config": {"quant_method": "compressed-tensors"}}}
BLOCKS = {
    "config.json": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
}
MODELOPT = {"config.json": {"quantization_config": {"quant_method": "modelopt"}}}
MODELOPT_BESIDE = {
    "hf_quant_config.json": {
        "producer": {"name": "modelopt", "version": "0.45.0"},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16},
    }
}


def experts(name: str) -> bool:
    return ".experts." in name


def experts_and_mlp(name: str) -> bool:
    return experts(name) or ".mlp." in name


def all_linears(name: str) -> bool:
    return experts_and_mlp(name) or ".self_attn." in name


def logits(model: DiffusionGemma) -> Tensor:
    """Of a canvas behind a prefix, the second of two passes: every weight has its part in them."""
    cache = model.prefill(torch.arange(40)[None])
    canvas = torch.arange(16)[None] * 7
    return model.denoise_logits(canvas, cache, model.denoise_logits(canvas, cache) / 0.8)


def assert_same(model: DiffusionGemma, expected: DiffusionGemma) -> None:
    """The logits, but for rounding: plain weights may take another path than quantised ones."""
    torch.testing.assert_close(logits(model), logits(expected), rtol=0.0, atol=2e-5)


FORMS: dict[str, tuple[Draw, Callable[[str], bool], dict[str, Any], set[str]]] = {
    "fp8 dynamic": (quantised.fp8_by_rows, all_linears, COMPRESSED, {"fp8"}),
    "fp8 modelopt": (quantised.fp8_by_matrix, all_linears, MODELOPT, {"fp8"}),
    "int8": (quantised.int8_by_rows, all_linears, COMPRESSED, {"int8"}),
    "nvfp4 modelopt": (quantised.nvfp4_of_modelopt, experts, MODELOPT, {"nvfp4"}),
    "nvfp4 beside": (quantised.nvfp4_of_modelopt, experts, MODELOPT_BESIDE, {"nvfp4"}),
    "nvfp4 compressed": (
        quantised.nvfp4_of_compressed_tensors,
        experts_and_mlp,
        COMPRESSED,
        {"nvfp4"},
    ),
    "int4": (quantised.int4_of_compressed_tensors, experts, COMPRESSED, {"int4"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_published_form_loads_as_it_is(form: str, tmp_path: Path) -> None:
    """The logits are those of the numbers that its codes stand for, held in its own bits."""
    draw, chosen, files, expected_formats = FORMS[form]
    expected = save_quantised(tmp_path, draw, chosen, dict(files))
    model = load_model(str(tmp_path), dtype="float32")
    held = list(held_weights(model))
    assert {weight.format.value for weight in held} == expected_formats
    assert len(held) == sum(
        chosen(name) for name, _ in expected.named_parameters() if "_proj" in name
    )
    assert model.num_parameters == expected.num_parameters
    # Dividing by a global scale and multiplying by its inverse differ in the last bit.
    assert (logits(model) - logits(expected)).abs().max() < 1e-4


def test_what_is_not_quantised_yet_can_be(tmp_path: Path) -> None:
    """Experts in NVFP4 stay so, attention and the dense MLP become what is asked for."""
    save_quantised(tmp_path, quantised.nvfp4_of_modelopt, experts, dict(MODELOPT))
    as_stored = load_model(str(tmp_path), dtype="float32")
    model = load_model(str(tmp_path), dtype="float32", quantization="int8")
    assert model.quantization == "int8 and nvfp4"
    for one, other in zip(model.layers, as_stored.layers, strict=True):
        assert torch.equal(one.experts.down_proj.data, other.experts.down_proj.data)
        assert one.self_attn.q_proj.weight.format.value == "int8"


def test_blocks_load_as_they_are(tmp_path: Path) -> None:
    """Where each part of an expert is made of whole blocks, nothing is rounded anew."""
    sizes = {"moe_intermediate_size": 128, "intermediate_size": 160}
    expected = save_quantised(tmp_path, quantised.fp8_by_blocks, all_linears, dict(BLOCKS), **sizes)
    model = load_model(str(tmp_path), dtype="float32")
    assert model.quantization == "fp8_block"
    assert_same(model, expected)


def test_blocks_that_straddle_a_stack_become_rows(tmp_path: Path) -> None:
    """Gate and up of 16 rows each share a block in the stack: rounded anew, by e4m3's half step."""
    expected = save_quantised(tmp_path, quantised.fp8_by_blocks, experts, dict(BLOCKS))
    model = load_model(str(tmp_path), dtype="float32")
    assert model.quantization == "fp8 and fp8_block"
    wanted = expected.layers[0].experts.gate_up_proj
    actual = model.layers[0].experts.gate_up_proj.dequantize(torch.float32)
    # e4m3 keeps 4 bits of a number: off by 1/16 at most, and below its normal range by a step.
    assert ((actual - wanted).abs() <= wanted.abs() / 16 + wanted.abs().amax() / 448 / 64).all()


def test_experts_under_the_encoders_name_load(tmp_path: Path) -> None:
    """A quantiser that walked the model found them there first."""
    expected = save_quantised(
        tmp_path,
        quantised.fp8_by_rows,
        experts,
        dict(COMPRESSED),
        prefix="model.encoder.language_model.",
    )
    assert_same(load_model(str(tmp_path), dtype="float32"), expected)


def test_experts_that_are_apart_and_not_quantised_load(tmp_path: Path) -> None:
    """Unstacked names need no quantisation."""
    expected = save_quantised(tmp_path, quantised.fp8_by_rows, lambda name: False, {})
    model = load_model(str(tmp_path), dtype="float32")
    assert model.quantization is None
    assert_same(model, expected)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


UP = "model.decoder.layers.1.experts.2.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{UP}.weight"), r"1 missing: .*layers\.1.*gate_up_proj \(expert 2, up\)"),
        (
            lambda t: t.update({f"{UP}.weight_scale": torch.ones(3)}),
            r"up_proj\.weight_scale \(model\.safetensors\) is \(3,\), expected \(16, 2\)",
        ),
        (lambda t: t.pop(f"{UP}.weight_scale"), r"weight_scale .* is None, expected \(16, 2\)"),
        (
            lambda t: t.update({f"{UP}.weight_zero_point": torch.zeros(16)}),
            "has a zero_point, and only symmetric",
        ),
        (
            lambda t: t.update({f"{UP}.weight": torch.zeros(16, 9, dtype=torch.uint8)}),
            r"is \(16, 18\), expected \(16, 32\)",
        ),
        (
            lambda t: t.update(
                {
                    f"{UP}.weight": torch.zeros(16, 4, dtype=torch.int32),
                    f"{UP}.weight_scale": torch.zeros(16, 2),
                }
            ),
            "has a scale for 16 columns, and only groups of 128 are read",
        ),
        (
            lambda t: t.update({f"{UP}.weight": torch.zeros(16, 32)}),
            "some experts are quantised and some are not",
        ),
    ],
)
def test_what_is_wrong_with_a_quantised_weight_is_told(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    """By the name it has in the file."""
    save_quantised(tmp_path, quantised.nvfp4_of_modelopt, experts, dict(MODELOPT))
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(tmp_path))


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_an_unknown_method_is_refused_with_the_remedy(method: str, tmp_path: Path) -> None:
    """What is read, and what to take instead."""
    save_quantised(tmp_path, quantised.fp8_by_rows, experts, {})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"'{method}' cannot be read.*modelopt.*take the"):
        load_model(str(tmp_path))
