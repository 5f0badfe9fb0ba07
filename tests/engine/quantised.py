"""Tiny checkpoints in the forms in which quantised ones are published, and what they stand for.

The codes and scales are drawn, not rounded from weights, and turned into numbers here by loops of
their own: nothing is shared with the code under test but the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgemma_engine.model import DiffusionGemma
from dgemma_engine.stored_model import our_name_to_stored

from .tiny import build_model, build_tokenizer, config_json

# The weight as stored, by the ends of its names, and the numbers it stands for.
Stored = tuple[dict[str, Tensor], Tensor]
Draw = Callable[[int, int, torch.Generator], Stored]
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fp8_by_rows(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """compressed-tensors FP8: a scale a row, in bfloat16."""
    codes = (torch.randn(rows, columns, generator=generator) * 100).to(torch.float8_e4m3fn)
    scale = (torch.rand(rows, 1, generator=generator) + 0.5).bfloat16() / 100 / columns**0.5
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale.float()


def fp8_by_matrix(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """ModelOpt FP8: one scale."""
    codes = (torch.randn(rows, columns, generator=generator) * 100).to(torch.float8_e4m3fn)
    scale = (torch.rand((), generator=generator) + 0.5) / 100 / columns**0.5
    scales = {"weight_scale": scale, "input_scale": torch.tensor(0.3)}
    return {"weight": codes, **scales}, codes.float() * scale


def fp8_by_blocks(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """A scale for 128 x 128, which multiplies, whatever its name says."""
    codes = (torch.randn(rows, columns, generator=generator) * 100).to(torch.float8_e4m3fn)
    grid = (-(-rows // 128), -(-columns // 128))
    scale = (torch.rand(grid, generator=generator) + 0.5) / 100 / columns**0.5
    weight = codes.float()
    for row in range(rows):
        for block in range(grid[1]):
            weight[row, 128 * block : 128 * (block + 1)] *= scale[row // 128, block]
    return {"weight": codes, "weight_scale_inv": scale}, weight


def int8_by_rows(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """compressed-tensors int8."""
    codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    scale = (torch.rand(rows, 1, generator=generator) + 0.5) / 80 / columns**0.5
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def _nvfp4(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes (N, K/2), scales (N, K/16), and what they stand for without a global scale."""
    nibbles = torch.randint(0, 16, (rows, columns), generator=generator)
    scale = (torch.rand(rows, columns // 16, generator=generator) * 200 + 50).to(
        torch.float8_e4m3fn
    )
    weight = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            code = int(nibbles[row, column])
            value = _MAGNITUDES[code % 8] * (-1 if code >= 8 else 1)
            weight[row, column] = value * float(scale[row, column // 16])
    packed = torch.zeros(rows, columns // 2, dtype=torch.uint8)
    for column in range(columns):
        packed[:, column // 2] += (nibbles[:, column] << (4 * (column % 2))).to(torch.uint8)
    return packed, scale, weight


def nvfp4_of_modelopt(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """One global scale that multiplies; every matrix has its own."""
    packed, scale, weight = _nvfp4(rows, columns, generator)
    factor = (torch.rand((), generator=generator) + 0.5) / 400 / columns**0.5
    scales = {"weight_scale": scale, "weight_scale_2": factor, "input_scale": torch.tensor(0.2)}
    return {"weight": packed, **scales}, weight * factor


def nvfp4_of_compressed_tensors(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """The same, but by its global scale is divided."""
    packed, scale, weight = _nvfp4(rows, columns, generator)
    divisor = 400 * columns**0.5 / (torch.rand(1, generator=generator) + 0.5)
    scales = {
        "weight_scale": scale,
        "weight_global_scale": divisor,
        "input_global_scale": torch.ones(1),
    }
    return {"weight_packed": packed, **scales}, weight / divisor


def int4_of_compressed_tensors(rows: int, columns: int, generator: torch.Generator) -> Stored:
    """Eight columns a 32-bit number, the lowest bits first, each with 8 added; groups of 128."""
    codes = torch.randint(-8, 8, (rows, columns), generator=generator)
    scale = (torch.rand(rows, -(-columns // 128), generator=generator) + 0.5) / 5 / columns**0.5
    scale = scale.bfloat16()
    packed = torch.zeros(rows, columns // 8, dtype=torch.int64)
    weight = torch.zeros(rows, columns)
    for column in range(columns):
        packed[:, column // 8] += (codes[:, column] + 8) << (4 * (column % 8))
        weight[:, column] = codes[:, column] * scale[:, column // 128].float()
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    shape = torch.tensor([rows, columns])
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": shape}, weight


def save_quantised(
    folder: Path,
    draw: Draw,
    chosen: Callable[[str], bool],
    files: dict[str, dict[str, Any]],
    *,
    prefix: str = "model.decoder.",
    **text_config: Any,
) -> DiffusionGemma:
    """Write a checkpoint whose `chosen` matrices are quantised, each expert's on its own.

    Args:
        draw: a quantised matrix.
        chosen: by the name of a matrix in the model, "layers.0.experts.3.up_proj" for an expert's.
        files: what is added to config.json, or written beside it, by file name.
        prefix: of the names of experts.
    Returns:
        a model of the numbers that the checkpoint stands for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    model = build_model(**text_config)
    stored: dict[str, Tensor] = {}

    def matrix(name: str, tensor: Tensor, own_prefix: str) -> Tensor:
        """Store one matrix; the numbers it stands for."""
        if not chosen(name):
            stored[f"{own_prefix}{name}.weight"] = tensor.contiguous()
            return tensor
        parts, weight = draw(*tensor.shape, generator)
        stored.update({f"{own_prefix}{name}.{end}": part for end, part in parts.items()})
        return weight

    for name, tensor in model.state_dict().items():
        if name.endswith(".experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                halves = zip(("gate_proj", "up_proj"), both.chunk(2), strict=True)
                stem = name.removesuffix("gate_up_proj")
                both.copy_(
                    torch.cat([matrix(f"{stem}{expert}.{end}", t, prefix) for end, t in halves])
                )
        elif name.endswith(".experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for expert, down in enumerate(tensor):
                down.copy_(matrix(f"{stem}{expert}.down_proj", down, prefix))
        elif name.endswith("_proj.weight"):
            tensor.copy_(matrix(name.removesuffix(".weight"), tensor, "model.decoder."))
        else:
            stored[our_name_to_stored(name)] = tensor.contiguous()
    save_file(stored, folder / "model.safetensors")
    config = {**config_json(**text_config), **files.pop("config.json", {})}
    for file, content in {"config.json": config, **files}.items():
        (folder / file).write_text(json.dumps(content))
    build_tokenizer(("<pad>", "<eos>", "<bos>")).save(str(folder / "tokenizer.json"))
    return model
