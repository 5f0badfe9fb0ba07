"""Products with one weight, and the gated network made of them, against their twins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from dgemma_kernels import backend, gated_mlp, linear
from dgemma_kernels.gated_mlp import gated_mlp_reference
from dgemma_kernels.gated_mlp.kernel import gated_mlp_triton
from dgemma_kernels.linear import linear_reference
from dgemma_kernels.linear.kernel import linear_triton
from dgemma_kernels.testing import DTYPES, assert_close, random_weight, stored
from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize

pytestmark = pytest.mark.usefixtures("kernels")


def arguments(
    tokens: int,
    shape: tuple[int, int],
    format: WeightFormat | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor | QuantizedWeight, Tensor]:
    """Activations, a weight, and what the twin makes of them in float32, rounded once."""
    generator = torch.Generator(device).manual_seed(3)
    hidden = torch.randn(tokens, shape[1], generator=generator, device=device).to(dtype)
    weight = stored(random_weight(shape, dtype, generator, device), format)
    plain = weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
    return hidden, weight, linear_reference(hidden.float(), plain.float()).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", [None, *WeightFormat])
def test_each_form_is_its_dequantised_twin(
    format: WeightFormat | None, dtype: torch.dtype, device: torch.device
) -> None:
    """At sizes that are no multiple of a block or a group."""
    hidden, weight, expected = arguments(7, (72, 200), format, dtype, device)
    assert_close("linear", expected, linear_triton(hidden, weight))


@pytest.mark.parametrize("tokens", [1, 16, 17, 70])
def test_any_number_of_tokens(tokens: int, device: torch.device) -> None:
    """Blocks of 16, 32 and 64 tokens, and more than one block."""
    hidden, weight, expected = arguments(tokens, (40, 96), WeightFormat.FP8, torch.bfloat16, device)
    assert_close("linear", expected, linear(hidden, weight))
    assert backend.report()["linear"] == "triton"


@pytest.mark.parametrize("splits", [2, 3, 5])
@pytest.mark.parametrize("format", [WeightFormat.FP8_BLOCK, WeightFormat.NVFP4])
def test_splitting_the_sum_changes_nothing(
    format: WeightFormat, splits: int, device: torch.device
) -> None:
    """Parts that are not equally long, and one that is empty; the same bits every time."""
    hidden, weight, expected = arguments(5, (24, 448), format, torch.float16, device)
    actual = linear_triton(hidden, weight, splits)
    assert_close("linear", expected, actual)
    assert torch.equal(actual, linear_triton(hidden, weight, splits))


def test_activations_may_lie_apart_and_have_any_shape(device: torch.device) -> None:
    """Leading dimensions are kept; a slice and a transposed tensor are read as they lie."""
    hidden, weight, expected = arguments(12, (40, 64), WeightFormat.INT8, torch.float32, device)
    wide = torch.full((12, 80), float("nan"), device=device)
    wide[:, :64] = hidden
    assert_close("slice", expected, linear(wide[:, :64], weight))
    assert_close("transposed", expected, linear(hidden.t().contiguous().t(), weight))
    shaped = linear(hidden.reshape(3, 4, 64), weight)
    assert_close("shaped", expected.reshape(3, 4, 40), shaped)
    assert linear(hidden[:0], weight).shape == (0, 40)


def test_what_the_kernel_leaves_to_torch(device: torch.device) -> None:
    """Plain weights, and 4-bit ones in the public order; the report says which."""
    hidden, weight, expected = arguments(4, (24, 64), None, torch.float32, device)
    assert_close("linear", expected, linear(hidden, weight))
    assert backend.report()["linear"] == "reference: plain weights are left to torch"
    assert isinstance(weight, Tensor)
    public = quantize(weight, WeightFormat.INT4)
    assert torch.equal(linear(hidden, public), linear_reference(hidden, public))
    assert "prepared_for_kernel()" in backend.report()["linear"]


@pytest.mark.parametrize("splits", [None, 2])
@pytest.mark.parametrize("format", list(WeightFormat))
def test_the_gated_network_is_its_twin(
    format: WeightFormat, splits: int | None, device: torch.device
) -> None:
    """Every form, with whole and split sums, each part of which is of some columns."""
    generator = torch.Generator(device).manual_seed(4)
    hidden = torch.randn(2, 3, 256, generator=generator, device=device, dtype=torch.float16)
    weights = [
        stored(random_weight(shape, torch.float16, generator, device), format)
        for shape in ((72, 256), (72, 256), (40, 72))
    ]
    plain = [w.dequantize(torch.float32) for w in weights if isinstance(w, QuantizedWeight)]
    expected = gated_mlp_reference(hidden.float(), *plain).half()
    assert_close("gated_mlp", expected, gated_mlp_triton(hidden, *weights, splits))
    assert_close("gated_mlp", expected, gated_mlp(hidden, *weights))
    assert backend.report()["gated_mlp"] == "triton"


def test_one_token_reads_bytes() -> None:
    """INT8 times one vector is what it is turned back, whatever the shape around it."""
    generator = torch.Generator().manual_seed(5)
    weight = quantize(random_weight((40, 64), torch.float32, generator, "cpu"), WeightFormat.INT8)
    hidden = torch.randn(1, 1, 64, generator=generator)
    expected = linear_reference(hidden, weight.dequantize(torch.float32))
    assert expected.shape == (1, 1, 40)
    assert_close("linear", expected, linear_reference(hidden, weight))
    assert_close("linear", expected[0, 0], linear_reference(hidden[0, 0], weight))
