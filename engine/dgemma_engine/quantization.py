"""Weights stored in 8 bits: a sign and seven bits for each, and a scale for each row.

How our own checkpoints are shipped. They are turned back when they are loaded: on a CPU a canvas of
64 tokens runs faster in bfloat16 or float32 than in any 8-bit form. Norms, layer scalars and the
router, which decide much with few numbers, stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

QUANT_METHOD = "dgemma_int8"  # in config.json's quantization_config
SCALE_SUFFIX = "_scale"  # of the name of a weight's scales
_LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, by rows of the last dimension, to the nearest of 255 steps.

    Args:
        weight: (..., N) of any float dtype. Not modified.
    Returns:
        int8 (..., N) and float32 scales (...); int8 * scale is within half a scale of the weight.
    """
    values = weight.float()
    scale = values.abs().amax(dim=-1) / _LARGEST
    steps = values / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    return steps.round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def dequantize_rows(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse: int8 (..., N) and float32 (...) to (..., N) of `dtype`."""
    return (quantized.float() * scale.float()[..., None]).to(dtype)


def is_quantizable(stored_name: str, tensor: Tensor) -> bool:
    """Whether a tensor is stored in 8 bits: matrices, but not the router's."""
    return tensor.ndim >= 2 and tensor.is_floating_point() and ".router." not in stored_name


def save_int8(tensors: Mapping[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    """Write safetensors with 8-bit matrices: one file, or shards and their index.

    Args:
        tensors: by stored name, float. What is not quantised is written in bfloat16.
        folder: exists.
        max_shard_bytes: a file's tensors together; one tensor alone may be more.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for group in _stored_groups(tensors):
        group_bytes = sum(tensor.nbytes for tensor in group.values())
        if shards[-1] and size + group_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1] |= group
        size += group_bytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=1) + "\n", "utf-8"
    )


def _stored_groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Each tensor as it is stored: a weight with its scales, or itself."""
    for name, tensor in tensors.items():
        if is_quantizable(name, tensor):
            quantized, scale = quantize_rows(tensor)
            yield {name: quantized.contiguous(), name + SCALE_SUFFIX: scale.contiguous()}
        else:
            yield {name: tensor.bfloat16().contiguous()}
