"""Routing and experts: the kernels against their twins, and what they promise beyond them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_kernels import backend, moe_experts, route
from dgemma_kernels.backend import Backend, use_backend
from dgemma_kernels.moe_experts import (
    moe_experts_dense,
    moe_experts_reference,
    route_reference,
)
from dgemma_kernels.testing import DTYPES, ExpertArguments, assert_close, expert_arguments
from dgemma_kernels.weights import WeightFormat, quantize

pytestmark = pytest.mark.usefixtures("kernels")
FORMATS = [None, *WeightFormat]


def expected_of(arguments: ExpertArguments) -> Tensor:
    """The twin's, computed in float32 and rounded once: half precision would round on its way."""
    full = arguments._replace(hidden=arguments.hidden.float())
    plain = [
        weight.float() if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
        for weight in (full.gate_up_proj, full.down_proj)
    ]
    full = full._replace(gate_up_proj=plain[0], down_proj=plain[1])
    return moe_experts_reference(*full).to(arguments.hidden.dtype)


def check(arguments: ExpertArguments) -> Tensor:
    actual = moe_experts(*arguments)
    assert backend.report()["moe_experts"] == "triton"
    assert_close("moe_experts", expected_of(arguments), actual)
    return actual


@pytest.mark.parametrize("tokens", [1, 7, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_are_their_twin(tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """Sizes that are no multiple of a block, in every float."""
    check(expert_arguments(tokens, size=72, inner_size=40, dtype=dtype, device=device))


@pytest.mark.parametrize("format", list(WeightFormat))
def test_each_form_is_its_dequantised_twin(format: WeightFormat, device: torch.device) -> None:
    """At sizes that are no multiple of a group. Every dtype is decoded in test_weight_tile."""
    arguments = expert_arguments(
        5,
        size=192,
        inner_size=40,
        experts=2,
        top_k=1,
        dtype=torch.float16,
        format=format,
        device=device,
    )
    check(arguments)


@pytest.mark.parametrize("format", list(WeightFormat))
def test_forms_at_sizes_of_whole_groups(format: WeightFormat, device: torch.device) -> None:
    """Several groups along K, several blocks of weights, a block whose rows are gate and up."""
    arguments = expert_arguments(
        5, size=256, inner_size=96, experts=2, dtype=torch.bfloat16, format=format, device=device
    )
    check(arguments)


@pytest.mark.parametrize("format", [None, WeightFormat.INT4])
def test_all_tokens_of_one_expert(format: WeightFormat | None, device: torch.device) -> None:
    """More tokens than a block holds go to one expert, and most experts get none."""
    arguments = expert_arguments(
        40, size=64, inner_size=32, experts=6, format=format, device=device
    )
    index = torch.tensor([4, 1], device=device).repeat(40, 1)
    check(arguments._replace(expert_index=index))


@pytest.mark.parametrize("rows", ["one", "many"])
def test_blocks_of_more_rows(rows: str, device: torch.device) -> None:
    """Blocks of 32 and 64 tokens, and several of them for one expert."""
    tokens, experts = (40, 4) if rows == "one" else (70, 2)
    check(expert_arguments(tokens, experts=experts, size=32, inner_size=32, device=device))


def test_every_expert_of_a_token_counts(device: torch.device) -> None:
    """As many experts a token as there are, and one."""
    for top_k in (1, 3):
        arguments = expert_arguments(
            5, experts=3, top_k=top_k, size=32, inner_size=32, device=device
        )
        check(arguments)


def test_activations_may_lie_apart(device: torch.device) -> None:
    """A slice of a wider tensor, and a transposed one."""
    arguments = expert_arguments(9, size=64, inner_size=32, device=device)
    wide = torch.full((9, 100), float("nan"), device=device)
    wide[:, 10:74] = arguments.hidden
    expected = expected_of(arguments)
    index = arguments.expert_index.t().contiguous().t()
    share = arguments.expert_weight.t().contiguous().t()
    for hidden in (wide[:, 10:74], arguments.hidden.t().contiguous().t()):
        actual = moe_experts(hidden, index, share, *arguments[3:])
        assert_close("moe_experts", expected, actual)


def test_no_tokens(device: torch.device) -> None:
    """An empty batch is an empty result."""
    arguments = expert_arguments(1, device=device)
    empty = [part[:0] for part in arguments[:3]]
    assert moe_experts(*empty, *arguments[3:]).shape == (0, 96)


@pytest.mark.parametrize("format", [None, WeightFormat.NVFP4])
def test_the_same_bits_every_time(format: WeightFormat | None, device: torch.device) -> None:
    """Nothing is summed in an order that may change."""
    arguments = expert_arguments(
        20, size=64, inner_size=64, dtype=torch.float16, format=format, device=device
    )
    assert torch.equal(moe_experts(*arguments), moe_experts(*arguments))


def test_a_token_is_computed_alone(device: torch.device) -> None:
    """What else is in the batch changes no bit, though it changes the blocks' filling."""
    arguments = expert_arguments(7, size=64, inner_size=32, device=device)
    whole = moe_experts(*arguments)
    for token in (0, 6):
        alone = [part[token : token + 1] for part in arguments[:3]]
        assert torch.equal(moe_experts(*alone, *arguments[3:])[0], whole[token])


def test_weights_that_no_kernel_reads_go_to_the_twin(device: torch.device) -> None:
    """And the report says what to do about it."""
    arguments = expert_arguments(3, device=device)
    assert isinstance(arguments.down_proj, Tensor)
    public = quantize(arguments.down_proj, WeightFormat.INT4)
    actual = moe_experts(*arguments[:4], public)
    assert "prepared_for_kernel()" in backend.report()["moe_experts"]
    assert_close("moe_experts", expected_of(arguments._replace(down_proj=public)), actual)
    half = arguments.hidden.half(), *arguments[1:3], arguments.gate_up_proj.half()
    with pytest.raises(RuntimeError):
        moe_experts(*half, arguments.down_proj)
    assert "torch.float16" in backend.report()["moe_experts"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_twin_takes_every_form(format: WeightFormat | None, device: torch.device) -> None:
    """On a CPU the same call works, and reads the same weights."""
    arguments = expert_arguments(5, format=format, device=device)
    with use_backend(Backend.REFERENCE):
        actual = moe_experts(*arguments)
    assert_close("moe_experts", expected_of(arguments), actual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (7, 6, 3), (33, 128, 8)])
def test_routing_is_its_twin(
    tokens: int, experts: int, top_k: int, dtype: torch.dtype, device: torch.device
) -> None:
    """The experts, their order, and what each counts."""
    generator = torch.Generator(device).manual_seed(1)
    # A permutation times a step that every dtype tells apart: no two scores are equal.
    scores = torch.stack(
        [torch.randperm(experts, generator=generator, device=device) for _ in range(tokens)]
    )
    scores = (scores / 16 - 4).to(dtype)
    scale = (torch.rand(experts, generator=generator, device=device) + 0.5).to(dtype)
    expected_index, expected_weight = route_reference(scores, top_k, scale)
    actual_index, actual_weight = route(scores, top_k, scale)
    assert backend.report()["route"] == "triton"
    assert_close("expert_index", expected_index, actual_index)
    assert_close("expert_weight", expected_weight, actual_weight)


def test_the_lowest_index_wins_a_tie(device: torch.device) -> None:
    """torch.topk leaves it open; a kernel that did so would not give the same bits every time."""
    scores = torch.zeros(3, 6, device=device)
    scores[1, 4] = scores[1, 2] = 1.0
    scores[2] = -200.0  # probabilities that are zero beside the one that is not
    scores[2, 5] = 0.0
    index, weight = route(scores, 3, torch.ones(6, device=device))
    assert index.tolist() == [[0, 1, 2], [2, 4, 0], [5, 0, 1]]
    assert torch.equal(weight[0], torch.full((3,), 1 / 3, device=device))
    assert torch.equal(weight[2], torch.tensor([1.0, 0.0, 0.0], device=device))


@pytest.mark.parametrize(
    ("assignments", "experts", "rows"), [(1, 3, 16), (40, 5, 16), (90, 1, 32), (2500, 7, 16)]
)
def test_sorting_keeps_every_assignment_once(
    assignments: int, experts: int, rows: int, device: torch.device
) -> None:
    """Each block has one expert, experts ascend, and so do the assignments of one."""
    from dgemma_kernels.moe_experts.kernel import sort_by_expert

    generator = torch.Generator(device).manual_seed(2)
    index = torch.randint(experts, (assignments, 1), generator=generator, device=device)
    order = sort_by_expert(index, experts, rows)
    num_blocks = int(order.num_blocks)
    assert num_blocks <= order.expert_of_block.shape[0]
    expert_of_block = order.expert_of_block[:num_blocks].tolist()
    assert expert_of_block == sorted(expert_of_block)
    places = order.row_of_slot.reshape(-1, rows)[:num_blocks].tolist()
    expected = {
        expert: (index[:, 0] == expert).nonzero()[:, 0].tolist() for expert in range(experts)
    }
    actual: dict[int, list[int]] = {expert: [] for expert in range(experts)}
    for expert, block in zip(expert_of_block, places, strict=True):
        filled = [place for place in block if place >= 0]
        assert filled == block[: len(filled)], "what is empty is at the end"
        assert filled
        actual[expert] += filled
    assert actual == expected


@pytest.mark.parametrize("tokens", [0, 1, 7, 300])
def test_without_a_choice_the_mixture_is_the_same(tokens: int) -> None:
    """Every token through every expert, up to rounding; and where that is not faster, the twin."""
    arguments = expert_arguments(
        tokens, size=72, inner_size=40, experts=4, top_k=2, device=torch.device("cpu")
    )
    expected = moe_experts_reference(*arguments)
    assert_close("dense", expected, moe_experts_dense(*arguments))
    with use_backend(Backend.REFERENCE):
        plain = moe_experts(*arguments)
    assert_close("moe_experts", expected, plain)
    assert (tokens != 300) or torch.equal(expected, plain), "so many tokens take the twin"


def test_one_token_reads_bytes() -> None:
    """INT8 experts of one token are summed as they are; of more, turned back as elsewhere."""
    hidden, index, weight, *stacks = expert_arguments(
        2, size=72, inner_size=40, experts=4, top_k=2, device=torch.device("cpu")
    )
    held = [quantize(stack, WeightFormat.INT8) for stack in stacks]
    plain = [one.dequantize(torch.float32) for one in held]
    for tokens in (1, 2):
        arguments = (hidden[:tokens], index[:tokens], weight[:tokens])
        expected = moe_experts_reference(*arguments, *plain)
        with use_backend(Backend.REFERENCE):
            assert_close("moe_experts", expected, moe_experts(*arguments, *held))
    assert_close(
        "dense", *(moe_experts_dense(hidden[:1], index[:1], weight[:1], *w) for w in (plain, held))
    )
