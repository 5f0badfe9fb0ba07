"""A wider model begins as the narrow one that it was made from."""

import pytest
import torch

from dgemma_engine.config import ModelConfig
from dgemma_engine.model import DiffusionGemma
from training.initialise import build_config, initialise
from training.widen import widen

_VOCAB_SIZE = 80


def config_of(**text_config):
    json = build_config("tiny", _VOCAB_SIZE)
    return ModelConfig.from_json({**json, "text_config": {**json["text_config"], **text_config}})


NARROW = config_of(hidden_size=32, num_attention_heads=2, num_experts=3, top_k_experts=2)
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "moe_intermediate_size": 32,
    "num_experts": 3,
    "top_k_experts": 2,
}


def model_of(config, seed=0):
    model = DiffusionGemma(config)
    initialise(model, torch.Generator().manual_seed(seed))
    for parameter in model.parameters():  # norms that are not all alike
        parameter.data *= 1.0 + 0.3 * torch.rand(parameter.shape)
    return model.eval()


def widened(narrow, config):
    wide = model_of(config, seed=1)
    shapes = {name: value.shape for name, value in wide.state_dict().items()}
    wide.load_state_dict(widen(narrow.state_dict(), shapes, torch.Generator().manual_seed(2)))
    return wide


@pytest.mark.parametrize("num_key_value_heads", [1, 2])
def test_a_wider_model_computes_the_same(num_key_value_heads):
    """Left to right, on a canvas, and with what an earlier pass expects."""
    narrow = model_of(NARROW)
    wide = widened(narrow, config_of(**WIDE, num_key_value_heads=num_key_value_heads))
    prefix = torch.randint(0, _VOCAB_SIZE, (1, 40))
    canvas = torch.randint(0, _VOCAB_SIZE, (2, 12))
    caches = [model.prefill(prefix) for model in (narrow, wide)]
    expected, actual = (
        model.continuation_logits(canvas, cache, 40)
        for model, cache in zip((narrow, wide), caches, strict=True)
    )
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    before = None
    for _ in range(2):
        expected, actual = (
            model.denoise_logits(canvas, cache, before)
            for model, cache in zip((narrow, wide), caches, strict=True)
        )
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        before = expected


def test_the_copies_learn_different_things():
    """What comes in and goes out is twice the same at first; the gradients are not."""
    wide = widened(model_of(NARROW), config_of(**WIDE))
    prefix = torch.randint(0, _VOCAB_SIZE, (1, 20))
    hidden = wide.embed(prefix)
    first, second = hidden.chunk(2, dim=-1)
    assert torch.equal(first, second)
    rotaries = wide._rotaries(torch.arange(20)[None], hidden.dtype)
    layer = wide.layers[0]
    normed = layer.input_layernorm(hidden)
    attended = layer.self_attn.attend(
        *layer.self_attn.project(normed, rotaries[layer.config]), None
    )
    layer.finish(hidden, attended, None).sin().sum().backward()
    for name in ("self_attn.q_proj", "mlp.up_proj"):
        upper, lower = layer.get_submodule(name).weight.grad.chunk(2, dim=0)
        assert float((upper - lower).abs().max()) > 0.1 * float(upper.abs().max()), name


def test_another_shape_is_refused():
    """Three times as wide is nothing that copies can make."""
    shapes = {name: value.shape for name, value in model_of(NARROW).state_dict().items()}
    shapes["embed_tokens.weight"] = torch.Size((_VOCAB_SIZE, 96))
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \(80, 32\); it cannot become"):
        widen(model_of(NARROW).state_dict(), shapes, torch.Generator())
