"""Canvas attention against its twin, and the twin against keys that are laid side by side."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
from dgemma_engine.masks import encoder_mask
from dgemma_kernels import attention, canvas_attention
from dgemma_kernels.backend import report
from dgemma_kernels.canvas_attention.kernel import attention_configs
from dgemma_kernels.canvas_attention.reference import canvas_attention_reference
from dgemma_kernels.splits import splits_for
from dgemma_kernels.testing import assert_close


class Shape(NamedTuple):
    """Letters as in the dimension key; P is the rows of the prefix, 1 or B."""

    B: int = 1
    P: int = 1
    H: int = 2
    G: int = 1
    M: int = 3
    C: int = 3
    S: int = 5
    K: int = 16


SHAPES = [
    Shape(M=1, C=1, S=1),
    Shape(S=0, C=17, M=17),  # nothing is cached yet
    Shape(B=3, H=4, G=2, M=5, C=6, S=33),  # candidates that share a prefix
    Shape(B=2, P=2, H=4, G=4, M=5, C=5, S=20),  # prefixes of their own, one head a key head
    Shape(H=8, G=1, M=2, C=40, S=300),  # hole slots only; split
    Shape(H=16, G=2, M=9, C=9, S=150, K=64),
    Shape(H=2, G=1, M=2, C=5, S=70, K=256),
    Shape(H=2, G=1, M=1, C=3, S=90, K=512),
]


def random_inputs(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the engine has them: prefix a view into a longer cache, the rest transposed."""
    generator = torch.Generator().manual_seed(0)

    def heads(batch: int, count: int, tokens: int, size: float) -> Tensor:
        values = torch.randn((batch, tokens, count, shape.K), generator=generator) * size
        return values.to(device, dtype).transpose(1, 2)

    def cached() -> Tensor:
        return heads(shape.P, shape.G, shape.S + 7, 1.0).contiguous()[:, :, 2 : 2 + shape.S]

    query = heads(shape.B, shape.H, shape.M, 0.7)
    return (
        query,
        cached(),
        cached(),
        heads(shape.B, shape.G, shape.C, 1.0),
        heads(shape.B, shape.G, shape.C, 1.0),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_equals_its_twin(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Awkward lengths, groups of heads, shared prefixes, splits."""
    inputs = random_inputs(shape, dtype, device)
    actual = canvas_attention(*inputs)
    assert report()["canvas_attention"] == "triton"
    assert_close("canvas_attention", canvas_attention_reference(*inputs), actual)


@pytest.mark.parametrize("window", [1, 16, 17, 63, 64, 200])
@pytest.mark.usefixtures("kernels")
def test_every_query_sees_the_same_window(window: int, device: torch.device) -> None:
    """The last keys of the prefix, however far into the canvas the query stands; all of the canvas.

    Public servers had a window around each query here, which the published model does not.
    """
    query, prefix_key, prefix_value, key, value = random_inputs(
        Shape(H=4, G=2, M=20, C=20, S=64), torch.float32, device
    )
    actual = canvas_attention(query, prefix_key, prefix_value, key, value, window=window)
    seen = slice(max(0, 64 - window), 64)
    expected = attention(
        query,
        torch.cat((prefix_key[:, :, seen], key), dim=2),
        torch.cat((prefix_value[:, :, seen], value), dim=2),
        None,
    )
    assert_close("window", expected, actual)
    twin = canvas_attention_reference(query, prefix_key, prefix_value, key, value, window=window)
    assert torch.equal(twin, expected)


@pytest.mark.parametrize("length", [0, 37, 300])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.usefixtures("kernels")
def test_counts_a_length_that_lies_on_the_device(
    length: int, window: int | None, device: torch.device
) -> None:
    """A cache of fixed size is read as far as it is filled; what lies behind is never touched."""
    query, prefix_key, prefix_value, key, value = random_inputs(
        Shape(H=4, G=1, M=3, C=6, S=300), torch.float32, device
    )
    filled = torch.tensor([length], dtype=torch.int32, device=device)
    prefix_key[:, :, length:] = float("nan")
    prefix_value[:, :, length:] = float("nan")
    given = {"prefix_length": filled, "window": window}
    actual = canvas_attention(query, prefix_key, prefix_value, key, value, **given)
    expected = canvas_attention_reference(
        query, prefix_key[:, :, :length], prefix_value[:, :, :length], key, value, window=window
    )
    assert_close("length", expected, actual)


@pytest.mark.parametrize("length", [1, 16, 39])
@pytest.mark.usefixtures("kernels")
def test_counts_a_canvas_in_a_longer_buffer(length: int, device: torch.device) -> None:
    """Keys behind the canvas are never touched; rows behind it are computed like others."""
    query, prefix_key, prefix_value, key, value = random_inputs(
        Shape(B=2, H=4, G=2, M=5, C=40, S=70), torch.float32, device
    )
    key[:, :, length:] = float("nan")
    value[:, :, length:] = float("nan")
    filled = torch.tensor([length], dtype=torch.int32, device=device)
    actual = canvas_attention(
        query, prefix_key, prefix_value, key, value, window=30, canvas_length=filled
    )
    assert report()["canvas_attention"] == "triton"
    given = (key[:, :, :length], value[:, :, :length])
    expected = canvas_attention_reference(query, prefix_key, prefix_value, *given, window=30)
    assert_close("canvas", expected, actual)
    twin = canvas_attention_reference(
        query, prefix_key, prefix_value, key, value, window=30, canvas_length=filled
    )
    assert torch.equal(twin, expected)


@pytest.mark.parametrize("length", [0, 5, 70, 300])
@pytest.mark.parametrize("window", [None, 3, 20])
@pytest.mark.usefixtures("kernels")
def test_new_tokens_of_the_prefix_see_what_is_before_them(
    length: int, window: int | None, device: torch.device
) -> None:
    """As the encoder has it: causal, and each within the window of its own place."""
    query, prefix_key, prefix_value, key, value = random_inputs(
        Shape(H=4, G=2, M=20, C=20, S=300), torch.float32, device
    )
    prefix_key[:, :, length:] = float("nan")
    prefix_value[:, :, length:] = float("nan")
    filled = torch.tensor([length], dtype=torch.int32, device=device)
    given = {"prefix_length": filled, "window": window, "causal": True}
    actual = canvas_attention(query, prefix_key, prefix_value, key, value, **given)
    assert report()["canvas_attention"] == "triton"
    expected = attention(
        query,
        torch.cat((prefix_key[:, :, :length], key), dim=2),
        torch.cat((prefix_value[:, :, :length], value), dim=2),
        encoder_mask(length, 20, None if window is None else window + 1, device),
    )
    assert_close("causal", expected, actual)
    twin = canvas_attention_reference(query, prefix_key, prefix_value, key, value, **given)
    assert_close("twin", expected, twin)


@pytest.mark.usefixtures("kernels")
def test_large_scores_do_not_overflow(device: torch.device) -> None:
    """Scores have no 1 / sqrt(K) here: hundreds are ordinary, and one key takes it all."""
    query, prefix_key, prefix_value, key, value = random_inputs(
        Shape(H=2, G=1, M=4, C=6, S=200), torch.float32, device
    )
    inputs = (query * 60, prefix_key * 10, prefix_value, key * 10, value)
    assert_close("scores", canvas_attention_reference(*inputs), canvas_attention(*inputs))


@pytest.mark.usefixtures("kernels")
def test_says_what_it_does_not_support(device: torch.device) -> None:
    """Heads that are no power of two take the twin, and so do gradients."""
    inputs = random_inputs(Shape(K=24), torch.float32, device)
    assert_close("twin", canvas_attention_reference(*inputs), canvas_attention(*inputs))
    assert report()["canvas_attention"] == "reference: heads of 24 channels"
    inputs = random_inputs(Shape(), torch.float32, device)
    canvas_attention(inputs[0].requires_grad_(), *inputs[1:]).sum().backward()
    assert report()["canvas_attention"] == "reference: gradients are asked for"


@pytest.mark.usefixtures("kernels")
def test_two_runs_are_equal_to_the_bit(device: torch.device) -> None:
    """Parts are merged in the order of the splits."""
    inputs = random_inputs(Shape(H=8, G=1, M=2, C=40, S=300), torch.bfloat16, device)
    assert torch.equal(canvas_attention(*inputs), canvas_attention(*inputs))


def test_long_prefixes_are_split(device: torch.device) -> None:
    """The shapes above reach the merge: at least two parts, and not all equally long."""
    blocks = attention_configs(16, 16)[0]
    steps = -(-340 // blocks.columns)
    many = splits_for(device, num_programs=1, num_steps=steps, shortest=4, largest=32)
    if device.type == "cpu":
        assert many > 1
    assert splits_for(device, num_programs=10**6, num_steps=steps, shortest=4, largest=32) == 1
    assert splits_for(device, num_programs=1, num_steps=1, shortest=4, largest=32) == 1
