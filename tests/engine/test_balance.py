"""Fills that leave brackets or quotes wrong are unlikely, in all that the encoder says of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dgemma_engine import Decoder, HoleKind, InfillRequest
from dgemma_engine.balance import Balance
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.strategies import InfillPlan
from dgemma_engine.tokenizer import Tokenizer

from .tiny import save_checkpoint

Chances = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("model"))))


def request(text: str) -> InfillRequest:
    prefix, suffix = text.split("║")
    return InfillRequest(prefix, suffix, HoleKind.LINE, "python", decoder=Decoder.LEFT_TO_RIGHT)


def balanced(engine: DiffusionEngine, asked: InfillRequest) -> InfillPlan:
    balance = Balance(engine.tokenizer, engine.model.config.vocab_size)
    return balance.into(engine.strategy.plan(asked), asked)


def flat(engine: DiffusionEngine) -> Chances:
    """A model without an opinion."""
    size = engine.model.config.vocab_size + 1
    chances = torch.full((size,), -math.log(size))
    return chances[1:], chances[0]


def mixed(engine: DiffusionEngine, text: str, written: str) -> Chances:
    """What comes behind a text in the hole."""
    plan = balanced(engine, request(text))
    assert plan.mix is not None
    return plan.mix(engine.tokenizer.encode(plan.healed.decode() + written), *flat(engine))


def token(tokenizer: Tokenizer, text: str) -> int:
    (token_id,) = tokenizer.encode(text)
    return token_id


def test_an_end_that_leaves_a_bracket_open_is_unlikely(engine: DiffusionEngine) -> None:
    for written, fits in (("a", False), ("a)", True), ("')'", False)):
        _, end = mixed(engine, "x = f(║\ny = 1\n", written)
        assert (float(end) > float(flat(engine)[1]) - 1.0) == fits, written


def test_a_token_that_closes_what_is_not_open_is_unlikely(engine: DiffusionEngine) -> None:
    closing, other = (token(engine.tokenizer, text) for text in (")", "x"))
    for written, fits in (("a", True), ("a)", False), ("a, '", True)):
        going_on, _ = mixed(engine, "x = f(║\ny = 1\n", written)
        assert (float(going_on[closing]) > float(going_on[other]) - 1.0) == fits, written


def test_what_the_suffix_closes_is_left_to_it(engine: DiffusionEngine) -> None:
    """Whoever would close it again, as the text behind the hole begins, would end there."""
    closing = token(engine.tokenizer, ")")
    usual, usual_end = flat(engine)
    going_on, end = mixed(engine, "x = f(║)\ny = 1\n", "a")
    assert float(end) > float(usual_end) + 0.5, "the chance of going on with ) is its own now"
    assert float(going_on[closing]) < float(usual[closing]) - 1.0
    going_on, end = mixed(engine, "x = f(║)\ny = 1\n", "g(a")
    assert float(end) < float(usual_end) - 1.0
    assert float(going_on[closing]) > float(usual[closing]) - 1.0


def test_chances_still_sum_to_one(engine: DiffusionEngine) -> None:
    going_on, end = mixed(engine, "x = f(║\ny = 1\n", "a")
    assert float(going_on.exp().sum() + end.exp()) == pytest.approx(1.0, abs=1e-5)


def test_what_another_mix_says_is_kept(engine: DiffusionEngine) -> None:
    asked = request("x = f(║\ny = 1\n")
    plan = engine.strategy.plan(asked)
    chosen = token(engine.tokenizer, "x")

    def only_one(written: object, going_on: Tensor, end: Tensor) -> Chances:
        return going_on.index_fill(0, torch.tensor([chosen]), 3.0), end

    plan = dataclasses.replace(plan, mix=only_one)
    plan = Balance(engine.tokenizer, engine.model.config.vocab_size).into(plan, asked)
    assert plan.mix is not None
    assert int(plan.mix([], *flat(engine))[0].argmax()) == chosen


def test_what_the_first_token_repeats_counts_once(engine: DiffusionEngine) -> None:
    """The token before the cursor is taken back, and its bracket with it."""
    hole = "x = index(║\ny = 1\n"
    assert "(" in balanced(engine, request(hole)).healed.decode()
    _, usual = flat(engine)
    assert float(mixed(engine, hole, "a)")[1]) > float(usual) - 1.0
    assert float(mixed(engine, hole, "a")[1]) < float(usual) - 1.0


def test_the_judge_counts_too(engine: DiffusionEngine) -> None:
    asked = request("x = f(║\ny = 1\n")
    plain, weighed = engine.strategy.plan(asked).judge, balanced(engine, asked).judge
    assert plain is not None
    assert weighed is not None
    texts = ["1)", "1"]
    without, fewer = engine._judge.scores(plain, texts), engine._judge.scores(weighed, texts)
    assert fewer[0] == pytest.approx(without[0])
    assert fewer[1] < without[1] - 1.0


def test_where_nothing_is_known_a_plan_stays_as_it_is(engine: DiffusionEngine) -> None:
    asked = request("# some prose (║\n")
    balance = Balance(engine.tokenizer, engine.model.config.vocab_size)
    plan = engine.strategy.plan(asked)
    assert balance.into(plan, asked) is plan


def test_the_shipped_model_closes_its_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = build_engine("default", device="cpu")
    asked = request(
        "def check(pings):\n    for ping in pings:\n        if ping is None:\n"
        "            raise AssertionErr║\n    return pings\n"
    )

    def num_open() -> int:
        text = shipped.fill(asked).text
        return text.count("(") - text.count(")")

    assert num_open() == 0
    monkeypatch.setattr(shipped._balance, "into", lambda plan, request: plan)
    assert num_open() > 0
