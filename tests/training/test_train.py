"""The trainer learns, resumes where it stopped, and what it packs is what the engine loads."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from dgemma_engine import InfillRequest, load_engine, load_model
from dgemma_kernels import attention, moe_experts
from training.fast_kernels import (
    dense_experts,
    device_attention,
    masked_attention,
    softcapped_cross_entropy,
)
from training.optimizer import Muon, orthogonalize
from training.pack import pack
from training.train import Options, Progress, Trainer, run, save_checkpoint

OPTIONS = Options(
    size="tiny", steps=12, tokens_per_step=1024, document_length=256, causal_share=0.25
)


def build_trainer(source, tokenizer, options=OPTIONS):
    return Trainer(options, tokenizer.get_vocab_size(), source, source)


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    """The runs here are shorter than the trainer's warm-up."""
    monkeypatch.setattr("training.train._WARM_UP_STEPS", 2)


def losses_of(trainer, num_steps):
    found = []
    for _ in range(num_steps):
        losses = trainer.train_step()
        assert losses is not None
        found.append(float(losses.total.detach()))
    return found


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(source, tokenizer, tmp_path):
    """All that the next step depends on is in the checkpoint: the losses agree to the last bit."""
    whole = build_trainer(source, tokenizer)
    expected = losses_of(whole, 12)
    assert whole.train_step() is None
    first = build_trainer(source, tokenizer)
    actual = losses_of(first, 5)
    save_checkpoint(first, tmp_path)
    second = build_trainer(source, tokenizer)
    second.load_state(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    actual += losses_of(second, 7)
    assert expected == actual
    assert whole.progress.canvas_tokens == second.progress.canvas_tokens > 0
    for name, value in whole.ema.items():
        assert torch.equal(value, second.ema[name]), name


def test_losses_fall(source, tokenizer):
    """Thirty steps on a small corpus lower both losses."""
    options = dataclasses.replace(OPTIONS, steps=30, causal_share=0.0, self_conditioning=0.0)
    trainer = build_trainer(source, tokenizer, options)
    before = trainer.evaluate(use_ema=False)
    losses_of(trainer, 30)
    after = trainer.evaluate(use_ema=False)
    assert after["causal"] < before["causal"] - 0.5
    assert after["canvas"] < before["canvas"] - 0.5


def test_what_is_packed_loads(source, tokenizer, tmp_path):
    """The engine loads the folder, with every tensor in place, and fills a hole with it."""
    trainer = build_trainer(source, tokenizer, dataclasses.replace(OPTIONS, steps=4))
    folder, corpus, out = tmp_path / "run", tmp_path / "corpus", tmp_path / "packed"
    folder.mkdir()
    corpus.mkdir()
    run(trainer, folder, checkpoint_minutes=100.0, is_main=True)
    tokenizer.save(str(corpus / "tokenizer.json"))
    package = {
        "package": "own",
        "version": "1",
        "licence": "Apache-2.0",
        "split": "train",
        "files": 1,
        "bytes": 10,
    }
    statistics = {"bytes": {"train": 10, "held_out": 0}, "packages": [package]}
    statistics["languages"] = {"python": 6, "go": 2}
    (corpus / "statistics.json").write_text(json.dumps(statistics))
    pack(folder, corpus, out, weights="ema", scores=None)
    model = load_model(str(out), device="cpu")
    for name, parameter in model.named_parameters():
        expected = trainer.ema[name]
        step = expected.abs().amax(dim=-1, keepdim=True) / 127  # of its 8 bits
        assert ((parameter - expected).abs() <= 0.51 * step).all(), name
    assert model.sampler_defaults.max_denoising_steps == 8
    assert model.sampler_defaults.candidates == "argmax"
    engine = load_engine(str(out), device="cpu")
    result = engine.fill(InfillRequest("def f(x):\n    return ", "\n", language_id="python"))
    assert result.num_passes >= 1
    assert "\n" not in result.text
    card = (out / "README.md").read_text()
    assert "| own | 1 | Apache-2.0 | train |" in card
    assert "python 75 %, go 25 %" in card
    layout = json.loads((out / "infill_config.json").read_text())["layout"]
    assert layout["prefix_tokens"] == 320, "five eighths of the longest rows, 512"


@pytest.mark.parametrize("form", [masked_attention, device_attention])
def test_training_attention_equals_the_kernel(form):
    """The trainer's forms and the engine's agree, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 12, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)
    )
    mask = torch.rand(2, 1, 12, 12, generator=generator) < 0.5
    mask[..., 0] = True
    expected = attention(query, key, value, mask)
    actual = form(query, key, value, mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    inputs = (query, key, value)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_dense_experts_equal_the_sorted_ones():
    """Outputs and gradients agree, also for an expert that no token takes."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 12, generator=generator, requires_grad=True)
    gate_up = torch.randn(4, 10, 12, generator=generator, requires_grad=True)
    down = torch.randn(4, 12, 5, generator=generator, requires_grad=True)
    index = torch.tensor([[0, 1], [1, 3], [3, 0]] * 3)
    weight = torch.rand(9, 2, generator=generator, requires_grad=True)
    inputs = (hidden, weight, gate_up, down)
    expected = moe_experts(hidden, index, weight, gate_up, down)
    actual = dense_experts(hidden, index, weight, gate_up, down)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_workers_cut_the_same_rows(source, tokenizer):
    """Batches cut ahead of time, by other processes, give the same losses."""
    options = dataclasses.replace(OPTIONS, steps=4, causal_share=0.0, self_conditioning=0.0)
    expected = losses_of(build_trainer(source, tokenizer, options), 4)
    ahead = Trainer(options, tokenizer.get_vocab_size(), source, source, workers=2)
    assert losses_of(ahead, 4) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_layers_learn_the_same(source, tokenizer):
    """torch.compile changes no loss beyond rounding, with and without self-conditioning."""
    options = dataclasses.replace(OPTIONS, steps=6, causal_share=0.0, long_share=0.0)
    expected = losses_of(build_trainer(source, tokenizer, options), 6)
    compiled = Trainer(options, tokenizer.get_vocab_size(), source, source, compiled=True)
    assert losses_of(compiled, 6) == pytest.approx(expected, rel=0.02)


def test_some_steps_are_documents_alone(source, tokenizer):
    """A share of the steps has canvases; which ones, every process draws alike."""
    options = dataclasses.replace(OPTIONS, steps=40, causal_share=0.0, canvas_share=0.5)
    trainer = build_trainer(source, tokenizer, options)
    with_canvases = [options.choices(step).has_canvases for step in range(40)]
    assert 10 < sum(with_canvases) < 30
    for has_canvases in with_canvases[:6]:
        before = trainer.progress.canvas_tokens
        losses_of(trainer, 1)
        assert (trainer.progress.canvas_tokens > before) == has_canvases


@pytest.mark.slow
def test_a_chain_starts_from_packed_weights(source, tokenizer):
    """The next link has the last one's weights and mean, and a schedule of its own."""
    first = build_trainer(source, tokenizer)
    losses_of(first, 3)
    second = build_trainer(source, tokenizer)
    row = {**first.progress.totals(), "total": 5.0}
    second.start_from(first.model.state_dict(), [row])
    assert second.progress.step == 0
    assert second.progress.losses == [row]
    assert second.progress.totals() == first.progress.totals()
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name])
        assert torch.equal(parameter, second.ema[name])
    losses_of(second, 2)
    assert second.progress.totals()["step"] == first.progress.step + 2
    assert Progress(**second.state()["progress"]).totals() == second.progress.totals()


def test_softcapped_cross_entropy_equals_the_plain_one():
    """Losses, mean and gradients agree, over more rows than one chunk."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=generator, requires_grad=True)
    table = torch.randn(50, 16, generator=generator, requires_grad=True)
    target = torch.randint(0, 50, (300,), generator=generator)
    logits = torch.tanh(hidden @ table.T / 5.0) * 5.0
    expected = F.cross_entropy(logits, target, reduction="none")
    mean, actual = softcapped_cross_entropy(hidden, table, target, 5.0)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(mean, expected.mean())
    for a, b in zip(
        torch.autograd.grad(2 * mean, (hidden, table)),
        torch.autograd.grad(2 * expected.mean(), (hidden, table)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_orthogonalize(shape):
    """Singular values come out around 1, whatever they were."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_muon_treats_a_stack_as_its_matrices():
    """An expert's update does not depend on its being stored with the others."""
    start, gradient = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    stacked = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    stacked.grad = gradient.clone()
    for parameter, matrix in zip(single, gradient, strict=True):
        parameter.grad = matrix.clone()
    Muon([stacked]).step()
    Muon(single).step()
    torch.testing.assert_close(stacked.detach(), torch.stack([p.detach() for p in single]))


def _muon_in_a_process(rank, folder, start, gradient):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    parameters = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    for parameter, matrix in zip(parameters, gradient, strict=True):
        parameter.grad = matrix.clone()
    Muon(parameters).step()
    torch.save([p.detach() for p in parameters], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_muon_is_shared_out_between_processes(tmp_path):
    """Each makes a part of the updates; all end with what one process has."""
    start, gradient = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    for parameter, matrix in zip(alone, gradient, strict=True):
        parameter.grad = matrix.clone()
    Muon(alone).step()
    torch.multiprocessing.spawn(_muon_in_a_process, (str(tmp_path), start, gradient), nprocs=2)
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for actual, expected in zip(shared, alone, strict=True):
            torch.testing.assert_close(actual, expected.detach())
