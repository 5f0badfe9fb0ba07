"""How a kernel is compared with its twin, and on which arguments: for tests and for benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from .weights import QuantizedWeight, WeightFormat, quantize


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be off, as parts of the expected one's size."""

    frobenius: float  # of the difference, as a part of the expected tensor's
    largest: float  # the largest difference, as a part of the largest expected value


# Of the results' dtype. A kernel sums in float32 and in another order, and rounds once where a twin
# rounds after every operation: in half precision that is what both are off.
TOLERANCES = {
    torch.float32: Tolerance(1e-5, 1e-5),
    torch.float16: Tolerance(1e-3, 2e-3),
    torch.bfloat16: Tolerance(4e-3, 1e-2),
}

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Weight = Tensor | QuantizedWeight
_LARGE_INTEGER = 0x3A3A3A3A


def assert_close(
    name: str, expected: Tensor, actual: Tensor, tolerance: Tolerance | None = None
) -> None:
    """Fail with the measured difference unless two tensors agree.

    Args:
        name: for the message.
        expected: the twin's result.
        actual: the same shape and dtype. Integers must be equal.
        tolerance: of the dtype's row in TOLERANCES if None.
    Raises:
        AssertionError: with shape, both measures and what they may be.
    """
    assert actual.shape == expected.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    )
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    if not expected.is_floating_point():
        assert torch.equal(expected, actual), f"{name}: {(expected != actual).sum()} values differ"
        return
    assert torch.isfinite(expected).all(), f"{name}: the expected tensor is not finite"
    bad = int((~torch.isfinite(actual)).sum())
    assert bad == 0, f"{name}: {bad} of {actual.numel()} values are not finite"
    if expected.numel() == 0:
        return
    allowed = tolerance or TOLERANCES[expected.dtype]
    difference = actual.double() - expected.double()
    size = expected.double().norm().clamp_min(1e-30)
    largest_size = expected.double().abs().amax().clamp_min(1e-30)
    frobenius = float(difference.norm() / size)
    largest = float(difference.abs().amax() / largest_size)
    assert frobenius <= allowed.frobenius and largest <= allowed.largest, (  # noqa: PT018
        f"{name} {tuple(expected.shape)} {expected.dtype}: off by {frobenius:.2e} of the norm"
        f" (allowed {allowed.frobenius:.0e}), at most {largest:.2e} of the largest value"
        f" (allowed {allowed.largest:.0e})"
    )


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside, `torch.empty` and `empty_like` are full of NaN, of a large integer, or of True.

    An element that a kernel forgets to write then fails the comparison.
    """
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        return _poison(empty(*args, **kwargs))

    def poisoned_like(*args: Any, **kwargs: Any) -> Tensor:
        return _poison(empty_like(*args, **kwargs))

    with (
        mock.patch.object(torch, "empty", poisoned),
        mock.patch.object(torch, "empty_like", poisoned_like),
    ):
        yield


def _poison(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(float("nan"))
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(_LARGE_INTEGER & torch.iinfo(tensor.dtype).max)


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
    return (values / math.sqrt(shape[-1])).to(dtype)


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
    touched: int | None = None,
    device: torch.device,
    seed: int = 0,
) -> ExpertArguments:
    """Tokens routed at random.

    Args:
        tokens, size, inner_size, experts, top_k: T, D, F, E, A.
        dtype: of the activations and of plain weights.
        format: of the weights; None for plain ones.
        touched: how many experts may be chosen; None for all.
        device: where all of it is made.
        seed: the same on one device gives the same arguments.
    """
    generator = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator, device=device).to(dtype)
    chances = torch.rand(tokens, touched or experts, generator=generator, device=device)
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
