"""The commands of a lent GPU, on a CPU and at a tiny size: archive in, packed checkpoint out."""

import dataclasses
import json

import pytest
import torch

from dgemma_engine import InfillRequest, load_engine, load_model
from training.corpus import Document, write_documents
from training.fills import held_out_holes
from training.lease import SMOKE, Lease, carry, main, unpack

OPTIONS = dataclasses.replace(SMOKE, steps=6)


@pytest.fixture(scope="module")
def archive(texts, tokenizer, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    documents = [
        Document("own", str(i), split, text)
        for split in ("train", "held_out")
        for i, text in enumerate(texts)
    ]
    write_documents(documents, corpus / "documents.jsonl")
    tokenizer.save(str(corpus / "tokenizer.json"))
    package = {"package": "own", "version": "1", "licence": "Apache-2.0", "split": "train"}
    statistics = {
        "bytes": {"train": 10, "held_out": 0},
        "packages": [{**package, "files": 1, "bytes": 10}],
    }
    (corpus / "statistics.json").write_text(json.dumps(statistics))
    carry(corpus, corpus / "carried" / "corpus.tar.xz")
    return corpus / "carried" / "corpus.tar.xz"


def test_a_run_goes_on_from_command_to_command(archive, tmp_path):
    """Each command leaves a checkpoint that loads, in few files; the next one resumes."""
    out, checkpoint = tmp_path / "out", tmp_path / "checkpoint"
    steps = []
    for until in (0.0, 1e6):
        lease = Lease(archive, tmp_path / "state", out, OPTIONS, "cpu")
        lease.train(until, "plain")
        unpack(out, checkpoint)
        log = (checkpoint / "losses.csv").read_text().splitlines()
        steps.append(int(log[-1].split(",")[0]))
        assert len(list(out.iterdir())) <= 8
        assert all(path.stat().st_size <= 16 * 2**20 for path in out.iterdir())
    assert steps == [1, 6]
    engine = load_engine(str(checkpoint), device="cpu")
    assert engine.fill(InfillRequest("def f(x):\n    return ", "\n")).num_passes >= 1


def test_large_files_travel_by_themselves(archive, tmp_path, monkeypatch):
    """And come back to where they were."""
    monkeypatch.setattr("training.lease._LARGE_BYTES", 10_000)
    lease = Lease(archive, tmp_path / "state", tmp_path / "out", OPTIONS, "cpu")
    lease.train(0.0, "plain")
    assert (tmp_path / "out" / "model.safetensors").exists()
    unpack(tmp_path / "out", tmp_path / "back")
    packed = {path.name: path.read_bytes() for path in (tmp_path / "state/packed").iterdir()}
    assert packed == {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}


def test_what_is_there_is_packed_on_the_way(archive, tmp_path, monkeypatch):
    """A command that is cut off leaves the checkpoint of a few minutes before."""

    class CutOffError(Exception):
        pass

    def cut_off(*arguments, **options):
        options["on_save"]()
        assert not (tmp_path / "out" / "small_files.tar").exists()
        options["on_save"]()
        raise CutOffError

    lease = Lease(archive, tmp_path / "state", tmp_path / "out", OPTIONS, "cpu")
    lease.train(0.0, "plain")
    (tmp_path / "out" / "small_files.tar").unlink()
    monkeypatch.setattr("training.lease.run", cut_off)
    with pytest.raises(CutOffError):
        lease.train(1e6, "plain")
    unpack(tmp_path / "out", tmp_path / "checkpoint")
    assert load_model(str(tmp_path / "checkpoint"), device="cpu").config.vocab_size == 600


@pytest.mark.slow
def test_check_chooses_the_fastest_form_that_is_right(archive, tmp_path, monkeypatch):
    """A form that fails or computes something else is reported and not chosen."""
    monkeypatch.setattr("training.lease.FORMS", {"plain": {}, "wrong": {}, "failing": {"x": True}})
    trainer = Lease.trainer
    number = 0

    def other_weights(lease, options, form):
        nonlocal number
        number += form == "wrong"
        seed = options.seed + number if form == "wrong" else options.seed
        return trainer(lease, dataclasses.replace(options, seed=seed), form)

    monkeypatch.setattr(Lease, "trainer", other_weights)
    lease = Lease(archive, tmp_path / "state", tmp_path / "out", OPTIONS, "cpu")
    found = lease.check(0.1)
    assert found["plain"]["agrees"]
    assert found["plain"]["tokens_per_second"] > 0
    assert not found["wrong"]["agrees"]
    assert "unexpected keyword" in found["failing"]["error"]
    assert found["choice"] == lease.fastest_form("?") == "plain"
    assert json.loads((tmp_path / "out/check.json").read_text()) == found


def test_noise_compares_runs_of_equal_length(archive, tmp_path):
    """Both kinds run from the same start for as many steps, and are reported side by side."""
    options = dataclasses.replace(SMOKE, causal_share=0.0)
    lease = Lease(archive, tmp_path / "state", tmp_path / "out", options, "cpu")
    found = lease.noise(0.02, "plain")
    assert found["hybrid"]["steps"] == found["uniform"]["steps"] > 0
    assert found["hybrid"]["first"] != found["uniform"]["first"]
    gain = found["uniform"]["t1"] - found["hybrid"]["t1"]
    assert json.loads((tmp_path / "out/noise.json").read_text())["gain of hybrid, t1"] == (
        pytest.approx(gain, abs=1e-3)
    )


def test_evaluate_fills_held_out_spans(archive, tmp_path):
    """Every kind of span within a line, by both decoders, and the losses beside them."""
    lease = Lease(archive, tmp_path / "state", tmp_path / "out", OPTIONS, "cpu")
    lease.train(1e6, "plain")
    found = lease.evaluate(num_each=2)
    assert found["losses"]["causal"] > 0
    kinds = {"rest_of_line", "mid_line", "whole_line", "bracket", "expression"}
    assert set(found["diffusion"]) == set(found["left_to_right"]) == kinds
    assert all(scores["holes"] == 2 for scores in found["diffusion"].values())


def test_held_out_holes_are_cut_out_of_one_line(documents):
    """Prefix, text and suffix stand in the file; nothing is asked on a line that is shared."""
    holes = list(held_out_holes(documents, 5))
    assert len(holes) == 25
    for hole in holes:
        around = hole.prefix[-200:] + hole.text + hole.suffix[:200]
        assert any(around in document.text for document in documents)
        assert "\n" not in hole.text
    shared = [dataclasses.replace(d, leaked_lines=frozenset(range(10_000))) for d in documents]
    assert not list(held_out_holes(shared, 1))


@pytest.mark.slow
def test_a_chain_starts_from_a_packed_checkpoint(archive, tmp_path):
    """A new run takes its weights; a run that has begun does not."""
    first = Lease(archive, tmp_path / "first", tmp_path / "out", OPTIONS, "cpu")
    first.train(1e6, "plain")
    options = dataclasses.replace(OPTIONS, muon_lr=0.0, adam_lr=0.0, causal_share=1.0)
    second = Lease(archive, tmp_path / "second", tmp_path / "out", options, "cpu")
    second.train(0.0, "plain", init_from=tmp_path / "first" / "packed")
    expected, actual = (
        load_model(str(tmp_path / name / "packed"), device="cpu").state_dict()
        for name in ("first", "second")
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-6, rtol=1e-5)
    curves = [
        (tmp_path / name / "packed" / "losses.csv").read_text().splitlines()
        for name in ("first", "second")
    ]
    assert curves[1][: len(curves[0])] == curves[0]
    state = torch.load(tmp_path / "second" / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["canvas_tokens"] > 0, "documents alone would unlearn the canvases"


def test_the_command_line_smokes(archive, tmp_path):
    """As it is typed on the GPU machine, but for --smoke."""
    state, out = tmp_path / "state", tmp_path / "out"
    places = ["--archive", str(archive), "--state", str(state), "--out", str(out)]
    main(["train", *places, "--smoke", "--workers", "1", "--minutes", "0.01"])
    main(["unpack", "--files", str(out), "--checkpoint", str(tmp_path / "checkpoint")])
    assert (tmp_path / "checkpoint" / "config.json").exists()
