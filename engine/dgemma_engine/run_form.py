"""In which form a model runs fastest on this CPU: measured once, at its load, on one of its layers.

bfloat16 halves the bytes, and is fast where the CPU multiplies it itself (AVX512-BF16, AMX); where
it does not, it is many times slower. No flag says which of the two a virtual machine will show.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor

from .attention import build_rotary
from .model import DiffusionGemma, Layer

_CANVAS_TOKENS = 64
_RUNS = 4
# Nearer than this the choice would be noise, and float32 rounds less.
_LEAST_GAIN = 1.25


@torch.no_grad()
def fastest_dtype(model: DiffusionGemma) -> torch.dtype:
    """float32 or bfloat16, whichever runs the model's first layer faster on a canvas of 64.

    Args:
        model: in float32, on the CPU. Not modified.
    """
    plain = model.layers[0]
    assert isinstance(plain, Layer)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = plain if dtype is torch.float32 else copy.deepcopy(plain).to(dtype)
        seconds[dtype] = _seconds(layer, torch.zeros(1, _CANVAS_TOKENS, model.config.hidden_size))
    is_worth_it = seconds[torch.float32] > _LEAST_GAIN * seconds[torch.bfloat16]
    return torch.bfloat16 if is_worth_it else torch.float32


def _seconds(layer: Layer, hidden: Tensor) -> float:
    """The shortest of a few runs: the one that other programs disturbed least."""
    dtype = layer.layer_scalar.dtype
    hidden = torch.randn_like(hidden).to(dtype)
    rotary = build_rotary(layer.config, torch.arange(_CANVAS_TOKENS)[None], dtype)
    mask = torch.ones(1, 1, _CANVAS_TOKENS, _CANVAS_TOKENS, dtype=torch.bool)
    best = float("inf")
    for _ in range(1 + _RUNS):
        started = time.perf_counter()
        layer(hidden, rotary, mask, layer.layer_scalar)
        best = min(best, time.perf_counter() - started)
    return best
