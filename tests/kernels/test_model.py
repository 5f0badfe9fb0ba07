"""A tiny model with its kernels interpreted against the plain path, and the loop's arithmetic."""

from __future__ import annotations

import pytest
import torch

from dgemma_engine.canvas import Canvas
from dgemma_engine.config import SamplerConfig
from dgemma_engine.denoise import denoise
from dgemma_engine.device_loop import DeviceLoop
from dgemma_engine.device_pass import Size
from dgemma_engine.sampler import Randoms, accept
from dgemma_engine.stopping import StableAndConfident, StableText
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


@torch.no_grad()
def test_the_loop_on_the_device_is_the_plain_loop(
    device: torch.device, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every op of a pass by its kernel, over a canvas of two holes; a prefix whose end is new."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    model = build_model(head_dim=16, vocab_size=150, num_experts=2, **layers).to(device)
    config = SamplerConfig(
        max_denoising_steps=3, entropy_bound=4.0, min_accept=True, stable_text_passes=2
    )
    generator = torch.Generator(device).manual_seed(1)
    hole = torch.tensor([[0, 1, 1, 0, 1, 0]], dtype=torch.bool, device=device)
    ids = torch.randint(0, 150, (1, 6), generator=generator, device=device)
    starts = torch.tensor([[0, 1, 0, 0, 2, 0]], device=device)
    allowed = torch.rand((2, 150), generator=generator, device=device) < 0.1
    banned = torch.rand(150, generator=generator, device=device) < 0.2
    canvas = Canvas(ids, hole, banned, allowed, starts)
    randoms = Randoms.of(generator, num_steps=3, shape=(1, 6), num_slots=3, vocab_size=150)
    with use_backend(Backend.REFERENCE):
        prompt = torch.arange(40, device=device)[None]
        cache, given = model.prefill(prompt), (canvas, config, generator)
        expected = list(denoise(model, cache, *given, _criteria(config), randoms=randoms))
        cache = model.prefill(prompt[:, :33])
    request.getfixturevalue("kernels")
    small = Size(rows=1, canvas=8, slots=4, holes=2, steps=4)  # larger ones take long here
    monkeypatch.setattr(Size, "holding", lambda *_: small)
    steps = DeviceLoop(model).denoise(
        cache, *given, _criteria(config), randoms=randoms, new_ids=prompt[0, 33:].tolist()
    )
    actual = list(steps)
    ops = ("canvas_attention", "moe_experts", "vocab_head", "soft_embedding", "entropy_accept")
    assert {op: report()[op] for op in ops} == dict.fromkeys(ops, "triton")
    for plain, step in zip(expected, actual, strict=True):
        assert torch.equal(plain.canvas, step.canvas)
        assert torch.equal(plain.argmax_canvas, step.argmax_canvas)
        assert torch.equal(plain.accepted, step.accepted)
        assert plain.stop_reason == step.stop_reason
        assert_close("entropy", plain.entropy, step.entropy, Tolerance(1e-4, 1e-4))


def _criteria(config: SamplerConfig) -> list[StableAndConfident | StableText]:
    first = StableAndConfident(config.stability_threshold, config.confidence_threshold)
    return [first, StableText(config.stable_text_passes, [5, 6])]
