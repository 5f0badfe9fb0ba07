"""Weights in fewer bits: how far each form is off, and that its parts mean what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize

FORMATS = list(WeightFormat)
SHAPES = [(1, 2), (3, 40), (2, 5, 130), (2, 2, 129, 256), (130, 16)]


def random_weight(shape: tuple[int, ...], seed: int = 0, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def bound(weight: Tensor, quantized: QuantizedWeight) -> Tensor:
    """The largest error that the form allows, for each weight."""
    magnitude = weight.abs()
    format = quantized.format
    if format is WeightFormat.INT8:
        return 0.501 * quantized.scale[..., None].expand_as(weight)
    if format is WeightFormat.FP8:  # 3 bits of mantissa, and steps of 2^-9 below 2^-6
        return torch.maximum(magnitude / 16, quantized.scale[..., None] * 2.0**-10) * 1.001
    if format is WeightFormat.FP8_BLOCK:
        scale = quantized.scale.repeat_interleave(128, -2)[..., : weight.shape[-2], :]
        scale = scale.repeat_interleave(128, -1)[..., : weight.shape[-1]]
        return torch.maximum(magnitude / 16, scale * 2.0**-10) * 1.001
    group = 128 if format is WeightFormat.INT4 else 16
    scale = quantized.scale.float().repeat_interleave(group, -1)[..., : weight.shape[-1]]
    if format is WeightFormat.INT4:
        return 0.501 * scale
    # Half of the widest step (4 to 6), plus what the rounding of the group's scale to e4m3 cuts off
    # of its largest weight: at most a sixteenth, or half of the least scale there is.
    assert quantized.global_scale is not None
    largest = torch.nn.functional.pad(magnitude, (0, -weight.shape[-1] % 16))
    largest = largest.unflatten(-1, (-1, 16)).amax(-1).repeat_interleave(16, -1)
    largest = largest[..., : weight.shape[-1]]
    least = quantized.global_scale[..., None, None] * 6 * 2.0**-10
    return scale * quantized.global_scale[..., None, None] + largest / 16 + least


@settings(max_examples=80, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    seed=st.integers(0, 1000),
    shape=st.sampled_from(SHAPES),
    size=st.floats(-20.0, 20.0),
)
def test_weights_are_off_by_no_more_than_their_form_allows(
    format: WeightFormat, seed: int, shape: tuple[int, ...], size: float
) -> None:
    """Whatever the weights' size, and where K is no multiple of a group."""
    weight = random_weight(shape, seed, 2.0**size)
    quantized = quantize(weight, format)
    assert quantized.shape == weight.shape
    back = quantized.dequantize(torch.float32)
    assert back.shape == weight.shape
    assert ((back - weight).abs() <= bound(weight, quantized)).all()


@pytest.mark.parametrize(
    ("format", "most"),
    [("int8", 0.01), ("fp8", 0.03), ("fp8_block", 0.03), ("int4", 0.12), ("nvfp4", 0.10)],
)
def test_normal_weights_keep_this_much(format: str, most: float) -> None:
    """The error's norm for normally distributed weights, as a part of the weights' norm."""
    weight = random_weight((256, 512))
    back = quantize(weight, WeightFormat(format)).dequantize(torch.float32)
    error = float((back - weight).norm() / weight.norm())
    assert most / 2 < error < most


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_rounded_is_rounded_to_itself(format: WeightFormat) -> None:
    """Quantising twice changes nothing, or a checkpoint would drift when it is converted."""
    once = quantize(random_weight((4, 256)), format).dequantize(torch.float32)
    again = quantize(once, format).dequantize(torch.float32)
    # The scale of int4 is rounded to bfloat16 again, after 7 steps of it were.
    rtol = 2**-7 if format is WeightFormat.INT4 else 1e-6
    torch.testing.assert_close(again, once, rtol=rtol, atol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: WeightFormat) -> None:
    """No division by zero, and no NaN; a zero matrix beside another, a zero row in one."""
    weight = random_weight((2, 4, 32))
    weight[0] = 0
    weight[1, 2] = 0
    back = quantize(weight, format).dequantize(torch.bfloat16)
    assert not back[0].any()
    assert not back[1, 2].any()
    assert back[1, 0].any()


@pytest.mark.parametrize("format", FORMATS)
def test_a_stack_in_parts_is_the_stack_in_one_piece(format: WeightFormat) -> None:
    """A checkpoint is quantised expert by expert."""
    weight = random_weight((3, 10, 144))
    whole = quantize(weight, format)
    for index in range(3):
        part = quantize(weight[index], format)
        assert torch.equal(part.data.view(torch.uint8), whole[index].data.view(torch.uint8))
        assert torch.equal(part.dequantize(torch.float32), whole[index].dequantize(torch.float32))


@pytest.mark.parametrize("columns", [2, 32, 64, 96, 128, 200, 704])
@pytest.mark.parametrize("format", [WeightFormat.INT4, WeightFormat.NVFP4])
def test_the_kernels_order_means_the_same(format: WeightFormat, columns: int) -> None:
    """Reordering and padding change no weight."""
    public = quantize(random_weight((2, 3, columns)), format)
    prepared = public.prepared_for_kernel()
    assert prepared.split in (32, 64, 128)
    assert prepared.shape == public.shape
    assert prepared.prepared_for_kernel() is prepared
    assert torch.equal(prepared.dequantize(torch.float32), public.dequantize(torch.float32))
    one = prepared[1].dequantize(torch.float32)
    assert torch.equal(one, public[1].dequantize(torch.float32))


def test_nibbles_lie_as_public_checkpoints_have_them() -> None:
    """The low nibble is the even column; the codes and both scales multiply to the weight."""
    data = torch.tensor([[0x21, 0xF7]], dtype=torch.uint8)
    scale = torch.full((1, 1), 2.0).to(torch.float8_e4m3fn)
    weight = QuantizedWeight(WeightFormat.NVFP4, data, scale, torch.tensor(0.5))
    expected = torch.tensor([[0.5, 1.0, 6.0, -6.0]])
    assert torch.equal(weight.dequantize(torch.float32), expected)
    steps = QuantizedWeight(WeightFormat.INT4, data, torch.tensor([[3.0]]).bfloat16())
    assert torch.equal(steps.dequantize(torch.float32), torch.tensor([[-21.0, -18.0, -3.0, 21.0]]))


def test_matrices_that_were_joined_keep_their_scales() -> None:
    """A global scale a row: gate and up of a public checkpoint may have one each."""
    gate, up = (quantize(random_weight((4, 32), seed), WeightFormat.NVFP4) for seed in (1, 2))
    joined = QuantizedWeight(
        WeightFormat.NVFP4,
        torch.cat((gate.data, up.data)),
        torch.cat((gate.scale, up.scale)),
        torch.stack((gate.global_scale, up.global_scale)).repeat_interleave(4),
    )
    expected = torch.cat((gate.dequantize(torch.float32), up.dequantize(torch.float32)))
    assert torch.equal(joined.dequantize(torch.float32), expected)
    assert torch.equal(joined.prepared_for_kernel().dequantize(torch.float32), expected)


def test_parts_that_do_not_fit_are_refused() -> None:
    """The message says what was received and what would be right."""
    good = quantize(random_weight((4, 32)), WeightFormat.INT8)
    with pytest.raises(ValueError, match=r"scale of int8 \(4, 32\) is \(4,\), not \(3,\)"):
        QuantizedWeight(WeightFormat.INT8, good.data, good.scale[:3])
    with pytest.raises(ValueError, match=r"fp8 data is .*e4m3fn, not torch.int8"):
        QuantizedWeight(WeightFormat.FP8, good.data, good.scale)
    with pytest.raises(ValueError, match="belongs to nvfp4"):
        QuantizedWeight(WeightFormat.INT8, good.data, good.scale, torch.tensor(1.0))
    with pytest.raises(ValueError, match="K may not be 33"):
        quantize(random_weight((4, 33)), WeightFormat.INT4)
    with pytest.raises(ValueError, match="a weight is a matrix"):
        quantize(random_weight((4,)), WeightFormat.INT8)


def test_bytes_are_what_the_form_promises() -> None:
    """Of 128 x 1024 weights: 4 bits and a scale, 8 bits and a scale."""
    size = {format: quantize(random_weight((128, 1024)), format).nbytes for format in FORMATS}
    weights = 128 * 1024
    assert size[WeightFormat.INT8] == size[WeightFormat.FP8] == weights + 4 * 128
    assert size[WeightFormat.FP8_BLOCK] == weights + 4 * 8
    assert size[WeightFormat.INT4] == weights // 2 + 2 * weights // 128
    assert size[WeightFormat.NVFP4] == weights // 2 + weights // 16 + 4
