"""Weights in fewer bits: five stored forms, how they are made, and what they stand for.

A QuantizedWeight holds matrices (N, K) with any leading dimensions, K the side that a product sums
over. Every op takes one wherever it takes a weight; its twin turns it back by `dequantize`, which
defines what the form means. Knows no checkpoint and no names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

INT4_GROUP = 128
NVFP4_GROUP = 16
FP8_BLOCK_SIZE = 128
_INT4_ZERO = 8  # the nibble of 0
_LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0, "e2m1": 6.0}
_TINY = torch.finfo(torch.float32).tiny
# Magnitudes of a 4-bit float by its lower three bits; the fourth is the sign.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Halfway between them. A value on such an edge goes to the code that is even.
_E2M1_EDGES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


class WeightFormat(str, Enum):
    """What a weight is stored as.

    INT8: signed bytes, one scale a row.        FP8: e4m3, one scale a row.
    FP8_BLOCK: e4m3, one scale a block of 128 x 128.
    INT4: -7..7, one bfloat16 scale for 128 along K.
    NVFP4: e2m1, one e4m3 scale for 16 along K, one float32 scale a matrix.
    """

    INT8 = "int8"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT4 = "int4"
    NVFP4 = "nvfp4"

    @property
    def is_4_bit(self) -> bool:
        return self in (WeightFormat.INT4, WeightFormat.NVFP4)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Matrices (..., N, K) in one of the five forms.

    Attributes:
        format: which.
        data: int8 or float8_e4m3fn (..., N, K); of a 4-bit form uint8 (..., N, K/2), two columns a
            byte. As stored publicly, the low nibble is the even column and the high nibble the odd
            one after it. INT4 stores value + 8, NVFP4 sign, two bits of exponent, one of mantissa.
        scale: INT8, FP8: float32 (..., N). FP8_BLOCK: float32 (..., N/128, K/128). INT4: bfloat16
            (..., N, K/128). NVFP4: float8_e4m3fn (..., N, K/16). Counts of blocks are rounded up.
        global_scale: of NVFP4 alone: float32 (...), one a matrix, or (..., N), one a row, for
            matrices that were joined from several. A weight is code * scale * global_scale.
        split: 0 for the public order of nibbles; else that of the kernels, see
            `prepared_for_kernel`.
        num_columns: K, where `data` is padded beyond it; else None.
    """

    format: WeightFormat
    data: Tensor
    scale: Tensor
    global_scale: Tensor | None = None
    split: int = 0
    num_columns: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, with what was received, where the parts do not fit together."""
        expected = _DATA_DTYPES[self.format]
        if self.data.dtype != expected:
            raise ValueError(f"{self.format.value} data is {expected}, not {self.data.dtype}")
        scale_shape = _scale_shape(self.format, self.shape)
        if tuple(self.scale.shape) != scale_shape:
            raise ValueError(
                f"the scale of {self.format.value} {tuple(self.shape)} is {scale_shape},"
                f" not {tuple(self.scale.shape)}"
            )
        if (self.global_scale is not None) != (self.format is WeightFormat.NVFP4):
            raise ValueError(f"a global scale belongs to nvfp4 and to no {self.format.value}")
        if self.global_scale is not None:
            per_matrix, per_row = self.shape[:-2], self.shape[:-1]
            if tuple(self.global_scale.shape) not in (tuple(per_matrix), tuple(per_row)):
                raise ValueError(
                    f"the global scale of nvfp4 {tuple(self.shape)} is {tuple(per_matrix)} or"
                    f" {tuple(per_row)}, not {tuple(self.global_scale.shape)}"
                )

    @property
    def shape(self) -> torch.Size:
        """(..., N, K): of the weights, not of the bytes."""
        columns = self.data.shape[-1] * (2 if self.format.is_4_bit else 1)
        return torch.Size([*self.data.shape[:-1], self.num_columns or columns])

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Of all parts together."""
        return sum(part.nbytes for part in self._parts())

    def __getitem__(self, index: int | slice) -> QuantizedWeight:
        """Some of the matrices: an index into the first dimension, which is not N or K."""
        assert self.data.ndim > 2, "a single matrix is not indexed"
        parent = self.global_scale
        return dataclasses.replace(
            self,
            data=self.data[index],
            scale=self.scale[index],
            global_scale=None if parent is None else parent[index],
        )

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same on another device; itself where it is there already."""
        if self.device == torch.device(device):
            return self
        moved = None if self.global_scale is None else self.global_scale.to(device)
        return dataclasses.replace(
            self, data=self.data.to(device), scale=self.scale.to(device), global_scale=moved
        )

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weights (..., N, K): computed in float32, rounded once."""
        codes = self._codes()
        columns = codes.shape[-1]
        if self.format is WeightFormat.FP8_BLOCK:
            scale = self.scale.repeat_interleave(FP8_BLOCK_SIZE, -2)[..., : codes.shape[-2], :]
            scale = scale.repeat_interleave(FP8_BLOCK_SIZE, -1)[..., :columns]
        elif self.format.is_4_bit:
            group = INT4_GROUP if self.format is WeightFormat.INT4 else NVFP4_GROUP
            scale = self.scale.float().repeat_interleave(group, -1)[..., :columns]
        else:
            scale = self.scale[..., None]
        weight = codes * scale.float()
        if self.global_scale is not None:
            weight = weight * self._global_scale_of_rows()[..., None]
        return weight.to(dtype)

    def times(self, vectors: Tensor) -> Tensor:
        """INT8 matrices times a vector each, the codes turned to numbers as they are summed.

        A compiler makes one loop of it that reads a byte for each weight and writes none.

        Args:
            vectors: (..., K) of any float dtype, with the leading dimensions of the matrices.
        Returns:
            (..., N), dtype of `vectors`; sums are in float32, and scaled once.
        """
        assert self.format is WeightFormat.INT8, self.format
        sums = (self.data.float() * vectors.float()[..., None, :]).sum(dim=-1)
        return (sums * self.scale).to(vectors.dtype)

    def prepared_for_kernel(self) -> QuantizedWeight:
        """The same weights in the order in which kernels read them: once, at load.

        8-bit forms are as they are. In a 4-bit form K is padded by zeros to a multiple of 32 and
        cut into runs of `split` columns, the largest of 128, 64 and 32 that divides it; byte j of a
        run holds column j in its low and column j + split/2 in its high nibble. A kernel then makes
        two tiles of columns that are consecutive, and never interleaves (which cost 9.5
        instructions a weight on sm_90 instead of 4). NVFP4 has one global scale a row.
        """
        if not self.format.is_4_bit or self.split:
            return self
        nibbles = _unpack_pairs(self.data)
        columns = nibbles.shape[-1]
        padded = -(-columns // 32) * 32
        if padded != columns:
            zero = _INT4_ZERO if self.format is WeightFormat.INT4 else 0
            nibbles = torch.nn.functional.pad(nibbles, (0, padded - columns), value=zero)
        split = next(size for size in (128, 64, 32) if padded % size == 0)
        runs = _cut(_cut(nibbles, -1, split), -1, split // 2)
        data = (runs[..., 0, :] | (runs[..., 1, :] << 4)).flatten(-2)
        global_scale = None
        if self.global_scale is not None:
            global_scale = self._global_scale_of_rows().contiguous()
        return dataclasses.replace(
            self,
            data=data.contiguous(),
            scale=self.scale.contiguous(),
            global_scale=global_scale,
            split=split,
            num_columns=columns,
        )

    def _global_scale_of_rows(self) -> Tensor:
        assert self.global_scale is not None
        scale = self.global_scale
        if scale.ndim == self.data.ndim - 2:
            scale = scale[..., None].expand(self.shape[:-1])
        return scale

    def _codes(self) -> Tensor:
        """What is stored, as float32 numbers (..., N, K)."""
        if not self.format.is_4_bit:
            return self.data.float()
        if self.split:
            runs = _cut(self.data, -1, self.split // 2)
            nibbles = torch.stack((runs & 15, runs >> 4), dim=-2).flatten(-3)
            nibbles = nibbles[..., : self.shape[-1]]
        else:
            nibbles = _unpack_pairs(self.data)
        if self.format is WeightFormat.INT4:
            return nibbles.float() - _INT4_ZERO
        table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=nibbles.device)
        return table[nibbles.int()]

    def _parts(self) -> list[Tensor]:
        parts = (self.data, self.scale, self.global_scale)
        return [part for part in parts if part is not None]


_DATA_DTYPES = {
    WeightFormat.INT8: torch.int8,
    WeightFormat.FP8: torch.float8_e4m3fn,
    WeightFormat.FP8_BLOCK: torch.float8_e4m3fn,
    WeightFormat.INT4: torch.uint8,
    WeightFormat.NVFP4: torch.uint8,
}


def quantize(weight: Tensor, format: WeightFormat) -> QuantizedWeight:
    """Store a weight in fewer bits: symmetric, each code the nearest to its weight.

    Args:
        weight: (..., N, K) of any float dtype, finite; any device, the result is there too. Not
            modified. A large stack may be quantised in parts along its leading dimensions: the
            parts' codes and scales are those of the whole.
        format: which form. K must be even for a 4-bit one.
    Returns:
        in the public layout, contiguous.
    Raises:
        ValueError: if the weight is no matrix, or K is odd and two columns share a byte.
    """
    if weight.ndim < 2:
        raise ValueError(f"a weight is a matrix (..., N, K), not of shape {tuple(weight.shape)}")
    if format.is_4_bit and weight.shape[-1] % 2:
        raise ValueError(
            f"{format.value} holds two columns a byte: K may not be {weight.shape[-1]}"
        )
    return _QUANTIZERS[format](weight.float())


def matrix(weight: Tensor | QuantizedWeight, index: int, dtype: torch.dtype) -> Tensor:
    """One matrix (N, K) of a stack (E, N, K): as it is, or turned back to `dtype`."""
    one = weight[index]
    return one if isinstance(one, Tensor) else one.dequantize(dtype)


def _quantize_int8(weight: Tensor) -> QuantizedWeight:
    scale = weight.abs().amax(dim=-1) / _LARGEST["int8"]
    codes = (weight / _divisor(scale)[..., None]).round().clamp(-127, 127)
    return QuantizedWeight(WeightFormat.INT8, codes.to(torch.int8), scale)


def _quantize_fp8(weight: Tensor) -> QuantizedWeight:
    scale = weight.abs().amax(dim=-1) / _LARGEST["fp8"]
    codes = _to_e4m3(weight / _divisor(scale)[..., None])
    return QuantizedWeight(WeightFormat.FP8, codes, scale)


def _quantize_fp8_block(weight: Tensor) -> QuantizedWeight:
    rows, columns = weight.shape[-2:]
    size = FP8_BLOCK_SIZE
    padded = torch.nn.functional.pad(weight, (0, -columns % size, 0, -rows % size))
    blocks = _cut(_cut(padded, -1, size), -3, size)  # (..., n, 128, k, 128)
    scale = blocks.abs().amax(dim=(-3, -1)) / _LARGEST["fp8"]
    codes = _to_e4m3(blocks / _divisor(scale)[..., :, None, :, None])
    codes = codes.flatten(-2).flatten(-3, -2)[..., :rows, :columns]
    return QuantizedWeight(WeightFormat.FP8_BLOCK, codes.contiguous(), scale)


def _quantize_int4(weight: Tensor) -> QuantizedWeight:
    groups = _groups(weight, INT4_GROUP)
    scale = (groups.abs().amax(dim=-1) / _LARGEST["int4"]).bfloat16()
    codes = (groups / _divisor(scale.float())[..., None]).round().clamp(-7, 7)
    nibbles = (codes.flatten(-2)[..., : weight.shape[-1]] + _INT4_ZERO).to(torch.uint8)
    return QuantizedWeight(WeightFormat.INT4, _pack_pairs(nibbles), scale)


def _quantize_nvfp4(weight: Tensor) -> QuantizedWeight:
    groups = _groups(weight, NVFP4_GROUP)
    largest = groups.abs().amax(dim=-1)
    global_scale = largest.amax(dim=(-2, -1)) / (_LARGEST["e2m1"] * _LARGEST["fp8"])
    of_groups = _divisor(global_scale)[..., None, None]
    scale = _to_e4m3(largest / _LARGEST["e2m1"] / of_groups)
    size = (groups / _divisor(scale.float() * of_groups)[..., None]).abs()
    # Where the scale was rounded to zero the quotient is huge; its weights are nothing beside the
    # matrix's largest.
    size = torch.where(scale.float()[..., None] == 0, 0.0, size)
    edges = torch.tensor(_E2M1_EDGES, device=weight.device)
    code = torch.bucketize(size, edges)
    on_edge = size == edges[code.clamp_max(len(_E2M1_EDGES) - 1)]
    code = code + (on_edge & (code % 2 == 1)).long()
    nibbles = code | (torch.signbit(groups) & (code > 0)).long() << 3
    nibbles = nibbles.flatten(-2)[..., : weight.shape[-1]].to(torch.uint8)
    return QuantizedWeight(WeightFormat.NVFP4, _pack_pairs(nibbles), scale, global_scale)


_QUANTIZERS = {
    WeightFormat.INT8: _quantize_int8,
    WeightFormat.FP8: _quantize_fp8,
    WeightFormat.FP8_BLOCK: _quantize_fp8_block,
    WeightFormat.INT4: _quantize_int4,
    WeightFormat.NVFP4: _quantize_nvfp4,
}


def _groups(weight: Tensor, size: int) -> Tensor:
    """(..., N, K) padded by zeros and cut: (..., N, groups, size)."""
    return _cut(torch.nn.functional.pad(weight, (0, -weight.shape[-1] % size)), -1, size)


def _cut(tensor: Tensor, dim: int, size: int) -> Tensor:
    """One dimension cut into (how many, size)."""
    shape = [*tensor.shape]
    dim = dim % tensor.ndim
    return tensor.reshape(*shape[:dim], shape[dim] // size, size, *shape[dim + 1 :])


def _divisor(scale: Tensor) -> Tensor:
    return scale.clamp_min(_TINY)


def _to_e4m3(values: Tensor) -> Tensor:
    largest = _LARGEST["fp8"]
    return values.clamp(-largest, largest).to(torch.float8_e4m3fn)


def _pack_pairs(nibbles: Tensor) -> Tensor:
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).contiguous()


def _unpack_pairs(data: Tensor) -> Tensor:
    return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)


def _scale_shape(format: WeightFormat, shape: torch.Size) -> tuple[int, ...]:
    *leading, rows, columns = shape
    if format is WeightFormat.FP8_BLOCK:
        return (*leading, -(-rows // FP8_BLOCK_SIZE), -(-columns // FP8_BLOCK_SIZE))
    if format is WeightFormat.INT4:
        return (*leading, rows, -(-columns // INT4_GROUP))
    if format is WeightFormat.NVFP4:
        return (*leading, rows, -(-columns // NVFP4_GROUP))
    return (*leading, rows)
