"""What the interpreter cannot show: tensor cores, real sizes, CUDA graphs. Run with `-m gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_kernels import backend, linear, moe_experts, route
from dgemma_kernels.linear import linear_reference
from dgemma_kernels.moe_experts import moe_experts_reference
from dgemma_kernels.testing import assert_close, expert_arguments, random_weight, stored
from dgemma_kernels.weights import WeightFormat

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]
DTYPE = torch.bfloat16
FORMATS = [None, *WeightFormat]
# Of the 26B: D, F, E, A.
SIZES = {"size": 2816, "inner_size": 704, "experts": 128, "top_k": 8}


@pytest.mark.parametrize("tokens", [1, 64, 256, 700])
@pytest.mark.parametrize("format", FORMATS)
def test_experts_of_the_26b(format: WeightFormat | None, tokens: int, device: torch.device) -> None:
    """Every number of rows in a block, in bfloat16, against the twin in float32."""
    arguments = expert_arguments(tokens, **SIZES, dtype=DTYPE, format=format, device=device)
    full = [w.float() if isinstance(w, Tensor) else w for w in arguments[3:]]
    expected = moe_experts_reference(arguments.hidden.float(), *arguments[1:3], *full).to(DTYPE)
    assert_close("moe_experts", expected, moe_experts(*arguments))
    assert backend.report()["moe_experts"] == "triton"


@pytest.mark.parametrize("tokens", [1, 64, 256])
@pytest.mark.parametrize("format", list(WeightFormat))
@pytest.mark.parametrize("shape", [(2816, 4096), (4224, 2816), (2816, 2112)], ids=str)
def test_dense_weights_of_the_26b(
    shape: tuple[int, int], format: WeightFormat, tokens: int, device: torch.device
) -> None:
    """With as many parts of K as the GPU asks for."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, shape[1], generator=generator, device=device).to(DTYPE)
    weight = stored(random_weight(shape, DTYPE, generator, device), format)
    assert not isinstance(weight, Tensor)
    expected = linear_reference(hidden.float(), weight).to(DTYPE)
    assert_close("linear", expected, linear(hidden, weight))
    assert backend.report()["linear"] == "triton"


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_gives_the_same_bits(format: WeightFormat | None, device: torch.device) -> None:
    """A graph of routing and experts holds for other tokens than those it was captured with."""
    arguments = expert_arguments(64, **SIZES, dtype=DTYPE, format=format, device=device)
    scores = torch.randn(64, SIZES["experts"], device=device, dtype=DTYPE)
    ones = torch.ones(SIZES["experts"], device=device, dtype=DTYPE)

    def layer() -> Tensor:
        index, share = route(scores, SIZES["top_k"], ones)
        return moe_experts(arguments.hidden, index, share, *arguments[3:])

    layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer()
    for seed in range(3):
        generator = torch.Generator(device).manual_seed(seed)
        scores.normal_(generator=generator)
        if seed == 2:
            scores[:, :8] += 100  # all tokens to the same experts
        graph.replay()
        assert torch.equal(output, layer())
