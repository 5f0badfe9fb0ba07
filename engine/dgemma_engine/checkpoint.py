"""Checkpoint folders in the Hugging Face layout: files -> names -> weights.

Reads `config.json`, `generation_config.json` and safetensors. The table from stored names to ours
is here and nowhere else; the forms in which weights are quantised are in `stored_weights.py`.
Whatever is wrong with the tensors is told in one error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from .stored_weights import (
    Place,
    Stack,
    StoredWeight,
    Weight,
    in_format,
    is_of_activations,
    place_of,
    problem_of,
    read_weight,
)
from .tensor_files import TensorFiles, read_json

OUR_METHOD = "dgemma"  # of `dgemma-lsp quantize`, in config.json's quantization_config
_METHODS_READ = (QUANT_METHOD, OUR_METHOD, "compressed-tensors", "modelopt", "fp8")
# With the scales of groups of 16.
_BITS_OF_4 = 4.5
# A model that cannot even read so many tokens is not loaded.
_LEAST_CONTEXT = 4096
_DECODER = "model.decoder."
_ENCODER = "model.encoder.language_model."
# Above this many parameters float32 on a CPU is out of the question; the stored dtype is kept.
_LARGE_MODEL_PARAMETERS = 1_000_000_000
# An error lists this many tensors of a kind, then counts the rest.
_MOST_LISTED = 8


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


class StoredModel:
    """A checkpoint's weights by the model's names, each read when it is asked for.

    Nothing of it stays in memory: one expert's matrix is the most that is read at once where the
    experts are stored apart, or are to be quantised.

    Args:
        folder: the checkpoint.
        config: its dimensions.
    Raises:
        CheckpointError: tensors are missing, unexpected, misshapen, damaged; all in one error.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        with torch.device("meta"):
            expected = DiffusionGemma(config).state_dict()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        self._folder = folder
        self._files = TensorFiles(folder)
        self._pieces: dict[str, dict[Place, StoredWeight]] = {}
        problems = _Problems()
        for stored_name, entry in self._files.tensors.items():
            name = self._our_name(stored_name)
            if name is None:
                continue
            found = place_of(name, self.shapes)
            if found is None:
                problems.unexpected.append(f"{stored_name} ({entry.file.name})")
                continue
            place, role = found
            pieces = self._pieces.setdefault(place.name, {})
            pieces.setdefault(place, StoredWeight()).names[role] = stored_name
        for name in self.shapes:
            self._check(name, config.num_experts, problems)
        problems.raise_if_any(folder)

    def _our_name(self, stored_name: str) -> str | None:
        if is_of_activations(stored_name):
            return None
        name = stored_name_to_ours(stored_name)
        if name is None and stored_name.startswith(_ENCODER):
            # Ties to the decoder's tensors, unless a quantiser wrote the encoder's alone.
            rest = stored_name.removeprefix(_ENCODER)
            if _DECODER + rest not in self._files.tensors and ".experts." in rest:
                return rest
        return name

    def _check(self, name: str, num_experts: int, problems: _Problems) -> None:
        shape, pieces = self.shapes[name], self._pieces.get(name, {})
        if Place(name) in pieces:
            wanted = {Place(name): shape}
        elif name.endswith("experts.gate_up_proj") and pieces:
            half = (shape[1] // 2, shape[2])
            wanted = {
                Place(name, expert, part): half
                for expert in range(num_experts)
                for part in ("gate", "up")
            }
        elif name.endswith("experts.down_proj") and pieces:
            wanted = {Place(name, expert, "down"): shape[1:] for expert in range(num_experts)}
        else:
            problems.missing.append(our_name_to_stored(name))
            return
        for place, expected in wanted.items():
            stored = pieces.get(place)
            if stored is None or stored.data is None:
                apart = "" if place.expert is None else f" (expert {place.expert}, {place.part})"
                problems.missing.append(our_name_to_stored(name) + apart)
                continue
            entry, actual = self._files.tensors[stored.data], stored.shape(self._files.tensors)
            told = f"{stored.data} ({entry.file.name})"
            if actual != expected:
                problems.misshapen.append(f"{told} is {actual}, expected {expected}")
            elif problem := problem_of(stored, self._files.tensors):
                if problem.startswith("_"):
                    told = f"{stored.data.removesuffix('_packed')}"
                    problem = (
                        f"{problem.partition(' ')[0]} ({entry.file.name}) "
                        + (problem.partition(" ")[2])
                    )
                    problems.misshapen.append(told + problem)
                else:
                    problems.misshapen.append(f"{told} {problem}")

    def num_bytes(
        self, name: str, form: WeightFormat | None, dtype: torch.dtype | None = None
    ) -> int:
        """What a parameter takes once it is read: as stored, or in a form of fewer bits.

        Args:
            name: of `shapes`.
            form: as for `read`.
            dtype: of what is not quantised; None for the dtype in which it is stored.
        """
        total = 0
        for stored in self._pieces[name].values():
            assert stored.data is not None
            stored_dtype = self._files.tensors[stored.data].dtype
            if stored_dtype is not None and _is_float(stored_dtype):
                numbers = math.prod(stored.shape(self._files.tensors) or ())
                bits = 8.0 * (dtype or stored_dtype).itemsize
                if form is not None:
                    bits = _BITS_OF_4 if form.is_4_bit else 8.0
                total += int(numbers * bits / 8)
            else:
                total += sum(
                    math.prod(self._files.tensors[part].shape)
                    * (self._files.tensors[part].dtype or torch.uint8).itemsize
                    for part in stored.names.values()
                )
        return total

    def read(
        self,
        name: str,
        device: torch.device,
        form: WeightFormat | None = None,
        *,
        prepared: bool = False,
    ) -> Weight:
        """One parameter.

        Args:
            name: of `shapes`.
            device: where it is wanted.
            form: what a weight stored in a float type is quantised to, piece by piece on its way;
                None leaves it. What is stored quantised stays in its own form.
            prepared: in the order in which kernels read it, matrix by matrix.
        Raises:
            CheckpointError: a file is damaged, or experts are stored in several forms.
        """
        try:
            return self._read(name, device, form, prepared)
        except ValueError as error:
            raise CheckpointError(f"{self._folder}: {name}: {error}") from error

    def _read(
        self, name: str, device: torch.device, form: WeightFormat | None, prepared: bool
    ) -> Weight:
        pieces, read, shape = self._pieces[name], self._files.read, self.shapes[name]
        whole, stack = pieces.get(Place(name)), Stack(shape)
        if whole is None:
            for place, stored in pieces.items():
                assert place.expert is not None
                piece = in_format(read_weight(stored, read, device), form, prepared=prepared)
                stack.put(place.expert, place.part, piece)
            return stack.whole()
        is_float = self._is_stored_in_float(whole)
        if len(shape) < 3 or (is_float and form is None) or not (is_float or prepared):
            return in_format(read_weight(whole, read, device), form, prepared=prepared)
        assert whole.data is not None
        # A stack of experts is large, and what is made of it on the way; one expert is not.
        stored_stack = None if is_float else read_weight(whole, read, device)
        for expert in range(shape[0]):
            matrix: Weight
            if stored_stack is None:
                matrix = self._files.read_at(whole.data, expert).to(device)
            else:
                matrix = stored_stack[expert]
            stack.put(expert, None, in_format(matrix, form, prepared=prepared))
        return stack.whole()

    def _is_stored_in_float(self, stored: StoredWeight) -> bool:
        assert stored.data is not None
        return _is_float(self._files.tensors[stored.data].dtype)


def _is_float(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point and dtype != torch.float8_e4m3fn


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
