"""Checkpoint folders in the Hugging Face layout: files -> names -> tensors.

Reads `config.json`, `generation_config.json` and safetensors, one file or an index of shards. The
table from stored names to ours is here and nowhere else. Whatever is wrong with the tensors is
told in one error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import ModelConfig, SamplerConfig
from .errors import CheckpointError, ConfigError, EngineUnavailable
from .model import DiffusionGemma
from .quantization import QUANT_METHOD, SCALE_SUFFIX, dequantize_rows

_DECODER = "model.decoder."
_ENCODER = "model.encoder.language_model."
# Above this many parameters float32 on a CPU is out of the question; the stored dtype is kept.
_LARGE_MODEL_PARAMETERS = 1_000_000_000
# An error lists this many tensors of a kind, then counts the rest.
_MOST_LISTED = 8


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint: it has no {path.name}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


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
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method not in (None, QUANT_METHOD):
        raise CheckpointError(
            f"{folder}: weights quantised by {method!r} cannot be read; "
            "take the checkpoint that is not quantised"
        )
    try:
        return ModelConfig.from_json(config), SamplerConfig.from_json(generation, ours)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def load_checkpoint(path: str | Path, device: str = "auto", dtype: str = "auto") -> DiffusionGemma:
    """Load a checkpoint folder into a model ready to run.

    Args:
        path: the folder.
        device: "auto" takes the first CUDA device, then Apple's MPS, then the CPU.
        dtype: "auto" keeps the stored dtype, except that a small model on a CPU runs in float32.
    Raises:
        CheckpointError: see `load_configs`; or tensors are missing, unexpected, misshapen, damaged.
        EngineUnavailable: the device is not there.
        ConfigError: an unknown dtype.
    """
    folder = Path(path).expanduser()
    config, sampler = load_configs(folder)
    with torch.device("meta"):
        model = DiffusionGemma(config)
    target = resolve_device(device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    _load_tensors(folder, model, target, resolve_dtype(dtype, config, target, num_parameters))
    model.sampler_defaults = sampler
    return model.eval().requires_grad_(False)


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


def stored_name_to_ours(name: str) -> str | None:
    """Map a stored tensor's name to the model's, or to None if the text path does not need it.

    Everything of the text model is stored under `model.decoder.`. Of the encoder only the layer
    scalars are its own; its other names, like `lm_head`, are ties to the decoder's tensors. The
    vision tower is not run.
    """
    if name.startswith(_DECODER):
        return name.removeprefix(_DECODER)
    if name.startswith(_ENCODER) and name.endswith(".layer_scalar"):
        return name.removeprefix(_ENCODER).replace(".layer_scalar", ".encoder_layer_scalar")
    is_tied = name == "lm_head.weight" or name.startswith(_ENCODER)
    is_vision = name.startswith(("model.encoder.vision_tower.", "model.encoder.embed_vision."))
    if is_tied or is_vision:
        return None
    return name  # matches nothing of the model, and is reported as unexpected


def our_name_to_stored(name: str) -> str:
    """The inverse of `stored_name_to_ours`, for writing checkpoints."""
    if name.endswith(".encoder_layer_scalar"):
        return _ENCODER + name.replace(".encoder_layer_scalar", ".layer_scalar")
    return _DECODER + name


@dataclass
class _Problems:
    """What is wrong with a checkpoint's tensors, gathered so that it is told at once."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_any(self, folder: Path) -> None:
        parts = []
        for kind in ("missing", "unexpected", "misshapen"):
            names: list[str] = getattr(self, kind)
            if names:
                listed = ", ".join(sorted(names)[:_MOST_LISTED])
                more = f" and {len(names) - _MOST_LISTED} more" * (len(names) > _MOST_LISTED)
                parts.append(f"{len(names)} {kind}: {listed}{more}")
        if parts:
            raise CheckpointError(
                f"{folder}: the tensors do not match config.json; " + "; ".join(parts)
            )


def _load_tensors(
    folder: Path, model: DiffusionGemma, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill a model built on the meta device, tensor by tensor, straight onto `device`."""
    expected: dict[str, Tensor] = model.state_dict()
    problems = _Problems()
    loaded: dict[str, Tensor] = {}
    files = _tensor_files(folder)
    scales = _read_scales(files)
    for file in files:
        for stored_name, shape, read in _open_tensors(file):
            name = stored_name_to_ours(stored_name)
            if name is None or stored_name in scales:
                continue
            if name not in expected:
                problems.unexpected.append(f"{stored_name} ({file.name})")
            elif shape != tuple(expected[name].shape):
                wanted = tuple(expected[name].shape)
                problems.misshapen.append(
                    f"{stored_name} ({file.name}) is {shape}, expected {wanted}"
                )
            else:
                tensor = read().to(device)
                if tensor.dtype == torch.int8:
                    scale = scales.get(stored_name + SCALE_SUFFIX)
                    if scale is None or scale.shape != tensor.shape[:-1]:
                        problems.misshapen.append(
                            f"{stored_name}{SCALE_SUFFIX} ({file.name}) is "
                            f"{None if scale is None else tuple(scale.shape)}, "
                            f"expected {tuple(tensor.shape[:-1])}"
                        )
                        continue
                    tensor = dequantize_rows(tensor, scale.to(device), dtype)
                loaded[name] = tensor.to(dtype)
    bad = {entry.split(" ")[0].removesuffix(SCALE_SUFFIX) for entry in problems.misshapen}
    problems.missing = [
        our_name_to_stored(name)
        for name in expected
        if name not in loaded and our_name_to_stored(name) not in bad
    ]
    problems.raise_if_any(folder)
    model.load_state_dict(loaded, assign=True)


def _read_scales(files: list[Path]) -> dict[str, Tensor]:
    """The scales of 8-bit weights, by stored name; they may lie in another file than the weight."""
    names = {stored_name for file in files for stored_name, _, _ in _open_tensors(file)}
    return {
        stored_name: read()
        for file in files
        for stored_name, _, read in _open_tensors(file)
        if stored_name.endswith(SCALE_SUFFIX) and stored_name.removesuffix(SCALE_SUFFIX) in names
    }


def _tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each named once."""
    index_path = folder / "model.safetensors.index.json"
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise CheckpointError(f"{index_path} has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        absent = [file.name for file in files if not file.exists()]
        if absent:
            raise CheckpointError(
                f"{folder}: {index_path.name} names files that are not there: {', '.join(absent)}"
            )
        return files
    single = folder / "model.safetensors"
    if not single.exists():
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json"
        )
    return [single]


def _open_tensors(file: Path) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Yield each tensor of a file: stored name, shape, and a function that reads it."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                shape = tuple(tensors.get_slice(name).get_shape())
                yield name, shape, lambda name=name: tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}); download it again"
        ) from error
