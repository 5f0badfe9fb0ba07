"""The soft embedding against its twin, after the head, and cut short with its bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_kernels import soft_embedding, truncated_soft_embedding, vocab_head
from dgemma_kernels.backend import report
from dgemma_kernels.soft_embedding.reference import soft_embedding_reference
from dgemma_kernels.testing import assert_close
from dgemma_kernels.weights import WeightFormat, quantize

# Rows x vocabulary x channels. The last two are split along the vocabulary.
SHAPES = [(1, 1, 1), (3, 70, 40), (17, 129, 130), (2, 2100, 30), (66, 150, 16)]


def random_inputs(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Masses of any size, their scales, and a table."""
    num_rows, vocab_size, size = shape
    generator = torch.Generator().manual_seed(0)
    masses = (torch.randn((num_rows, vocab_size), generator=generator) * 2).exp()
    masses = (masses * 1e-7).to(dtype)
    table = torch.randn((vocab_size, size), generator=generator)
    scale = 1.0 / masses.float().sum(-1)
    return masses.to(device), scale.to(device), table.to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_equals_its_twin(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """From masses, with the embedding scale, which is rounded as the table is."""
    masses, scale, table = random_inputs(shape, dtype, device)
    actual = soft_embedding(masses, scale, table, embedding_scale=53.0660)
    assert report()["soft_embedding"] == "triton"
    expected = soft_embedding_reference(masses, scale, table, embedding_scale=53.0660)
    assert_close("soft_embedding", expected, actual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("kernels")
def test_takes_logits(dtype: torch.dtype, device: torch.device) -> None:
    """Their softmax is rounded to the dtype of the table; tokens ruled out count nothing."""
    masses, _, table = random_inputs((3, 200, 24), dtype, device)
    logits = masses.float().log()
    logits[:, 20:40] = float("-inf")
    actual = soft_embedding(logits, None, table)
    assert report()["soft_embedding"] == "triton"
    expected = logits.softmax(-1).to(dtype) @ table
    assert_close("soft_embedding", expected, actual)


@pytest.mark.usefixtures("kernels")
def test_goes_on_from_the_head(device: torch.device) -> None:
    """What the head keeps is what this takes; a clamped row's mean is its token's embedding."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn((300, 32), generator=generator).to(device)
    hidden = torch.randn((3, 32), generator=generator).to(device)
    head = vocab_head(
        hidden, table, softcap=30.0, temperature=0.5, keep_masses=True, keep_logits=True
    )
    assert head.masses is not None
    assert head.logits is not None
    actual = soft_embedding(head.masses, head.mass_scale, table)
    assert_close("soft_embedding", head.logits.softmax(-1) @ table, actual)


@pytest.mark.usefixtures("kernels")
def test_two_runs_are_equal_to_the_bit(device: torch.device) -> None:
    """Parts are added in the order of the splits."""
    given = random_inputs((2, 2100, 30), torch.bfloat16, device)
    assert torch.equal(soft_embedding(*given), soft_embedding(*given))


@pytest.mark.usefixtures("kernels")
def test_says_what_it_does_not_support(device: torch.device) -> None:
    """Tables in fewer bits, and masses of another dtype."""
    masses, scale, table = random_inputs((2, 130, 32), torch.bfloat16, device)
    soft_embedding(masses, scale, quantize(table, WeightFormat.INT8))
    assert report()["soft_embedding"] == "reference: a table in int8"
    soft_embedding(masses.float(), scale, table)
    assert report()["soft_embedding"].startswith("reference: masses in torch.float32")
    soft_embedding(masses, scale, table.clone().requires_grad_())
    assert report()["soft_embedding"] == "reference: gradients are asked for"
    assert soft_embedding(masses[:0], scale[:0], table).shape == (0, 32)


@pytest.mark.parametrize("top_k", [1, 8, 100, 400])
def test_cut_short_it_keeps_to_its_bound(top_k: int) -> None:
    """The error is measured against the whole mean; with every token there is none."""
    masses, scale, table = random_inputs((20, 400, 48), torch.float32, torch.device("cpu"))
    whole = soft_embedding_reference(masses, scale, table, embedding_scale=2.0)
    part = truncated_soft_embedding(masses, scale, table, top_k=top_k, embedding_scale=2.0)
    error = (part.embedding - whole).norm(dim=-1)
    assert (error <= part.error_bound + 1e-4).all()
    if top_k == 400:
        assert part.error_bound.max() < 1e-4
    else:
        assert (part.error_bound < 200 * error).all()  # it says something, too


def test_cut_short_it_is_of_one_token_at_least() -> None:
    """The message shows what was asked for."""
    masses, scale, table = random_inputs((2, 10, 4), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"top_k must be in 1 \.\. 10, got 0"):
        truncated_soft_embedding(masses, scale, table, top_k=0)
