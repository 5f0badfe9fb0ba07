"""Random arguments for kernels, small enough for the interpreter; the benchmarks' at their size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Weight = Tensor | QuantizedWeight


class ExpertArguments(NamedTuple):
    """Of `moe_experts`, in its order."""

    hidden: Tensor
    expert_index: Tensor
    expert_weight: Tensor
    gate_up_proj: Weight
    down_proj: Weight


def random_weight(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Such that a product keeps the size of its activations."""
    values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return (values * shape[-1] ** -0.5).to(dtype)


def stored(weight: Tensor, format: WeightFormat | None) -> Weight:
    """As kernels take it: quantised and in their order, or as it is."""
    return weight if format is None else quantize(weight, format).prepared_for_kernel()


def expert_arguments(
    tokens: int,
    *,
    size: int = 96,
    inner_size: int = 80,
    experts: int = 5,
    top_k: int = 2,
    dtype: torch.dtype = torch.float32,
    format: WeightFormat | None = None,
    device: torch.device,
    seed: int = 0,
) -> ExpertArguments:
    """Tokens routed at random."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator, device=device).to(dtype)
    chances = torch.rand(tokens, experts, generator=generator, device=device)
    share = torch.rand(tokens, top_k, generator=generator, device=device) + 0.1
    gate_up = random_weight((experts, 2 * inner_size, size), dtype, generator, device)
    down = random_weight((experts, size, inner_size), dtype, generator, device)
    return ExpertArguments(
        hidden,
        chances.topk(top_k).indices,
        share / share.sum(-1, keepdim=True),
        stored(gate_up, format),
        stored(down, format),
    )
