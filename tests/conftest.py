"""For all tests: one thread a process, and Triton as an interpreter where there is no GPU.

The models here are tiny. On a busy machine two threads wait for each other: a fill beside another
program took 4.4 s instead of 0.4 s.

Triton's own functions are interpreted only if it was first imported so, and transformers imports it
too: this file comes before all tests. `tests/kernels/conftest.py` has the rest.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DGEMMA_COMPILE"] = "0"  # in engines' processes: the compiler would run beside the tests

import torch

from dgemma_kernels.backend import has_triton

if has_triton() and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401


def pytest_collection_finish() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
