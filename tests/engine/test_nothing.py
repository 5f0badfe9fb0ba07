"""A hole is left empty only where that is likelier than all text together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma_engine import Decoder, InfillRequest
from dgemma_engine.cache import PrefixCache
from dgemma_engine.canvas import EOM_ID
from dgemma_engine.chains import CausalRules
from dgemma_engine.drafts import Draft
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.left_to_right import decode_left_to_right
from dgemma_engine.strategies import InfillPlan
from dgemma_engine.strategies.plan import token_mask

from .tiny import build_model, engine_of, sample_request

VOCAB_SIZE = 400
HEALED, OTHER = 150, 151


def decode(
    chances: Sequence[tuple[float, float]], empty: tuple[int, ...] | None
) -> tuple[int, ...]:
    """What is written where, place by place, a token and the end have these chances."""

    def mix(written: Sequence[int], going_on: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        going_on = torch.full_like(going_on, 1e-6).log()
        best, ending = chances[len(written)]
        going_on[OTHER if written else HEALED] = math.log(best)
        return going_on, torch.tensor(ending).log()

    cpu = torch.device("cpu")
    own = CausalRules(
        token_mask([0, 1, 2], VOCAB_SIZE, cpu), token_mask([EOM_ID], VOCAB_SIZE, cpu), empty=empty
    )
    *_, chain = decode_left_to_right(
        PrefixCache(build_model()), range(100, 120), own, max_tokens=len(chances), mix=mix
    )
    return chain.token_ids


@pytest.mark.parametrize(
    ("chances", "empty", "expected"),
    [
        ([(0.1, 0.6), (0.1, 0.9)], (), ()),
        ([(0.1, 0.4), (0.1, 0.9)], (), (HEALED,)),  # the end is the likeliest, and most is text
        ([(0.9, 0.0), (0.1, 0.6), (0.1, 0.9)], (HEALED,), (HEALED,)),
        ([(0.7, 0.0), (0.1, 0.6), (0.1, 0.9)], (HEALED,), (HEALED, OTHER)),  # 0.42 in all
        ([(0.9, 0.0), (0.1, 0.4)], (), (HEALED,)),  # behind text the likeliest is enough
        ([(0.1, 0.4), (0.1, 0.9)], None, ()),
    ],
)
def test_text_is_written_unless_none_is_likelier(
    chances: list[tuple[float, float]], empty: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """Also where the first token only repeats what healing took back."""
    assert decode(chances, empty) == expected


@pytest.fixture(scope="module")
def shipped() -> DiffusionEngine:
    return build_engine()


@pytest.mark.parametrize("decoder", [Decoder.LEFT_TO_RIGHT, Decoder.DIFFUSION])
@pytest.mark.parametrize(
    ("text", "is_filled"),
    [
        ("class Square:\n    def area(self):\n        return ║\n\n    def scale(self, by):", True),
        ("import os\n\n\ndef name_of(path):\n    return os.path.basename(║)\n", True),
        ("class Reader:\n    def __init__(self, path):\n        self.path = path║\n", False),
        ("import os\nimport re║\n\n\ndef name_of(path):\n", False),
    ],
)
def test_the_shipped_model_leaves_nothing_open(
    shipped: DiffusionEngine, decoder: Decoder, text: str, is_filled: bool
) -> None:
    """What is unfinished is filled, and what is whole is left alone, whichever decoder."""
    prefix, suffix = text.split("║")
    result = shipped.fill(
        InfillRequest(prefix, suffix, language_id="python", decoder=decoder, max_tokens=16)
    )
    assert bool(result.text.strip()) == is_filled


def test_whoever_did_not_ask_is_told_nothing_sooner(shipped: DiffusionEngine) -> None:
    """Then, and where the length is known, nothing is held against all text together."""
    asked = sample_request()
    for changed, is_held in (
        ({}, True),
        ({"least_confidence": 0.4}, False),
        ({"num_tokens": 3}, False),
    ):
        rules = shipped.strategy.plan(dataclasses.replace(asked, **changed)).rules
        assert rules is not None
        assert (rules.empty is not None) == is_held, changed


@pytest.mark.parametrize(
    ("decoder", "text"), [(Decoder.DIFFUSION, "x = 1\n║\n"), (Decoder.LEFT_TO_RIGHT, "x = f(║)\n")]
)
def test_what_has_no_text_loses_against_what_has(
    decoder: Decoder, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts, and starts of a fill, however well none fits: the first token says nothing new."""
    engine = engine_of(tmp_path, line_candidates=[1, 4])
    judged: list[str] = []

    def prefer_none(text: str) -> float:
        judged.append(text)
        return 0.0 if text.strip() else -1e6

    def weighed(plan: InfillPlan, request: InfillRequest) -> InfillPlan:
        assert plan.judge is not None
        return dataclasses.replace(plan, judge=dataclasses.replace(plan.judge, weigh=prefer_none))

    monkeypatch.setattr(engine._balance, "into", weighed)
    prefix, suffix = text.split("║")
    asked = sample_request(prefix=prefix, suffix=suffix, decoder=decoder, max_tokens=4)
    assert engine.fill(asked).text.strip()
    assert judged


@pytest.mark.parametrize(("strength", "expected"), [(0.5, "x + y"), (1.0, "")])
def test_a_revision_without_text_is_none(
    strength: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft stays, unless all of it was to be new."""
    nothing = Draft([], [], [0.0], [], has_ended=True)
    monkeypatch.setattr("dgemma_engine.revise.read_draft", lambda *_: nothing)
    asked = sample_request(draft="x + y", strength=strength)
    assert engine_of(tmp_path).fill(asked).text == expected
