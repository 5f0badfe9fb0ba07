"""Two halves are one forward: losses, gradients and masks agree with the joint form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask

from dgemma_engine.canvas import clamp_logits
from dgemma_engine.config import ModelConfig
from dgemma_engine.model import DiffusionGemma
from training.fast_kernels import expected_embeddings, training_kernels
from training.initialise import build_config, initialise
from training.masks import canvas_rule, document_rule
from training.objective import compute_losses, corrupt, router_loss
from training.rows import Mixture
from training.streams import Streams, block_masks, dense_masks

MIXTURE = Mixture(block=0.2, exact=0.3, slack=0.5, suffix_window=0.5, canvas_tokens=256)


@pytest.fixture
def model():
    config = ModelConfig.from_json(build_config("tiny", 600))
    assert config.sliding_window < 128
    model = DiffusionGemma(config)
    initialise(model, torch.Generator().manual_seed(1))
    for layer in model.layers:
        layer.layer_scalar.fill_(0.7)
        layer.encoder_layer_scalar.fill_(0.9)
    return model


@pytest.fixture
def batch(source, model):
    return source.batch(0, 0, MIXTURE, 3, 128, model.config.sliding_window)


def noisy(batch):
    return corrupt(batch, 600, "uniform", 0.3, 0.3, torch.Generator().manual_seed(0))


def joint_loss(model, batch, corruption, self_condition):
    """What is minimised, from `forward_joint`, with every logit held.

    What the first pass expects is an input of the second, the table that it is read from included.
    """
    combine = model.self_conditioning.combine
    model.self_conditioning.combine = lambda embeddings, soft: combine(
        embeddings, soft if soft is None else soft.detach()
    )
    token_ids = torch.cat((batch.token_ids[:, :128], corruption.canvas_ids), dim=1)
    routed = []
    for layer in model.layers:
        layer.router.proj.register_forward_hook(lambda *args: routed.append(args[2]))

    def forward(conditioning):
        routed.clear()
        hidden = model.forward_joint(
            token_ids,
            batch.is_canvas,
            batch.position_ids,
            batch.sliding_mask,
            batch.full_mask,
            conditioning,
        )
        return model.logits(hidden)

    conditioning = None
    if self_condition:
        with torch.no_grad():
            believed = forward(None)[:, 128:]
        conditioning = clamp_logits(believed, batch.token_ids[:, 128:], batch.hole_mask)
    logits = forward(conditioning)
    scored = batch.document_weight[:, 1:] > 0
    causal = F.cross_entropy(logits[:, :127][scored], batch.token_ids[:, 1:128][scored])
    slots = batch.hole_mask
    canvas = F.cross_entropy(logits[:, 128:][slots], batch.token_ids[:, 128:][slots])
    return causal + canvas + router_loss(routed, model)


@pytest.mark.parametrize("self_condition", [False, True])
def test_two_halves_learn_what_the_joint_forward_does(model, batch, self_condition):
    """Loss and every gradient agree, also where documents are encoded once for two passes."""
    corruption = noisy(batch)
    twin = copy.deepcopy(model)
    expected = joint_loss(twin, batch, corruption, self_condition)
    expected_gradients = torch.autograd.grad(expected, list(twin.parameters()), allow_unused=True)
    parameters = list(model.parameters())
    losses = compute_losses(Streams(model), batch, corruption, self_condition)
    torch.testing.assert_close(losses.total, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(losses.total, parameters, allow_unused=True)
    for (name, _), a, b in zip(
        model.named_parameters(), gradients, expected_gradients, strict=True
    ):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-3, msg=name)
    conditioner = model.self_conditioning.gate_proj.weight
    index = next(i for i, p in enumerate(parameters) if p is conditioner)
    assert (gradients[index] is not None) == self_condition


def test_self_conditioning_has_gradients_under_autocast(model, batch):
    """The first pass leaves no casts without gradient behind: the embedding learns by both uses."""
    corruption = noisy(batch)
    table = model.embed_tokens.weight
    expected = torch.autograd.grad(
        compute_losses(Streams(model), batch, corruption, True).total, [table]
    )[0]
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16), training_kernels(device):
        total = compute_losses(Streams(model), batch, corruption, True).total
    actual = torch.autograd.grad(total, [table])[0]
    assert F.cosine_similarity(actual.flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_attending_in_blocks_changes_nothing(model, batch):
    """flex_attention under its rules gives what dense masks give (forward: CPUs have no more)."""
    corruption = noisy(batch)
    with torch.no_grad(), training_kernels(torch.device("cpu")):
        expected = compute_losses(Streams(model), batch, corruption, True).total
        actual = compute_losses(Streams(model, in_blocks=True), batch, corruption, True).total
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 32])
def test_rules_say_what_the_masks_say(batch, window):
    """Query by query and key by key, but for padding, which nothing sees."""
    dense = dense_masks(batch)
    kind = window is not None
    shape = {"B": 3, "H": None, "device": "cpu"}
    documents = create_mask(
        document_rule(batch.document_index, window), Q_LEN=128, KV_LEN=128, **shape
    )
    assert torch.equal(documents, dense.documents[kind])
    rule = canvas_rule(batch.canvas_index, batch.cuts, 128, window)
    canvases = create_mask(rule, Q_LEN=256, KV_LEN=384, **shape)
    assert torch.equal(canvases, dense.canvases[kind])
    assert block_masks(batch, compiled=False).canvases[kind].shape == (3, 1, 256, 384)


def test_expected_embeddings_equal_the_plain_ones():
    """The mean embedding under softcapped logits, over more rows than one chunk."""
    hidden = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    logits = torch.tanh(hidden @ table.T / 5.0) * 5.0
    torch.testing.assert_close(
        expected_embeddings(hidden, table, 5.0), logits.softmax(dim=-1) @ table
    )
