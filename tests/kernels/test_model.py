"""A tiny model with its kernels interpreted against the plain path, and the loop's arithmetic."""

from __future__ import annotations

import pytest
import torch

from dgemma_engine.canvas import Canvas
from dgemma_engine.sampler import accept
from dgemma_kernels import TokenRules, rms_norm, soft_embedding, vocab_head
from dgemma_kernels.backend import Backend, report, use_backend
from dgemma_kernels.testing import Tolerance, assert_close

from ..engine.tiny import build_model

# Layers and a softcap, each in another order of summation.
LOGITS = Tolerance(2e-5, 5e-5)


@pytest.mark.parametrize("num_prefix", [0, 40])
@torch.no_grad()
def test_a_pass_with_kernels_is_the_plain_pass(
    num_prefix: int, device: torch.device, request: pytest.FixtureRequest
) -> None:
    """Without a prefix, and with one beyond the sliding window, which two canvases share."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = build_model(head_dim=16, **layers).to(device)
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(0, 400, (1, num_prefix), generator=generator).to(device)
    canvas = torch.randint(0, 400, (2, 5), generator=generator).to(device)
    slots = torch.tensor([[1, 2, 4], [1, 2, 4]], device=device)
    before = torch.randn((2, 3, 400), generator=generator).to(device)
    with use_backend(Backend.REFERENCE):
        cache = model.prefill(prefix) if num_prefix else model.new_cache(1)
        expected = model.denoise_logits(canvas, cache, before, slots)
    request.getfixturevalue("kernels")
    actual = model.denoise_logits(canvas, cache, before, slots)
    ops = ("canvas_attention", "qk_norm_rope", "residual_norm", "rms_norm", "soft_embedding")
    assert {report()[op] for op in ops} == {"triton"}
    assert_close("logits", expected, actual, LOGITS)


@pytest.mark.usefixtures("kernels")
@torch.no_grad()
def test_the_head_says_what_the_loop_computes(device: torch.device) -> None:
    """Entropy, argmax, draft's probability and soft embedding of a canvas with clamped slots."""
    model = build_model().to(device)
    generator = torch.Generator().manual_seed(2)
    hole = torch.tensor([[False, True, True, True], [True, False, True, False]]).to(device)
    ids = torch.randint(0, 400, (2, 4), generator=generator).to(device)
    banned = torch.rand(400, generator=generator).to(device) < 0.2
    first_allowed = torch.rand(400, generator=generator).to(device) < 0.1
    canvas = Canvas(ids, hole, banned, first_allowed)
    hidden = torch.randn((2, 4, 32), generator=generator).to(device) * 2
    with use_backend(Backend.REFERENCE):
        logits = canvas.restrict(model.logits(hidden) / 0.6)
        _, entropy = accept(logits, entropy_bound=0.1)
        mean = logits.softmax(-1) @ model.embed_tokens.weight
    rules = TokenRules(
        banned,
        first_allowed,
        torch.where(hole, -1, ids).flatten(),
        (hole & (hole.cumsum(-1) == 1)).flatten(),
    )
    normed = rms_norm(hidden, model.norm.weight, model.config.rms_norm_eps)
    table = model.embed_tokens.weight
    head = vocab_head(
        normed.flatten(0, 1), table, softcap=30.0, temperature=0.6, rules=rules, keep_masses=True
    )
    assert report()["vocab_head"] == "triton"
    assert head.masses is not None
    assert_close("argmax", logits.argmax(-1).flatten(), head.argmax)
    assert (entropy.flatten() - head.entropy).abs().max() < 1e-5
    confidence = (head.maximum - head.log_normalizer).exp()
    assert_close("confidence", logits.softmax(-1).amax(-1).flatten(), confidence)
    soft = soft_embedding(head.masses, head.mass_scale, table)
    assert report()["soft_embedding"] == "triton"
    assert_close("soft embedding", mean.flatten(0, 1), soft, LOGITS)
