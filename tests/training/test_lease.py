"""The commands of a lent GPU, on a CPU and at a tiny size: archive in, packed checkpoint out."""

import dataclasses
import json

import pytest

from dgemma_engine import InfillRequest, load_engine
from training.corpus import Document, write_documents
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
    for stop_after in (0.0, 10.0):
        lease = Lease(archive, tmp_path / "state", out, OPTIONS, "cpu")
        lease.train(stop_after, compiled=False, workers=0)
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
    lease.train(0.0, compiled=False, workers=0)
    assert (tmp_path / "out" / "model.safetensors").exists()
    unpack(tmp_path / "out", tmp_path / "back")
    packed = {path.name: path.read_bytes() for path in (tmp_path / "state/packed").iterdir()}
    assert packed == {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}


def test_check_and_noise_report_as_json(archive, tmp_path, monkeypatch):
    """Throughput of each form, an error where one fails, and both kinds of noise."""
    lease = Lease(archive, tmp_path / "state", tmp_path / "out", OPTIONS, "cpu")

    def refuse(function, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("training.streams.torch.compile", refuse)
    found = lease.check(0.1, workers=0)
    assert found["plain, both"]["tokens_per_second"] > 0
    assert "no compiler here" in found["compiled, both"]["error"]
    assert json.loads((tmp_path / "out/check.json").read_text()) == found
    noise = lease.noise(0.02, compiled=False, workers=0)
    assert {"uniform", "hybrid"} == set(noise)
    assert noise["hybrid"]["first"] > 0


def test_the_command_line_smokes(archive, tmp_path):
    """As it is typed on the GPU machine, but for --smoke."""
    state, out = tmp_path / "state", tmp_path / "out"
    places = ["--archive", str(archive), "--state", str(state), "--out", str(out)]
    main(["train", *places, "--smoke", "--workers", "1", "--minutes", "0.01"])
    main(["unpack", "--files", str(out), "--checkpoint", str(tmp_path / "checkpoint")])
    assert (tmp_path / "checkpoint" / "config.json").exists()
