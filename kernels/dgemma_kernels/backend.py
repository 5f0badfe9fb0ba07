"""Which form of an op runs: its kernel, or its plain PyTorch twin.

An op's public function asks `wants_kernel`, and runs its kernel by `attempt`, which falls back to
the twin where the kernel does not fit. Both write down what was taken and why: `report`. This
module imports no triton; what does is imported at the first call on a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_VARIABLE = "DGEMMA_KERNELS"
_OLDEST_CAPABILITY = (8, 0)  # of the GPUs that the kernels are compiled for in the tests

Result = TypeVar("Result")


class Backend(str, Enum):
    """REFERENCE is plain PyTorch and runs everywhere; TRITON needs an NVIDIA GPU."""

    REFERENCE = "reference"
    TRITON = "triton"


class KernelDoesNotFit(Exception):
    """No configuration of a kernel runs here; the message says what the last one lacked."""


_asked: Backend | None = None
_report: dict[str, str] = {}
_failed: dict[str, str] = {}


def _from_environment() -> Backend | None:
    value = os.environ.get(_VARIABLE)
    if not value:
        return None
    try:
        return Backend(value)
    except ValueError:
        names = ", ".join(repr(backend.value) for backend in Backend)
        raise ValueError(f"{_VARIABLE} is {value!r}; it may be {names}") from None


_override = _from_environment()


def backend_for(device: torch.device) -> Backend:
    """The form that ops on this device take, unless a kernel does not support their arguments.

    A GPU takes TRITON if it is the current one and new enough; a CPU only in Triton's interpreter
    and inside `use_backend`. torch.compile traces the twin. The variable
    DGEMMA_KERNELS=reference|triton, read at import, is for debugging: `reference` turns the kernels
    off.
    """
    asked = _asked or _override
    if asked is Backend.REFERENCE or (device.type == "cpu" and _asked is None):
        return Backend.REFERENCE
    if torch.compiler.is_compiling():
        return Backend.REFERENCE
    if device.type == "cuda":
        # Triton launches on the current GPU, wherever its arguments are.
        current = torch.cuda.current_device()
        here = device.index in (None, current) and _runs_on(current)
        return Backend.TRITON if here else Backend.REFERENCE
    interpreted = _asked is Backend.TRITON and os.environ.get("TRITON_INTERPRET") == "1"
    return Backend.TRITON if interpreted and device.type == "cpu" else Backend.REFERENCE


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """For tests and benchmarks: ops inside take this form where they can."""
    global _asked
    before, _asked = _asked, backend
    try:
        yield
    finally:
        _asked = before


def report() -> dict[str, str]:
    """For each op that ran: "triton", or "reference: " and why, of its last call."""
    return dict(_report)


def wants_kernel(op: str, device: torch.device) -> bool:
    """Whether an op shall try its kernel. Where not, that is written down."""
    if backend_for(device) is Backend.TRITON:
        return True
    _report[op] = "reference: no kernel is asked for on this device"
    return False


def attempt(
    op: str, why_not: str | None, kernel: Callable[[], Result], twin: Callable[[], Result]
) -> Result:
    """Run an op's kernel, or its twin where the kernel does not fit.

    Args:
        op: its public name.
        why_not: why the kernel does not support these arguments; None if it does.
        kernel: launches it. Where it cannot be (KernelDoesNotFit, a GPU's driver that does not know
            it, no C compiler for Triton's launcher), it is not tried again.
        twin: computes the same plainly.
    """
    why_not = why_not or _failed.get(op)
    if why_not is None:
        try:
            result = kernel()
            _report[op] = Backend.TRITON.value
            return result
        except Exception as error:
            if not _is_of_the_machine(error) or _is_capturing():
                raise
            why_not = _failed[op] = f"{type(error).__name__}: {error}"
            _log.warning("%s runs without its kernel: %s", op, why_not)
    _report[op] = f"{Backend.REFERENCE.value}: {why_not}"
    return twin()


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error is of this machine. In the interpreter it is the kernel's."""
    if isinstance(error, KernelDoesNotFit):
        return True
    is_memory = isinstance(error, torch.OutOfMemoryError)
    return not is_memory and os.environ.get("TRITON_INTERPRET") != "1"


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured: what fails there may well run outside."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def why_not_these(*tensors: Tensor) -> str | None:
    """What keeps any kernel from these arguments: gradients, which none has, or two devices."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients are asked for"
    if len({tensor.device for tensor in tensors}) > 1:
        return "the arguments are on different devices"
    return None


def has_triton() -> bool:
    """Whether Triton is installed. Does not import it."""
    return platform.system() == "Linux" and importlib.util.find_spec("triton") is not None


@functools.cache
def _runs_on(device_index: int) -> bool:
    new_enough = torch.cuda.get_device_capability(device_index) >= _OLDEST_CAPABILITY
    return torch.version.cuda is not None and has_triton() and new_enough
