"""A checkpoint's weights under the model's names: which stored tensors make each, and the reading.

The table from stored names to ours is here and nowhere else; the forms in which a weight may be
stored are in `stored_weights.py`. Whatever is wrong with the tensors is told in one error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dgemma_kernels.weights import WeightFormat

from .config import ModelConfig
from .errors import CheckpointError
from .model import DiffusionGemma
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
from .tensor_files import TensorFiles

_DECODER = "model.decoder."
_ENCODER = "model.encoder.language_model."
# With the scales of groups of 16.
_BITS_OF_4 = 4.5
# An error lists this many tensors of a kind, then counts the rest.
_MOST_LISTED = 8


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
