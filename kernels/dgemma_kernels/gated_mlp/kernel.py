"""Gated feed-forward network with quantised weights in Triton.

Gate and up are products like any other, in parts where K is split; what adds their parts also
applies the activation, and rounds once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..linear.kernel import linear_triton, partial_sums
from ..triton_support import TRITON_DTYPES, Blocks, gelu_tanh, round_to
from ..weights import QuantizedWeight

_COLUMNS = 1024


def gated_mlp_triton(
    hidden: Tensor,
    gate_proj: Tensor | QuantizedWeight,
    up_proj: Tensor | QuantizedWeight,
    down_proj: Tensor | QuantizedWeight,
    splits: int | None = None,
) -> Tensor:
    """As `gated_mlp_reference`, in float32 up to the activation. splits: as in `linear_triton`."""
    gate = partial_sums(hidden, gate_proj, splits)  # (S, T, F)
    up = partial_sums(hidden, up_proj, splits)
    shape = (*hidden.shape[:-1], gate_proj.shape[0])
    activated = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    count = activated.numel()
    if count:
        _gated_sum_kernel[(triton.cdiv(count, _COLUMNS),)](
            gate,
            up,
            activated,
            count,
            GATE_SPLITS=gate.shape[0],
            UP_SPLITS=up.shape[0],
            DTYPE=TRITON_DTYPES[hidden.dtype],
            COLUMNS=_COLUMNS,
            **Blocks(0, 0, num_warps=4, num_stages=1).options(),
        )
    return linear_triton(activated, down_proj, splits)


@triton.jit
def _gated_sum_kernel(
    gate,  # (GATE_SPLITS, count) float32
    up,  # (UP_SPLITS, count) float32
    activated,  # (count)
    count,
    GATE_SPLITS: tl.constexpr,
    UP_SPLITS: tl.constexpr,
    DTYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mask = place < count
    gate_total = tl.zeros([COLUMNS], tl.float32)
    up_total = tl.zeros([COLUMNS], tl.float32)
    for part in range(GATE_SPLITS):
        gate_total += tl.load(gate + part * count + place, mask=mask, other=0.0)
    for part in range(UP_SPLITS):
        up_total += tl.load(up + part * count + place, mask=mask, other=0.0)
    tl.store(activated + place, round_to(gelu_tanh(gate_total) * up_total, DTYPE), mask=mask)
