"""Head, attention and sampler as the interpreter cannot show them. Run with `-m gpu`.

Tensor cores, the sizes of the 26B, and one denoising step as a CUDA graph.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_kernels import canvas_attention, entropy_accept, soft_embedding, vocab_head
from dgemma_kernels.backend import report
from dgemma_kernels.canvas_attention.reference import canvas_attention_reference
from dgemma_kernels.entropy_accept import SlotState
from dgemma_kernels.soft_embedding.reference import soft_embedding_reference
from dgemma_kernels.testing import Tolerance, assert_close, random_weight
from dgemma_kernels.vocab_head.reference import vocab_head_reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("kernels")]
DTYPE = torch.bfloat16
VOCAB, SIZE = 262144, 2816
STATISTICS = Tolerance(1e-5, 3e-5)


def random_head(tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight, draws; the rows go from nearly uniform to nearly certain."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn((tokens, SIZE), generator=generator, device=device)
    hidden = hidden * torch.linspace(0.5, 8, tokens, device=device)[:, None]
    weight = random_weight((VOCAB, SIZE), DTYPE, generator, device)
    draws = torch.rand((tokens, 2), generator=generator, device=device)
    return hidden.to(DTYPE), weight, draws


@pytest.mark.parametrize("tokens", [1, 33, 64, 200])
def test_head_of_the_26b(tokens: int, device: torch.device) -> None:
    """Statistics, draws and the soft embedding after them, with logits in float32."""
    hidden, weight, draws = random_head(tokens, device)
    given = {"softcap": 30.0, "temperature": 0.6, "draws": draws, "round_logits": False}
    actual = vocab_head(hidden, weight, **given, keep_masses=True)
    assert report()["vocab_head"] == "triton"
    expected = vocab_head_reference(hidden, weight, **given)
    assert_close("log_normalizer", expected.log_normalizer, actual.log_normalizer, STATISTICS)
    assert_close("maximum", expected.maximum, actual.maximum, STATISTICS)
    assert (expected.entropy - actual.entropy).abs().max() < 1e-4
    assert expected.sample is not None
    assert actual.sample is not None
    assert actual.masses is not None
    # Where two tokens are as likely to 1e-6, or a draw is that near to an edge, either may come.
    assert (expected.argmax != actual.argmax).sum() <= tokens // 50
    assert (expected.sample != actual.sample).sum() <= tokens // 20
    soft = soft_embedding(actual.masses, actual.mass_scale, weight)
    assert report()["soft_embedding"] == "triton"
    plain = soft_embedding_reference(actual.masses, actual.mass_scale, weight)
    assert_close("soft_embedding", plain, soft)


@pytest.mark.parametrize("tokens", [1, 64, 256])
@pytest.mark.parametrize("prefix", [0, 1000, 4097, 16384])
@pytest.mark.parametrize(("kv_heads", "size", "window"), [(8, 256, 1023), (2, 512, None)])
def test_attention_of_the_26b(
    kv_heads: int, size: int, window: int | None, prefix: int, tokens: int, device: torch.device
) -> None:
    """Both kinds of layer, 16 query heads, in bfloat16 against the twin in float32."""
    generator = torch.Generator(device).manual_seed(0)

    def heads(count: int, length: int, scale: float = 1.0) -> Tensor:
        shape = (1, count, length, size)
        return (torch.randn(shape, generator=generator, device=device) * scale).to(DTYPE)

    given = (
        heads(16, tokens, size**-0.5),
        *(heads(kv_heads, prefix) for _ in range(2)),
        *(heads(kv_heads, tokens) for _ in range(2)),
    )
    expected = canvas_attention_reference(*(part.float() for part in given), window=window)
    assert_close("canvas_attention", expected.to(DTYPE), canvas_attention(*given, window=window))
    assert report()["canvas_attention"] == "triton"


def test_a_step_as_a_graph_gives_the_same_bits(device: torch.device) -> None:
    """Attention over a cache that fills, head, acceptance in place, soft embedding: three steps."""
    tokens = 64
    hidden, weight, draws = random_head(tokens, device)
    degree = torch.full((1,), 0.8, device=device)
    length = torch.tensor([100], dtype=torch.int32, device=device)
    fresh = torch.zeros((1, tokens), dtype=torch.int64, device=device)
    hole = torch.ones((1, tokens), dtype=torch.bool, device=device)
    query, key = (torch.randn((1, n, tokens, 256), device=device).to(DTYPE) for n in (16, 8))
    cache = torch.randn((1, 8, 4096, 256), device=device).to(DTYPE)
    rules = {"entropy_bound": 0.1, "stability_threshold": 1, "confidence_threshold": 0.005}

    def start() -> SlotState:
        return SlotState(
            torch.zeros((1, tokens), dtype=torch.int64, device=device),
            torch.full((1, tokens), -1, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.zeros(1, dtype=torch.bool, device=device),
        )

    def step(state: SlotState) -> tuple[Tensor, Tensor]:
        heads = canvas_attention(query, cache, cache, key, key, prefix_length=length, window=1023)
        head = vocab_head(
            hidden, weight, softcap=30.0, temperature=degree, draws=draws, keep_masses=True
        )
        assert head.sample is not None
        assert head.masses is not None
        found = (head.sample[None], head.argmax[None], head.entropy[None])
        entropy_accept(state, *found, fresh, hole, **rules, in_place=True)
        return heads, soft_embedding(head.masses, head.mass_scale, weight)

    captured, eager = start(), start()
    step(start())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(captured)
    for old, new in zip(captured, start(), strict=True):
        old.copy_(new)
    for index in range(3):
        generator = torch.Generator(device).manual_seed(index)
        draws.copy_(torch.rand(draws.shape, generator=generator, device=device))
        fresh.random_(0, VOCAB, generator=generator)
        degree.fill_(0.8 - 0.1 * index)
        length.fill_(100 + 900 * index)
        graph.replay()
        expected = step(eager)
        assert all(torch.equal(left, right) for left, right in zip(expected, outputs, strict=True))
        assert all(torch.equal(left, right) for left, right in zip(eager, captured, strict=True))
