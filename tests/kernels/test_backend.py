"""Which form of an op runs, and that it says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dgemma_kernels import backend
from dgemma_kernels.backend import Backend, KernelDoesNotFit, attempt, use_backend, wants_kernel

CPU = torch.device("cpu")


def test_a_cpu_runs_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run on it only in the interpreter, and only when a test asks for them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.backend_for(CPU) is Backend.REFERENCE
    with use_backend(Backend.TRITON):
        assert backend.backend_for(CPU) is Backend.TRITON
        monkeypatch.delenv("TRITON_INTERPRET")
        assert backend.backend_for(CPU) is Backend.REFERENCE
    assert not wants_kernel("an op", CPU)
    assert backend.report()["an op"].startswith("reference: no kernel is asked for")


def test_a_kernel_that_does_not_fit_gives_way_to_its_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it failed it is not tried again, and the report says why."""
    monkeypatch.setattr(backend, "_failed", {})
    tried = []

    def kernel() -> str:
        tried.append(True)
        raise KernelDoesNotFit("not enough shared memory")

    for _ in range(2):
        assert attempt("an op", None, kernel, lambda: "twin") == "twin"
    assert len(tried) == 1
    expected = "reference: KernelDoesNotFit: not enough shared memory"
    assert backend.report()["an op"] == expected
    assert attempt("another", None, lambda: "kernel", lambda: "twin") == "kernel"
    assert backend.report()["another"] == "triton"
    assert attempt("another", "no such shape", lambda: "kernel", lambda: "twin") == "twin"
    assert backend.report()["another"] == "reference: no such shape"


def test_a_machine_without_a_compiler_runs_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton builds its launcher with a C compiler. Memory that is short is no reason, though."""
    monkeypatch.setattr(backend, "_failed", {})

    def kernel(error: Exception) -> str:
        raise error

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    missing = RuntimeError("Failed to find C compiler")
    with pytest.raises(RuntimeError, match="C compiler"):  # in the interpreter it would be a bug
        attempt("an op", None, lambda: kernel(missing), lambda: "twin")
    monkeypatch.delenv("TRITON_INTERPRET")
    short = torch.OutOfMemoryError("short")
    with pytest.raises(torch.OutOfMemoryError):
        attempt("an op", None, lambda: kernel(short), lambda: "twin")
    assert attempt("an op", None, lambda: kernel(missing), lambda: "twin") == "twin"
    assert backend.report()["an op"] == "reference: RuntimeError: Failed to find C compiler"


def test_what_fails_in_a_capture_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a CUDA graph is captured more is forbidden than else: no kernel is put away for it."""
    monkeypatch.setattr(backend, "_failed", {})
    monkeypatch.setattr(backend, "_report", {})
    monkeypatch.setattr(backend, "_is_capturing", lambda: True)

    def fails() -> str:
        raise KernelDoesNotFit("not while a graph is captured")

    with pytest.raises(KernelDoesNotFit, match="not while a graph"):
        attempt("op", None, fails, lambda: "twin")
    monkeypatch.setattr(backend, "_is_capturing", lambda: False)
    assert attempt("op", None, lambda: "kernel", lambda: "twin") == "kernel"


def test_gradients_are_the_twins_work() -> None:
    """No kernel has a backward pass."""
    weight = torch.ones(2, requires_grad=True)
    assert backend.why_not_these(weight) == "gradients are asked for"
    with torch.no_grad():
        assert backend.why_not_these(weight) is None


def test_a_wrong_variable_says_what_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """DGEMMA_KERNELS is for debugging; a typo in it is not taken for anything."""
    monkeypatch.setenv("DGEMMA_KERNELS", "cuda")
    with pytest.raises(ValueError, match="it may be 'reference', 'triton'"):
        backend._from_environment()


def test_importing_the_ops_brings_no_triton() -> None:
    """The import of Triton takes 0.4 s, which a CPU would wait for in vain."""
    code = "import sys, dgemma_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
