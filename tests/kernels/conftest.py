"""Kernels run here in Triton's interpreter, where there is no GPU; without Triton they are skipped.

Triton reads TRITON_INTERPRET as it is imported and again at every kernel's definition and call. The
variable is therefore set by the conftest.py above, before any test can import Triton, until the
tests are collected, and then here, only while one of this folder runs: programs started by other
tests never see it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dgemma_kernels.backend import Backend, has_triton, use_backend
from dgemma_kernels.testing import poisoned_empty

INTERPRET = not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRET:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    """Where kernels run in these tests."""
    return torch.device("cpu" if INTERPRET else "cuda")


@pytest.fixture
def kernels() -> Iterator[None]:
    """Ops take their kernels, and what these allocate is full of NaN."""
    if not has_triton():
        pytest.skip("Triton is not installed")
    with use_backend(Backend.TRITON), poisoned_empty():
        yield
