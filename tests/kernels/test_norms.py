"""The norms and what is fused with them, against their twins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_kernels import qk_norm_rope, residual_norm, rms_norm
from dgemma_kernels.backend import report
from dgemma_kernels.qk_norm_rope.reference import qk_norm_rope_reference
from dgemma_kernels.residual_norm.reference import residual_norm_reference
from dgemma_kernels.rms_norm.reference import rms_norm_reference
from dgemma_kernels.testing import assert_close

EPS = 1e-6
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device, dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 63), (5, 257), (2, 2816)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_rms_norm_equals_its_twin(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """With and without a scale, and of rows that are views."""
    hidden, weight = random(shape, dtype, device), random(shape[-1:], dtype, device, 1)
    for scale in (weight, None):
        actual = rms_norm(hidden, scale, EPS)
        assert report()["rms_norm"] == "triton"
        assert_close("rms_norm", rms_norm_reference(hidden, scale, EPS), actual)
    wide = random((*shape[:-1], 2 * shape[-1]), dtype, device, 2)[..., : shape[-1]]
    assert_close("view", rms_norm_reference(wide, weight, EPS), rms_norm(wide, weight, EPS))


@pytest.mark.usefixtures("kernels")
def test_rms_norm_of_nothing_and_of_zeros(device: torch.device) -> None:
    """No rows take the twin; zeros stay zeros."""
    assert rms_norm(torch.zeros((0, 8), device=device), None, EPS).shape == (0, 8)
    assert report()["rms_norm"] == "reference: no rows"
    assert not rms_norm(torch.zeros((2, 8), device=device), None, EPS).any()


@DTYPES
@pytest.mark.parametrize("num_norms", [0, 1, 2, 3])
@pytest.mark.usefixtures("kernels")
def test_residual_norm_equals_its_twin(
    num_norms: int, dtype: torch.dtype, device: torch.device
) -> None:
    """With none to three following norms, one of them without a scale."""
    residual, hidden = (random((2, 3, 70), dtype, device, seed) for seed in (0, 1))
    weights = [random((70,), dtype, device, seed) for seed in (2, 3, 4)]
    following = (weights[1], None, weights[2])[:num_norms]
    for scalar in (None, torch.full((1,), 0.3, dtype=dtype, device=device)):
        given = {"scalar": scalar, "next_weights": following}
        actual = residual_norm(residual, hidden, weights[0], EPS, **given)
        assert report()["residual_norm"] == "triton"
        expected = residual_norm_reference(residual, hidden, weights[0], EPS, **given)
        assert len(actual) == 1 + num_norms
        for index, (right, found) in enumerate(zip(expected, actual, strict=True)):
            assert_close(f"output {index}", right, found)


@pytest.mark.usefixtures("kernels")
def test_residual_norm_says_what_it_does_not_support(device: torch.device) -> None:
    """A scalar for each row is training's; four norms are nobody's."""
    residual, hidden = (random((4, 16), torch.float32, device, seed) for seed in (0, 1))
    weight = torch.ones(16, device=device)
    scalar = torch.rand((4, 1), device=device)
    actual = residual_norm(residual, hidden, weight, EPS, scalar=scalar)
    assert report()["residual_norm"] == "reference: a scalar for each row"
    expected = residual_norm_reference(residual, hidden, weight, EPS, scalar=scalar)
    assert_close("twin", expected[0], actual[0])
    residual_norm(residual, hidden, weight, EPS, scalar=torch.ones(1).double().to(device))
    assert report()["residual_norm"] == "reference: a scalar in torch.float64"
    residual_norm(residual, hidden, weight, EPS, next_weights=[None] * 4)
    assert report()["residual_norm"] == "reference: 4 following norms"


def heads(
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    tokens: int,
    counts: tuple[int, int],
    size: int,
) -> tuple[Tensor, ...]:
    """Query, key, value, both weights, cos and sin; the projections are views into one product."""
    num_heads, num_kv_heads = counts
    joined = random((batch, tokens, num_heads + 2 * num_kv_heads, size), dtype, device)
    query, key, value = joined.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    weights = (random((size,), dtype, device, seed) for seed in (1, 2))
    angle = random((1, tokens, size // 2), torch.float32, device, 3).repeat(1, 1, 2)
    return (query, key, value, *weights, angle.cos().to(dtype), angle.sin().to(dtype))


@DTYPES
@pytest.mark.parametrize(
    ("batch", "tokens", "counts", "size"),
    [(1, 1, (1, 1), 2), (2, 3, (2, 1), 16), (1, 2, (2, 1), 256), (1, 1, (3, 1), 512)],
)
@pytest.mark.usefixtures("kernels")
def test_qk_norm_rope_equals_its_twin(
    batch: int,
    tokens: int,
    counts: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Norm, rotation and layout, with the value its own projection or the raw key's."""
    query, key, value, *rest = heads(dtype, device, batch, tokens, counts, size)
    for own in (value, key):
        actual = qk_norm_rope(query, key, own, *rest, EPS)
        assert report()["qk_norm_rope"] == "triton"
        expected = qk_norm_rope_reference(query, key, own, *rest, EPS)
        for name, right, found in zip(actual._fields, expected, actual, strict=True):
            assert_close(name, right, found)


@pytest.mark.usefixtures("kernels")
def test_qk_norm_rope_writes_into_a_cache(device: torch.device) -> None:
    """Only the slots that are given, and each row has angles of its own."""
    query, key, value, q_weight, k_weight, cos, sin = heads(torch.float32, device, 2, 3, (4, 2), 16)
    cos, sin = (torch.cat((angle, angle.flip(1))) for angle in (cos, sin))
    cache = [torch.full((2, 2, 9, 16), 7.0, device=device) for _ in range(2)]
    into = (cache[0][:, :, 4:7], cache[1][:, :, 4:7])
    given = (query, key, value, q_weight, k_weight, cos, sin, EPS)
    actual = qk_norm_rope(*given, into=into)
    assert report()["qk_norm_rope"] == "triton"
    expected = qk_norm_rope_reference(*given)
    assert actual.key is into[0]
    for right, whole in zip(expected[1:], cache, strict=True):
        assert_close("cache", right, whole[:, :, 4:7])
        assert (whole[:, :, :4] == 7).all()
        assert (whole[:, :, 7:] == 7).all()


@pytest.mark.usefixtures("kernels")
def test_qk_norm_rope_says_what_it_does_not_support(device: torch.device) -> None:
    """Heads that are no power of two take the twin, into a cache too."""
    query, key, value, *rest = heads(torch.float32, device, 1, 2, (2, 1), 24)
    cache = (torch.zeros((1, 1, 2, 24)).to(device), torch.zeros((1, 1, 2, 24)).to(device))
    actual = qk_norm_rope(query, key, value, *rest, EPS, into=cache)
    assert report()["qk_norm_rope"] == "reference: heads of 24 channels"
    expected = qk_norm_rope_reference(query, key, value, *rest, EPS)
    assert_close("key", expected.key, cache[0])
    assert actual.value is cache[1]
    query, key, value, *rest = heads(torch.bfloat16, device, 1, 2, (2, 1), 16)
    qk_norm_rope(query, key, value, *rest[:2], rest[2].float(), rest[3].float(), EPS)
    assert report()["qk_norm_rope"].startswith("reference: projections, angles or a cache")


@pytest.mark.slow
def test_torch_compile_traces_the_twins() -> None:
    """In one graph: training compiles whole layers, in which a break would cost what it saves."""

    def layer(hidden: Tensor, weight: Tensor) -> Tensor:
        total, normed = residual_norm(hidden, hidden, weight, EPS, next_weights=(None,))
        return rms_norm(total + normed, weight, EPS)

    hidden, weight = (random((3, 8), torch.float32, torch.device("cpu"), n) for n in (0, 1))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(hidden, weight[0]), layer(hidden, weight[0]))
