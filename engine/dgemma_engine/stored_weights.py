"""How quantised weights are stored in public, and what each stands for.

A weight is stored as one tensor, or as several whose names share a stem: data, scales, a global
scale. Read here, whoever wrote them:

    compressed-tensors  FP8    weight e4m3 (N, K), weight_scale (N, 1)
                        int8   weight int8 (N, K), weight_scale (N, 1)
                        NVFP4  weight_packed u8 (N, K/2), weight_scale e4m3 (N, K/16),
                               weight_global_scale: by this one is divided
                        int4   weight_packed i32 (N, K/8), weight_scale (N, K/128), weight_shape
    ModelOpt            NVFP4  weight u8 (N, K/2), weight_scale e4m3 (N, K/16), weight_scale_2
                        FP8    weight e4m3 (N, K), weight_scale: one number
    block FP8                  weight e4m3 (N, K), weight_scale_inv (N/128, K/128): multiplied
    dgemma                     as ModelOpt or with one scale a row; experts stacked

Scales of activations (input_scale and the like) are not used: activations are not quantised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize

from .tensor_files import StoredTensor

Weight = Tensor | QuantizedWeight

# What may follow a weight's name, and is part of it.
_ROLES = ("_packed", "_scale_inv", "_scale_2", "_global_scale", "_scale", "_shape")
_ROLES_REFUSED = ("_zero_point", "_g_idx")
_OF_ACTIVATIONS = re.compile(r"\.(input_scale|input_global_scale|(k|v|q|kv)_scale|output_scale)$")
_ONE_EXPERT = re.compile(r"^(layers\.\d+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight(\w*)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored weight goes: all of a parameter, or one expert's rows of a stack.

    Attributes:
        name: the parameter's.
        expert: None for all of them.
        part: "gate", "up" or "down", of one expert.
    """

    name: str
    expert: int | None = None
    part: str | None = None


@dataclass(slots=True)
class StoredWeight:
    """One weight: the stored names of its tensors, by their role ("" is the data)."""

    names: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> str | None:
        """The stored name of the data."""
        return self.names.get("", self.names.get("_packed"))

    def shape(self, tensors: Mapping[str, StoredTensor]) -> tuple[int, ...] | None:
        """(..., N, K) of the weight itself, however it is packed; None without data."""
        if self.data is None:
            return None
        _, shape, dtype = tensors[self.data]
        packed = {torch.uint8: 2, torch.int32: 8}.get(dtype, 1) if dtype is not None else 1
        return (*shape[:-1], shape[-1] * packed) if shape else shape


def is_of_activations(name: str) -> bool:
    """Whether a tensor says how activations are quantised, and is of no weight."""
    return _OF_ACTIVATIONS.search(name) is not None


def place_of(name: str, expected: Mapping[str, object]) -> tuple[Place, str] | None:
    """Which parameter a tensor belongs to, and its role there; None for no parameter's.

    Args:
        name: of the tensor, in the model's terms (without `model.decoder.`).
        expected: the model's parameters by name.
    """
    if name in expected:
        return Place(name), ""
    one = _ONE_EXPERT.match(name)
    if one is not None:
        experts, number, part, role = one.groups()
        if role in ("", *_ROLES, *_ROLES_REFUSED):
            stack = f"{experts}.{'down' if part == 'down' else 'gate_up'}_proj"
            return (Place(stack, int(number), part), role) if stack in expected else None
        return None
    for role in (*_ROLES, *_ROLES_REFUSED):
        stem = name.removesuffix(role)
        if name.endswith(role) and stem in expected:
            return Place(stem), role
    return None


def problem_of(stored: StoredWeight, tensors: Mapping[str, StoredTensor]) -> str | None:
    """What keeps a weight from being read, as the end of a sentence; None if nothing does."""
    assert stored.data is not None
    entry = tensors[stored.data]
    roles = set(stored.names)
    for role in _ROLES_REFUSED:
        if role in roles:
            return f"has a {role.lstrip('_')}, and only symmetric weights in their order are read"
    if entry.dtype is None:
        return "is of a type that this engine does not know"
    if entry.dtype.is_floating_point and entry.dtype != torch.float8_e4m3fn:
        return None
    scale_role = "_scale_inv" if "_scale_inv" in roles else "_scale"
    scale = tensors[stored.names[scale_role]].shape if scale_role in roles else None
    *leading, rows, columns = stored.shape(tensors) or (0, 0)
    if entry.dtype == torch.int32:
        allowed = [(*leading, rows, -(-columns // 128))]
    elif entry.dtype == torch.uint8:
        groups = 128 if roles.isdisjoint({"_scale_2", "_global_scale"}) else 16
        allowed = [(*leading, rows, -(-columns // groups))]
    else:
        allowed = [(*leading, rows), (*leading, rows, 1)]
        if entry.dtype == torch.float8_e4m3fn:
            blocks = (*leading, -(-rows // 128), -(-columns // 128))
            allowed += [(), (1,), blocks]
    if scale in allowed:
        return None
    if entry.dtype == torch.int32 and scale is not None and scale[:-1] == (*leading, rows):
        return f"has a scale for {columns // scale[-1]} columns, and only groups of 128 are read"
    return f"{scale_role} is {scale}, expected {allowed[0]}"


def read_weight(
    stored: StoredWeight, read: Callable[[str], Tensor], device: torch.device
) -> Weight:
    """Read one weight in which there is no `problem_of` it.

    Args:
        stored: its names.
        read: a tensor by its stored name.
        device: where the weight is wanted.
    Returns:
        (..., N, K): a float tensor as it is stored, or what the codes stand for.
    """
    assert stored.data is not None
    parts = {role: read(name).to(device) for role, name in stored.names.items()}
    data = parts.get("", parts.get("_packed"))
    assert data is not None
    if data.dtype == torch.int32:
        # Eight columns a number, the first in the lowest bits: as bytes, two columns each.
        pairs = data.contiguous().view(torch.uint8)
        return QuantizedWeight(WeightFormat.INT4, pairs, parts["_scale"].to(torch.bfloat16))
    if data.dtype == torch.uint8:
        scale = parts["_scale"]
        if "_scale_2" in parts:
            factor = parts["_scale_2"].float()
        elif "_global_scale" in parts:
            factor = 1.0 / parts["_global_scale"].float()
        else:
            return QuantizedWeight(WeightFormat.INT4, data, scale.to(torch.bfloat16))
        if data.ndim == 2 and factor.numel() == 1:
            factor = factor.reshape(())
        return QuantizedWeight(WeightFormat.NVFP4, data, scale.to(torch.float8_e4m3fn), factor)
    if data.dtype in (torch.int8, torch.float8_e4m3fn):
        scale = parts["_scale_inv" if "_scale_inv" in parts else "_scale"].float()
        of_rows = data.shape[:-1]
        is_fp8 = data.dtype == torch.float8_e4m3fn
        if is_fp8 and scale.ndim < 2 and scale.numel() == 1:  # one for the matrix
            scale = scale.reshape(()).expand(of_rows).contiguous()
        elif tuple(scale.shape) not in (tuple(of_rows), (*of_rows, 1)):
            return QuantizedWeight(WeightFormat.FP8_BLOCK, data, scale)
        form = WeightFormat.FP8 if is_fp8 else WeightFormat.INT8
        return QuantizedWeight(form, data, scale.reshape(of_rows))
    return data


def in_format(weight: Weight, form: WeightFormat | None, *, prepared: bool = False) -> Weight:
    """A float weight in fewer bits, if any are asked for; one that is quantised stays as it is.

    Args:
        weight: one matrix, or several.
        form: which bits.
        prepared: put what is quantised into the order in which kernels read it.
    """
    if form is not None and isinstance(weight, Tensor):
        weight = quantize(weight, form)
    if prepared and isinstance(weight, QuantizedWeight):
        return weight.prepared_for_kernel()
    return weight


def stored_parts(name: str, weight: Weight) -> dict[str, Tensor]:
    """A weight as this project stores it: tensors by name, `read_weight`'s inverse."""
    if isinstance(weight, Tensor):
        return {name: weight}
    parts = {name: weight.data, f"{name}_scale": weight.scale}
    if weight.global_scale is not None:
        parts[f"{name}_scale_2"] = weight.global_scale
    return parts


class Stack:
    """The experts' weights of one layer, put together piece by piece on their device.

    Args:
        shape: (E, N, K).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._whole: Weight | None = None

    def put(self, expert: int, part: str | None, weight: Weight) -> None:
        """Put one expert's matrix, or its "gate" or "up" half, into its place.

        Blocks of 128 x 128 that would not lie on the stack's own blocks are made into rows' scales:
        the only step in which a stored form is rounded anew.

        Raises:
            ValueError: the pieces are of different forms.
        """
        rows = self._shape[1]
        half = part in ("gate", "up")
        start = rows // 2 if part == "up" else 0
        stop = start + rows // 2 if half else rows
        if isinstance(weight, QuantizedWeight):
            if weight.format is WeightFormat.FP8_BLOCK and half and (rows // 2) % 128:
                weight = quantize(weight.dequantize(torch.float32), WeightFormat.FP8)
            weight = _with_scale_of_rows(weight) if half else weight
        if self._whole is None:
            self._whole = self._empty(weight)
        whole = self._whole
        if isinstance(weight, Tensor) and isinstance(whole, Tensor):
            whole[expert, start:stop] = weight
            return
        if isinstance(weight, Tensor) or isinstance(whole, Tensor):
            raise ValueError("some experts are quantised and some are not")
        if weight.format is not whole.format:
            raise ValueError(f"experts in {whole.format.value} and {weight.format.value}")
        whole.data[expert, start:stop] = weight.data
        block = 128 if weight.format is WeightFormat.FP8_BLOCK else 1
        whole.scale[expert, start // block : -(-stop // block)] = weight.scale
        if weight.global_scale is not None and whole.global_scale is not None:
            if weight.global_scale.ndim:
                whole.global_scale[expert, start:stop] = weight.global_scale
            else:
                whole.global_scale[expert] = weight.global_scale

    def whole(self) -> Weight:
        """The stack, once every piece was put."""
        assert self._whole is not None
        return self._whole

    def _empty(self, piece: Weight) -> Weight:
        experts, rows, _ = self._shape
        if isinstance(piece, Tensor):
            return piece.new_empty(self._shape)
        block = 128 if piece.format is WeightFormat.FP8_BLOCK else 1
        scale = piece.scale.new_empty(experts, -(-rows // block), *piece.scale.shape[1:])
        factor = piece.global_scale
        if factor is not None:
            factor = factor.new_empty((experts, rows) if factor.ndim else (experts,))
        data = piece.data.new_empty(experts, rows, piece.data.shape[-1])
        return replace(piece, data=data, scale=scale, global_scale=factor)


def _with_scale_of_rows(weight: QuantizedWeight) -> QuantizedWeight:
    """One matrix with its global scale, if it has one, for each row."""
    if weight.global_scale is None or weight.global_scale.ndim:
        return weight
    rows = weight.global_scale.expand(weight.data.shape[0]).contiguous()
    return replace(weight, global_scale=rows)
