"""The vocabulary head against its twin, and its draws against the distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma_engine.canvas import Canvas
from dgemma_kernels import TokenRules, vocab_head
from dgemma_kernels.backend import report
from dgemma_kernels.testing import Tolerance, assert_close
from dgemma_kernels.vocab_head.reference import HeadOutput, draw_reference, vocab_head_reference
from dgemma_kernels.weights import WeightFormat, quantize

# Rows x vocabulary x channels: one row, no multiple of any block, more rows than a block.
SHAPES = [(1, 1, 16), (3, 129, 40), (17, 300, 64), (65, 70, 16), (5, 1000, 100)]
# Statistics are float32 whatever the weights are.
STATISTICS = Tolerance(1e-5, 2e-5)


def random_inputs(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and draws; logits are about N(0, 9), so that tokens stand out."""
    num_rows, vocab_size, size = shape
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn((num_rows, size), generator=generator) * 3
    weight = torch.randn((vocab_size, size), generator=generator) / size**0.5
    draws = torch.rand((num_rows, 2), generator=generator)
    return hidden.to(device, dtype), weight.to(device, dtype), draws.to(device)


def assert_same(expected: HeadOutput, actual: HeadOutput) -> None:
    """All that is not None; masses by the probabilities that they stand for."""
    for name in ("argmax", "sample"):
        if getattr(expected, name) is not None:
            assert_close(name, getattr(expected, name), getattr(actual, name))
    for name in ("maximum", "log_normalizer"):
        assert_close(name, getattr(expected, name), getattr(actual, name), STATISTICS)
    # Near 0 an entropy has no relative error: the tests of a denoising step are at 0.005 and 0.1.
    assert (expected.entropy - actual.entropy).abs().max() < 1e-5
    if expected.masses is not None:
        assert expected.mass_scale is not None
        assert actual.masses is not None
        assert actual.mass_scale is not None
        assert actual.masses.dtype == expected.masses.dtype
        assert_close(
            "probabilities",
            expected.masses.float() * expected.mass_scale[:, None],
            actual.masses.float() * actual.mass_scale[:, None],
            Tolerance(4e-3, 6e-3) if expected.masses.dtype == torch.bfloat16 else STATISTICS,
        )
    if expected.logits is not None:
        assert actual.logits is not None
        allowed = torch.isfinite(expected.logits)
        assert torch.equal(allowed, torch.isfinite(actual.logits))
        assert_close("logits", expected.logits[allowed], actual.logits[allowed], STATISTICS)


def options(**changes: Any) -> dict[str, Any]:
    return {"softcap": 30.0, "temperature": 0.6, "keep_logits": True, **changes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_equals_its_twin(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """All that it can be asked for, over awkward shapes."""
    hidden, weight, draws = random_inputs(shape, dtype, device)
    given = options(draws=draws, keep_masses=True, round_logits=False)
    actual = vocab_head(hidden, weight, **given)
    assert report()["vocab_head"] == "triton"
    assert_same(vocab_head_reference(hidden, weight, **given), actual)


@pytest.mark.usefixtures("kernels")
def test_rounds_logits_where_the_published_model_does(device: torch.device) -> None:
    """To bfloat16, before the softcap: ties then exist, and the first token wins."""
    size = 16
    hidden = torch.zeros((2, size), dtype=torch.bfloat16, device=device)
    hidden[:, 0] = 1
    weight = torch.zeros((300, size), dtype=torch.bfloat16, device=device)
    weight[:, 0] = -1
    weight[[140, 290], 0] = 17.0
    weight[140, 1] = 2.0**-8  # times 2^-4 it is below what bfloat16 tells apart at 17
    hidden[:, 1] = -(2.0**-4)
    rounded = vocab_head(hidden, weight, **options(keep_masses=True))
    assert rounded.argmax.tolist() == [140, 140]
    assert_same(vocab_head_reference(hidden, weight, **options(keep_masses=True)), rounded)
    exact = vocab_head(hidden, weight, **options(round_logits=False))
    assert exact.argmax.tolist() == [290, 290]


@pytest.mark.usefixtures("kernels")
def test_asks_some_rows_only(device: torch.device) -> None:
    """In any order, one of them twice: hole slots are a part of the canvas."""
    hidden, weight, draws = random_inputs((9, 200, 32), torch.float32, device)
    rows = torch.tensor([7, 0, 0, 5], device=device)
    given = options(rows=rows, draws=draws[:4], temperature=torch.tensor(0.45))
    actual = vocab_head(hidden[:, :32], weight, **given)
    assert_same(vocab_head_reference(hidden[rows], weight, **{**given, "rows": None}), actual)


def rules_for(device: torch.device, vocab_size: int, num_rows: int) -> TokenRules:
    """Row 0 is free, 1 a first one, 2 clamped; every later one free. Whole tiles are ruled out."""
    banned = torch.zeros(vocab_size, dtype=torch.bool)
    banned[:130] = True
    banned[::3] = True
    first_allowed = torch.zeros(vocab_size, dtype=torch.bool)
    first_allowed[[3, 4, 260]] = True
    clamped = torch.full((num_rows,), -1)
    clamped[2] = 6
    is_first = torch.zeros(num_rows, dtype=torch.bool)
    is_first[1] = True
    return TokenRules(*(part.to(device) for part in (banned, first_allowed, clamped, is_first)))


@pytest.mark.parametrize(
    "without", [(), ("first_allowed",), ("banned",), ("clamped_ids",)], ids=str
)
@pytest.mark.usefixtures("kernels")
def test_keeps_to_the_rules(without: tuple[str, ...], device: torch.device) -> None:
    """Banned tokens, first slots and clamped ones, each alone and together."""
    hidden, weight, draws = random_inputs((5, 300, 24), torch.float32, device)
    rules = rules_for(device, 300, 5)._replace(**dict.fromkeys(without))
    given = options(rules=rules, draws=draws, keep_masses=True)
    actual = vocab_head(hidden, weight, **given)
    assert_same(vocab_head_reference(hidden, weight, **given), actual)
    if not without:
        assert actual.sample is not None
        assert actual.masses is not None
        assert actual.argmax[2] == actual.sample[2] == 6
        assert actual.entropy[2] == 0
        assert int(actual.sample[1]) in (3, 4, 260)
        assert rules.banned is not None
        assert not actual.masses[0][rules.banned].any()


@pytest.mark.usefixtures("kernels")
def test_every_hole_begins_in_its_own_way(device: torch.device) -> None:
    """With several holes, each first slot is told what it may say; masses go where they shall."""
    hidden, weight, draws = random_inputs((5, 300, 24), torch.float32, device)
    allowed = torch.zeros((2, 300), dtype=torch.bool)
    allowed[0, [7, 290]] = allowed[1, [8]] = True
    rules = rules_for(device, 300, 5)._replace(
        first_allowed=allowed.to(device),
        is_first=torch.tensor([True, False, False, True, False], device=device),
        holes=torch.tensor([1, -1, -1, 0, -1], device=device),
    )
    buffer = torch.empty((5, 300), device=device)
    given = options(rules=rules, draws=draws, keep_masses=True)
    actual = vocab_head(hidden, weight, **given, masses_into=buffer)
    assert report()["vocab_head"] == "triton"
    assert actual.masses is buffer
    assert_same(vocab_head_reference(hidden, weight, **given), actual)
    assert int(actual.argmax[0]) == 8
    assert int(actual.argmax[3]) in (7, 290)
    twin = vocab_head_reference(hidden, weight, **given, masses_into=buffer)
    assert twin.masses is buffer


def test_rules_are_the_canvass() -> None:
    """The twin restricts as `Canvas.restrict` does: clamped, first and other slots of a hole."""
    generator = torch.Generator().manual_seed(1)
    rules = rules_for(torch.device("cpu"), 300, 3)
    ids = torch.randint(0, 300, (2, 6), generator=generator)
    hole = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    logits = torch.randn((2, 6, 300), generator=generator)
    for banned in (None, rules.banned):
        for first_allowed in (None, rules.first_allowed):
            canvas = Canvas(ids, hole, banned, first_allowed)
            same = TokenRules(
                banned,
                first_allowed,
                torch.where(hole, -1, ids).flatten(),
                (hole & (hole.cumsum(-1) == 1)).flatten(),
            )
            restricted = same.restrict(logits.flatten(0, 1)).view_as(logits)
            assert torch.equal(canvas.restrict(logits), restricted)


@pytest.mark.parametrize("temperature", [0.05, 1e-3])
@pytest.mark.usefixtures("kernels")
def test_a_low_temperature_does_not_overflow(temperature: float, device: torch.device) -> None:
    """Statistics are relative to a tile's maximum; masses take the twin, and the report says so."""
    hidden, weight, draws = random_inputs((3, 300, 24), torch.float32, device)
    given = options(temperature=temperature, draws=draws)
    actual = vocab_head(hidden, weight, **given)
    assert report()["vocab_head"] == "triton"
    assert_same(vocab_head_reference(hidden, weight, **given), actual)
    vocab_head(hidden, weight, **given, keep_masses=True)
    assert report()["vocab_head"] == f"reference: masses at a temperature of {temperature}"


@pytest.mark.parametrize("temperature", [0.4, 0.8])
@pytest.mark.usefixtures("kernels")
def test_masses_hold_at_both_ends_of_the_softcap(temperature: float, device: torch.device) -> None:
    """One row at +30 throughout, one at -30, one of both, over the schedule's temperatures."""
    hidden = torch.tensor([[1.0], [-1.0], [1.0]], device=device).repeat(1, 16)
    weight = torch.full((384, 16), 1e3, device=device)
    hidden[2, 8:] = 0
    weight[100:, :8] = -1e3
    given = options(temperature=temperature, keep_masses=True, keep_logits=False)
    actual = vocab_head(hidden, weight, **given)
    assert report()["vocab_head"] == "triton"
    assert_same(vocab_head_reference(hidden, weight, **given), actual)


@pytest.mark.parametrize("format", ["int8", "fp8", "int4"])
@pytest.mark.usefixtures("kernels")
def test_takes_a_weight_in_8_bits(format: str, device: torch.device) -> None:
    """With one scale a row in the kernel; other forms by the twin."""
    hidden, weight, _ = random_inputs((4, 260, 64), torch.float32, device)
    stored = quantize(weight, WeightFormat(format))
    actual = vocab_head(hidden, stored, **options())
    expected = "reference: a weight in int4" if format == "int4" else "triton"
    assert report()["vocab_head"] == expected
    plain = vocab_head_reference(hidden, stored.dequantize(torch.float32), **options())
    assert_same(plain, actual)


def test_the_twin_draws_the_distribution() -> None:
    """Chi-square, 20,000 draws of 60 tokens in two tiles: 99.9 % of fair ones are in 29 .. 99."""
    num_draws, vocab_size = 20_000, 160
    generator = torch.Generator().manual_seed(7)
    allowed = torch.arange(vocab_size) % 8 < 3
    logits = torch.randn(vocab_size, generator=generator).masked_fill(~allowed, float("-inf"))
    probability = logits.softmax(-1)
    draws = torch.rand((num_draws, 2), generator=generator)
    drawn = draw_reference(probability.expand(num_draws, -1), draws)
    counts = torch.bincount(drawn, minlength=vocab_size).double()
    assert int(allowed.sum()) == 60
    assert not counts[~allowed].any()
    expected = probability.double() * num_draws
    assert 29 < float(((counts - expected) ** 2 / expected)[allowed].sum()) < 99


@pytest.mark.usefixtures("kernels")
def test_draws_what_the_twin_draws(device: torch.device) -> None:
    """From the same numbers, whichever token they choose; and many are chosen."""
    hidden, weight, _ = random_inputs((1, 160, 16), torch.float32, device, seed=3)
    draws = torch.rand((48, 2), generator=torch.Generator().manual_seed(7)).to(device)
    given = options(
        temperature=2.0, draws=draws, rows=torch.zeros(48, dtype=torch.int64).to(device)
    )
    actual = vocab_head(hidden, weight, **given)
    assert_same(vocab_head_reference(hidden, weight, **given), actual)
    assert actual.sample is not None
    assert len(actual.sample.unique()) > 10


@pytest.mark.usefixtures("kernels")
def test_draws_at_the_edges_are_allowed_tokens(device: torch.device) -> None:
    """0 and the largest number below 1 draw the first and the last token that may be."""
    hidden, weight, _ = random_inputs((1, 384, 16), torch.float32, device)
    banned = torch.ones(384, dtype=torch.bool, device=device)
    banned[[130, 250, 255]] = False
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [1 - 2**-24, 0.0]], device=device)
    given = options(rules=TokenRules(banned=banned), draws=ends, temperature=4.0)
    actual = vocab_head(hidden.expand(3, -1).contiguous(), weight, **given)
    assert actual.sample is not None
    assert actual.sample.tolist() == [130, 255, 130]


@pytest.mark.usefixtures("kernels")
def test_says_what_it_does_not_support(device: torch.device) -> None:
    """Then the twin runs, and the answer is the same."""
    hidden, weight, _ = random_inputs((2, 140, 16), torch.float32, device)
    vocab_head(hidden, weight, softcap=None, temperature=1.0, keep_masses=True)
    assert report()["vocab_head"] == "reference: masses of logits without a softcap"
    halves = vocab_head(hidden.half(), weight.half(), **options(keep_masses=True))
    assert report()["vocab_head"] == "reference: masses in float16"
    assert halves.masses is not None
    assert torch.isfinite(halves.masses).all()
    uncapped = vocab_head(hidden, weight, softcap=None, temperature=1.0)
    assert report()["vocab_head"] == "triton"
    assert_same(vocab_head_reference(hidden, weight, softcap=None, temperature=1.0), uncapped)
    vocab_head(hidden, weight.clone().requires_grad_(), **options())
    assert report()["vocab_head"] == "reference: gradients are asked for"
    none = vocab_head(hidden[:0], weight, **options())
    assert none.argmax.shape == (0,)
    vocab_head(hidden.T.contiguous().T, weight, **options())
    assert report()["vocab_head"] == "reference: hidden states that are transposed"


@pytest.mark.usefixtures("kernels")
def test_the_same_numbers_draw_the_same_tokens(device: torch.device) -> None:
    """Two runs are equal to the bit."""
    hidden, weight, draws = random_inputs((3, 300, 16), torch.float32, device)
    given = options(draws=draws, keep_masses=True)
    first, second = (vocab_head(hidden, weight, **given) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
