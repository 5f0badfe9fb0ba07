"""Quantising while loading: what is held in which form, what it means, and never all at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dgemma_engine import ConfigError, OutOfMemory, cache, checkpoint, load_engine, load_model
from dgemma_engine.checkpoint import form_of, load_checkpoint
from dgemma_engine.config import ModelConfig
from dgemma_engine.convert import quantize_checkpoint
from dgemma_engine.layers import held_weights
from dgemma_engine.machine import Memory
from dgemma_engine.memory import HELD_AS, memory_plan, weight_bytes
from dgemma_engine.process import EngineProcess
from dgemma_engine.stored_model import StoredModel
from dgemma_kernels.weights import QuantizedWeight

from .test_stored_weights import assert_same, logits
from .tiny import TEXT_CONFIG, build_model, config_json, sample_request, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.mark.parametrize("quantization", HELD_AS)
def test_weights_are_quantised_on_their_way(quantization: str, folder: Path) -> None:
    """Experts and dense matrices each in their form; the rest is untouched."""
    model = load_model(str(folder), dtype="float32", quantization=quantization)
    for_experts, for_dense = HELD_AS[quantization]
    for layer in model.layers:
        for stack in (layer.experts.gate_up_proj, layer.experts.down_proj):
            assert stack.format.value == for_experts
        assert layer.mlp.up_proj.weight.format.value == for_dense
        assert layer.self_attn.k_proj.weight.format.value == for_dense
        assert isinstance(layer.router.proj.weight, Tensor)
    assert isinstance(model.self_conditioning.up_proj.weight, Tensor)
    plain_model = build_model()
    assert torch.equal(model.embed_tokens.weight, plain_model.embed_tokens.weight)
    assert model.quantization == " and ".join(sorted({for_experts, for_dense}))


@pytest.mark.parametrize("quantization", HELD_AS)
def test_a_quantised_model_is_its_dequantised_twin(quantization: str, folder: Path) -> None:
    """Bits change nothing but the numbers they stand for."""
    model = load_model(str(folder), dtype="float32", quantization=quantization)
    twin = build_model()
    for name, module in twin.named_modules():
        own = model.get_submodule(name)
        for attribute in ("weight", "gate_up_proj", "down_proj"):
            held = getattr(own, attribute, None)
            if isinstance(held, QuantizedWeight):
                getattr(module, attribute).copy_(held.dequantize(torch.float32))
    assert_same(model, twin)
    assert (logits(model) - logits(build_model())).abs().max() > 1e-3


@pytest.mark.parametrize("quantization", HELD_AS)
def test_kernels_get_their_own_order(quantization: str, folder: Path, tmp_path: Path) -> None:
    """Made matrix by matrix on the way, from a plain checkpoint and from one that is quantised."""
    quantize_checkpoint(folder, tmp_path / "out", quantization, "cpu")
    config = ModelConfig.from_json(config_json())
    for source in (folder, tmp_path / "out"):
        stored = StoredModel(source, config)
        for name in ("layers.0.experts.gate_up_proj", "layers.2.mlp.down_proj.weight"):
            form = form_of(name, HELD_AS[quantization])
            expected = stored.read(name, torch.device("cpu"), form)
            actual = stored.read(name, torch.device("cpu"), form, prepared=True)
            assert isinstance(expected, QuantizedWeight)
            assert isinstance(actual, QuantizedWeight)
            whole = expected.prepared_for_kernel()
            assert actual.split == whole.split
            assert torch.equal(actual.data.view(torch.uint8), whole.data.view(torch.uint8))
            numbers = actual.dequantize(torch.float32)
            assert torch.equal(numbers, expected.dequantize(torch.float32))


@pytest.mark.parametrize("quantization", [None, *HELD_AS])
def test_the_memory_plan_is_what_is_held(quantization: str | None, folder: Path) -> None:
    """To the byte, in bfloat16."""
    model = load_model(str(folder), dtype="bfloat16", quantization=quantization)
    held = sum(weight.nbytes for weight in held_weights(model))
    held += sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held == weight_bytes(model.config, quantization)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the CPU's tensors, made while this is active and alive still; the most there were.

    A stored tensor counts whole while any part of it is looked into: it is mapped, not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.live = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@contextmanager
def live_bytes() -> Iterator[_LiveBytes]:
    gc.collect()
    with _LiveBytes() as counted:
        yield counted


def test_the_whole_model_is_never_there_at_once(tmp_path: Path) -> None:
    """Beside what is kept, a load has two stacks mapped, of 18, and works on one matrix."""
    sizes = {
        "num_experts": 32,
        "moe_intermediate_size": 64,
        "hidden_size": 64,
        "num_hidden_layers": 9,
        "layer_types": TEXT_CONFIG["layer_types"] * 3,
    }
    folder = save_checkpoint(tmp_path / "wide", **sizes)
    with live_bytes() as plainly:
        stored = load_model(str(folder), dtype="float32")
    whole = sum(tensor.nbytes for tensor in stored.state_dict().values())
    assert plainly.most >= whole, "what counts bytes sees a load"
    del stored
    with live_bytes() as counted:
        model = load_model(str(folder), dtype="float32", quantization="nvfp4")
    kept = sum(weight.nbytes for weight in held_weights(model))
    kept += sum(tensor.nbytes for tensor in model.state_dict().values())
    matrix = 2 * 64 * 64 * 4
    assert kept < 0.2 * whole
    # Quantising to 4 bits makes some copies of its matrix, with indices of 8 bytes.
    assert counted.most - kept < 2 * 32 * matrix + 16 * matrix < 0.25 * whole


def test_memory_that_is_not_there_is_told_before_the_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs, what there is, and what would fit; no tensor is read."""
    config = ModelConfig.from_json(config_json())
    nothing_read = {"read": lambda *_: pytest.fail("a tensor was read")}
    monkeypatch.setattr(checkpoint.StoredModel, "read", nothing_read["read"])
    free = Memory("cpu", "a small machine", 10**6, 10**5)
    monkeypatch.setattr(checkpoint, "free_memory", lambda device: free)
    assert weight_bytes(config, None) > 10**5
    with pytest.raises(OutOfMemory, match=r"0\.0 GB of weights\), and cpu has 0\.0 GB free; no"):
        load_model(str(folder))


def test_running_out_while_loading_is_told_the_same_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's own error becomes ours."""

    def run_out(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint.StoredModel, "read", run_out)
    with pytest.raises(OutOfMemory, match=r"the model in int8 needs .* what would fit"):
        load_model(str(folder), quantization="int8")


def test_running_out_in_a_fill_says_which_context_fits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine lives on."""
    engine = load_engine(str(folder), device="cpu")
    with monkeypatch.context() as patch:

        def run_out(*_: object, **__: object) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(cache.PrefixCache, "encode", run_out)
        with pytest.raises(OutOfMemory, match=r"out of memory in a fill .* tokens of context"):
            engine.fill(sample_request())
    assert engine.fill(sample_request()).num_passes > 0


def test_the_engine_and_its_process_take_the_option(folder: Path) -> None:
    """And say in what the weights are held; an unknown name is refused."""
    here = load_engine(str(folder), device="cpu", quantization="int4")
    assert here.info.quantization == "int4 and int8"
    assert here.info.parameters == load_engine(str(folder), device="cpu").info.parameters
    there = EngineProcess(str(folder), "cpu", "auto", "int4")
    try:
        assert there.info == here.info
        assert there.fill(sample_request()).token_ids == here.fill(sample_request()).token_ids
    finally:
        there.close()
    with pytest.raises(ConfigError, match="got 'int3'"):
        load_checkpoint(folder, quantization="int3")


def test_the_shipped_model_stays_in_bits_only_when_asked() -> None:
    """It runs faster out of them; with int8 its own are kept."""
    plain_model = load_engine(device="cpu")
    assert plain_model.info.quantization is None
    held = load_engine(device="cpu", quantization="int8")
    assert held.info.quantization == "int8"
    assert held.info.parameters == plain_model.info.parameters
    assert held.fill(sample_request()).text == plain_model.fill(sample_request()).text


def test_the_plan_names_its_quantization() -> None:
    """And its total is the sum of its parts."""
    plan = memory_plan(ModelConfig.from_json(config_json()), "fp8", 100)
    assert plan.quantization == "fp8"
    assert plan.total_bytes == plan.weight_bytes + plan.cache_bytes + plan.work_bytes
