"""Checkpoint folders in the Hugging Face layout: from a folder to a model that is ready to run.

Reads `config.json` and `generation_config.json`; decides device, dtype and in which bits each
weight is held. Finding and reading the weights is `stored_model.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma_kernels.weights import QuantizedWeight, WeightFormat

from .config import ModelConfig, SamplerConfig
from .errors import CheckpointError, ConfigError, EngineUnavailable, OutOfMemory
from .layers import hold
from .machine import free_memory
from .memory import HELD_AS, MemoryPlan, check_quantization, does_not_fit, memory_plan
from .memory import num_parameters as count_parameters
from .model import DiffusionGemma
from .quantization import QUANT_METHOD
from .stored_model import StoredModel
from .tensor_files import read_json

OUR_METHOD = "dgemma"  # of `dgemma-lsp quantize`, in config.json's quantization_config
_METHODS_READ = (QUANT_METHOD, OUR_METHOD, "compressed-tensors", "modelopt", "fp8")
# A model that cannot even read so many tokens is not loaded.
_LEAST_CONTEXT = 4096
# Above this many parameters float32 on a CPU is out of the question; the stored dtype is kept.
_LARGE_MODEL_PARAMETERS = 1_000_000_000


def load_configs(folder: Path) -> tuple[ModelConfig, SamplerConfig]:
    """Read a checkpoint's dimensions and its sampler's defaults, without touching its tensors.

    `infill_config.json` is ours and optional; its "sampler" part overrides the published file's.

    Raises:
        CheckpointError: the folder is not a checkpoint, or not one of this architecture.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no such checkpoint folder: {folder}")
    config = read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    infill_path = folder / "infill_config.json"
    ours = read_json(infill_path).get("sampler") if infill_path.exists() else None
    method = quantization_method(folder, config)
    if method not in (None, *_METHODS_READ):
        raise CheckpointError(
            f"{folder}: weights quantised by {method!r} cannot be read, only those by "
            f"{', '.join(_METHODS_READ)}; take the checkpoint that is not quantised, "
            "with --quantization to hold it in fewer bits"
        )
    try:
        return ModelConfig.from_json(config), SamplerConfig.from_json(generation, ours)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def quantization_method(folder: Path, config: Mapping[str, Any]) -> str | None:
    """How a checkpoint's weights are quantised: by its config.json, or by ModelOpt's own file."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    beside = folder / "hf_quant_config.json"
    if method is None and beside.exists():
        algorithm = (read_json(beside).get("quantization") or {}).get("quant_algo")
        return None if algorithm is None else "modelopt"
    return None if method is None else str(method)


def load_checkpoint(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
) -> DiffusionGemma:
    """Load a checkpoint folder into a model ready to run.

    Weights go to the device one by one, and are quantised there on their way: of a large model the
    CPU holds one matrix.

    Args:
        path: the folder.
        device: "auto" takes the first CUDA device, then Apple's MPS, then the CPU.
        dtype: "auto" keeps the stored dtype, except that a small model on a CPU runs in float32.
        quantization: a name of `HELD_AS`: what the matrices of experts, attention and dense MLPs
            are quantised to, where they are not stored quantised already; None for nothing.
    Raises:
        CheckpointError: see `load_configs`; or tensors are missing, unexpected, misshapen, damaged.
        EngineUnavailable: the device is not there.
        OutOfMemory: the model does not fit on it.
        ConfigError: an unknown dtype or quantization.
    """
    folder = Path(path).expanduser()
    config, sampler = load_configs(folder)
    forms = None if quantization is None else HELD_AS[check_quantization(quantization)]
    target = resolve_device(device)
    run_dtype = resolve_dtype(dtype, config, target, count_parameters(config))
    stored = StoredModel(folder, config)
    # Our own small checkpoints are in 8 bits to be small, and run faster when they are not.
    holds = forms is not None or (
        quantization_method(folder, read_json(folder / "config.json")) != QUANT_METHOD
    )
    plan = _require_memory(stored, config, target, run_dtype, quantization)
    with torch.device("meta"):
        model = DiffusionGemma(config)
    loaded: dict[str, Tensor] = {}
    try:
        for name in stored.shapes:
            is_held = holds and can_hold(name)
            prepared = is_held and target.type == "cuda"
            weight = stored.read(name, target, form_of(name, forms), prepared=prepared)
            if isinstance(weight, QuantizedWeight):
                if is_held:
                    hold(model, name, weight)
                    continue
                weight = weight.dequantize(run_dtype)
            loaded[name] = weight.to(run_dtype)
    except torch.OutOfMemoryError as error:
        free = free_memory(target)
        text = does_not_fit(config, plan, free.free_bytes if free else 0, str(target))
        raise OutOfMemory(text) from error
    model.load_state_dict(loaded, strict=False, assign=True)
    model.sampler_defaults = sampler
    return model.eval().requires_grad_(False)


def can_hold(name: str) -> bool:
    """Whether a parameter may stay in few bits: a projection of attention, an MLP or experts."""
    return ".experts." in name or name.endswith("_proj.weight")


def form_of(name: str, forms: tuple[str, str] | None) -> WeightFormat | None:
    """What a parameter is quantised to on request; see `quantizable_matrices` for which are."""
    if forms is None:
        return None
    if ".experts." in name:
        return WeightFormat(forms[0])
    if name.endswith("_proj.weight") and (".self_attn." in name or ".mlp." in name):
        return WeightFormat(forms[1])
    return None


def _require_memory(
    stored: StoredModel,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
) -> MemoryPlan:
    """What the model will need; raises OutOfMemory if the device has not got it."""
    forms = HELD_AS.get(quantization or "")
    weights = sum(stored.num_bytes(name, form_of(name, forms), dtype) for name in stored.shapes)
    context = min(_LEAST_CONTEXT, config.max_position_embeddings)
    plan = replace(memory_plan(config, quantization, context), weight_bytes=weights)
    free = free_memory(device)
    # On a CPU the rest is small beside what a system can put aside.
    needed = plan.weight_bytes if device.type == "cpu" else plan.total_bytes
    if free is not None and needed > free.free_bytes:
        raise OutOfMemory(does_not_fit(config, plan, free.free_bytes, str(device)))
    return plan


def resolve_device(device: str) -> torch.device:
    """Turn "auto" or a torch device name into a device that is there.

    Raises:
        EngineUnavailable: it is not there, or the name is not a device's.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise EngineUnavailable(
            f"device {device!r} cannot be used ({first_line}); use 'auto' or 'cpu'"
        ) from error


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(
    dtype: str, config: ModelConfig, device: torch.device, num_parameters: int
) -> torch.dtype:
    """Turn "auto" or a dtype's name into the dtype to run in.

    Raises:
        ConfigError: unknown name.
    """
    if dtype == "auto":
        if device.type == "cpu" and num_parameters < _LARGE_MODEL_PARAMETERS:
            return torch.float32
        dtype = config.dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be 'auto' or one of {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]
