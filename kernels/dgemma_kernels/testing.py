"""How a kernel is compared with its twin: for tests and for the check before every benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor


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
    """Inside, `torch.empty` and `empty_like` are full of NaN, or of a large integer.

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
    return tensor.fill_(_LARGE_INTEGER & torch.iinfo(tensor.dtype).max)
