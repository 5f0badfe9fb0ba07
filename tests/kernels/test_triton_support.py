"""What kernels share, by itself: rounding, activations, blocks that do not fit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from dgemma_kernels import triton_support
from dgemma_kernels.backend import KernelDoesNotFit
from dgemma_kernels.testing import assert_close
from dgemma_kernels.triton_support import Blocks, gelu_tanh, launch, round_to


@triton.jit
def _apply(source, target, DTYPE: tl.constexpr, GELU: tl.constexpr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    value = tl.load(source + index)
    if GELU:
        value = gelu_tanh(value)
    tl.store(target + index, round_to(value, DTYPE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_torchs(dtype: torch.dtype, device: torch.device) -> None:
    """To nearest, ties to even, in the interpreter too, which by itself truncates to bfloat16."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(device) * 20
    values[:2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # halfway between two bfloat16
    actual = torch.empty_like(values, dtype=dtype)
    _apply[(1,)](values, actual, triton_support.TRITON_DTYPES[dtype], GELU=False, SIZE=4096)
    assert torch.equal(actual, values.to(dtype))


def test_gelu_is_torchs(device: torch.device) -> None:
    """Also where its exponential would overflow."""
    values = torch.cat(
        (torch.linspace(-8, 8, 2040), torch.tensor([0, -0.0, 90, -90, 1e4, -1e4, 40, -40]))
    )
    values = values.to(device)
    actual = torch.empty_like(values)
    _apply[(1,)](values, actual, tl.float32, GELU=True, SIZE=2048)
    expected = torch.nn.functional.gelu(values.double(), approximate="tanh").float()
    assert_close("gelu", expected, actual)


def test_blocks_that_do_not_fit_give_way_to_smaller_ones() -> None:
    """The next configuration is tried, and the one that fits is remembered."""
    tried: list[int] = []
    configs = [Blocks(size, 64, 4, 3) for size in (128, 64, 32)]

    def run(blocks: Blocks) -> None:
        tried.append(blocks.columns)
        if blocks.columns > 64:
            raise OutOfResources(1 << 20, 101376, "shared memory")

    for _ in range(2):
        launch("test_blocks", configs, run)
    assert tried == [128, 64, 64]
    with pytest.raises(KernelDoesNotFit, match="shared memory"):
        launch("test_no_blocks", configs[:1], run)
