"""What kernels share: rounding, activations, and the launch that takes the next smaller block.

Only kernels import this module, since it imports triton. Triton's interpreter, in which the kernels
are tested, computes bfloat16 products wrongly and truncates where it converts to bfloat16 (3.4 to
3.9): there UPCAST is true, and kernels `upcast` what they load.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from .backend import KernelDoesNotFit

INTERPRETED = bool(knobs.runtime.interpret)
UPCAST = tl.constexpr(INTERPRETED)

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@dataclass(frozen=True)
class Blocks:
    """How a kernel is launched: the part of the result that a program computes, its step along K.

    A kernel whose rows depend on its input alone leaves them 0.
    """

    columns: int
    depth: int
    num_warps: int
    num_stages: int
    rows: int = 0

    def options(self) -> dict[str, Any]:
        """What Triton is told beside a kernel's arguments. Its default for fusion warns."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }


_fitting: dict[Hashable, int] = {}


def launch(key: Hashable, configs: Sequence[Blocks], run: Callable[[Blocks], None]) -> None:
    """Launch with the first configuration that the GPU can hold, and remember it.

    Args:
        key: of the kernel and what its configurations depend on.
        configs: from the best to the smallest; at least one.
        run: launches the kernel.
    Raises:
        KernelDoesNotFit: if none runs.
    """
    error: Exception | None = None
    for index in range(_fitting.get(key, 0), len(configs)):
        try:
            run(configs[index])
            _fitting[key] = index
            return
        except (OutOfResources, CompilationError, PTXASError) as failure:
            error = failure
    raise KernelDoesNotFit(f"{key}: {type(error).__name__}: {error}") from error


@triton.jit
def upcast(value):
    """bfloat16 to float32 in the interpreter; elsewhere, and what is of another dtype, as it is.

    By its bits: the interpreter's own conversion makes subnormal numbers zero.
    """
    if UPCAST and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        value = bits.to(tl.float32, bitcast=True)
    return value


@triton.jit
def round_bf16(value):
    """float32 rounded to the nearest bfloat16, ties to even, as float32; no NaN may come in."""
    bits = value.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def round_to(value, DTYPE: tl.constexpr):
    """float32 to DTYPE, rounded to nearest in the interpreter too."""
    if UPCAST and DTYPE == tl.bfloat16:
        value = round_bf16(value)
    return value.to(DTYPE)


@triton.jit
def tanh(value):
    """From exp alone: Triton's interpreter has no tanh. Large values saturate, none overflows."""
    small = tl.exp(-2.0 * tl.abs(value))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(value < 0, -size, size)


@triton.jit
def gelu_tanh(value):
    """gelu by its tanh form, in float32."""
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return 0.5 * value * (1.0 + tanh(inner))
