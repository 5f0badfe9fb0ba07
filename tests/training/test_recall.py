"""The fit of what is recalled: holes like an editor's, and the loss that inference has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dgemma_engine.infill import CHECKPOINTS_FOLDER, DEFAULT_CHECKPOINT, build_engine
from dgemma_engine.recall import END, Recall, RecallWeights, Votes
from training.corpus import Document
from training.recall import START, Place, cut_holes, fit, look_at, main

SHIPPED = CHECKPOINTS_FOLDER / DEFAULT_CHECKPOINT
MODULE = "".join(
    f"def load_{name}(path, strict):\n"
    f"    with open_resource(path, mode='rb') as source:\n"
    f"        return decode_{name}(source, strict=strict)\n\n\n"
    for name in ("image", "sound", "table", "index", "model", "theme")
)


def documents() -> list[Document]:
    return [
        Document("one", f"app/{name}.py", "train", MODULE.replace("image", name))
        for name in ("video", "voice", "chart")
    ]


@pytest.fixture(scope="module")
def places() -> list[Place]:
    engine = build_engine(str(SHIPPED), device="cpu", dtype="float32")
    recall = Recall(engine.tokenizer, START)
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    return [
        place
        for request, middle in cut_holes(documents(), tokenizer, 24)
        for place in look_at(engine, recall, request, middle)
    ]


def test_holes_are_an_editors(places: list[Place]) -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    holes = list(cut_holes(documents(), tokenizer, 24))
    assert len(holes) == 24
    texts = {document.text for document in documents()}
    for request, middle in holes:
        assert request.prefix + middle + request.suffix in texts
        assert "\n" not in middle
        assert len(request.nearby) == 2, "the other files of its folder"
    assert [place.token_id for place in places].count(END) == 24
    assert all(0 <= place.chance <= place.certainty + 1e-6 for place in places)


def test_text_that_repeats_itself_is_likelier_with_the_fit(places: list[Place]) -> None:
    weights, before, after = fit(places, steps=150)
    assert after < 0.6 * before
    assert weights.length > 0


def test_the_loss_of_the_fit_is_the_one_of_inference() -> None:
    """`mixed` and `fit` have the same formula; without a step the fit is its beginning."""
    engine = build_engine(str(SHIPPED), device="cpu", dtype="float32")
    recall = Recall(engine.tokenizer, START)
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    request, middle = next(cut_holes(documents(), tokenizer, 4, seed=3))
    found = look_at(engine, recall, request, middle)
    _, before, after = fit(found, steps=0)
    token_ids = [place.token_id for place in found[:-1]]
    plan = recall.into(engine.strategy.plan(request), request)
    assert plan.rules is not None
    _, chain = engine._left_to_right.read(plan, plan.rules, token_ids)
    assert after * len(found) == pytest.approx(-chain.log_probability, rel=1e-4)
    assert before != pytest.approx(after)


def test_a_memory_that_is_always_wrong_is_not_trusted() -> None:
    votes = Votes(np.array([7], dtype=np.int32), np.array([3]), np.array([10]))
    weights, before, after = fit([Place(0.5, 0.5, 8, votes)] * 20, steps=200)
    assert after == pytest.approx(before, abs=0.05)
    assert weights.bias < START.bias


def test_the_command_writes_the_numbers_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, corpus = tmp_path / "model", tmp_path / "corpus"
    shutil.copytree(SHIPPED, folder)
    corpus.mkdir()
    lines = [
        json.dumps({"package": d.package, "path": d.path, "split": d.split, "text": d.text})
        for d in documents()
    ]
    (corpus / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = json.loads((folder / "infill_config.json").read_text(encoding="utf-8"))
    main(["--model", str(folder), "--corpus", str(corpus), "--holes", "8"])
    after = json.loads((folder / "infill_config.json").read_text(encoding="utf-8"))
    assert RecallWeights.from_json(after) is not None
    assert after.pop("recall") != before.pop("recall")
    assert after == before
    assert "nats without recall" in capsys.readouterr().out
