"""What else a line may be, as the encoder sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dgemma_engine import Decoder, HoleKind, InfillRequest, RequestError
from dgemma_engine.chains import Chain
from dgemma_engine.drafts import Fill, draft_of
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.types import StopReason

from .known_texts import fill_by
from .tiny import save_checkpoint

TEXTS = {"left": 0.4, "right": 0.25, "left(right)": 0.15, "made": 0.12, "[left]": 0.08}
REQUEST = InfillRequest(
    "def g(left, right):\n    return ",
    "\n\n\nx = 1\n",
    language_id="python",
    decoder=Decoder.LEFT_TO_RIGHT,
    max_tokens=24,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (0, []),
        (1, ["right"]),
        (3, ["right", "left(right)"]),  # the name that nobody gave is left out
        (4, ["right", "left(right)", "[left]"]),
    ],
)
def test_the_likeliest_others_come_with_the_fill(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, wanted: int, expected: list[str]
) -> None:
    """The best first, none twice, as many as were wanted, each with its chance."""
    asked = dataclasses.replace(REQUEST, num_alternatives=wanted)
    result = fill_by(engine, monkeypatch, asked, TEXTS)
    assert result.text == "left"
    assert [other.text for other in result.alternatives] == expected
    chances = [other.confidence for other in result.alternatives]
    assert chances == pytest.approx([TEXTS[text] for text in expected], abs=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": HoleKind.BLOCK},
        {"num_tokens": 1},
        {"decoder": Decoder.DIFFUSION, "max_steps": 2},
        {"deadline": 0.0},
    ],
)
def test_other_fills_have_none(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    asked = dataclasses.replace(REQUEST, num_alternatives=2, **change)
    assert fill_by(engine, monkeypatch, asked, TEXTS).alternatives == ()


@pytest.mark.parametrize(
    ("fits_best", "expected"),
    [
        # The fill, then what it might have been: the likeliest other one, the best other guess.
        ("left", ["left", "x", "range", "y"]),
        ("right", ["right", "left", "range", "x", "y"]),
    ],
)
def test_guesses_are_among_the_alternatives(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, fits_best: str, expected: list[str]
) -> None:
    """With what the encoder had written itself, if one took its place."""
    asked = dataclasses.replace(REQUEST, num_alternatives=4)
    plan = engine.strategy.plan(asked)
    rules = plan.rules
    assert rules is not None

    def read(text: str) -> Chain:
        return engine._left_to_right.read(plan, rules, ids_of(text))[1]

    def ids_of(text: str) -> list[int]:
        return engine._texts.draft_ids(text, plan.healed)

    own = read("left")
    fill = Fill(draft_of(own), 1, StopReason.END, own, (read("x"), read("y")))
    guesses = [ids_of(text) for text in ("[left]", "range", "right")]
    monkeypatch.setattr(engine._copying, "_guesses", lambda *_: guesses)
    fit = {fits_best: 9.0, "range": 8.0, "[left]": 7.0}
    monkeypatch.setattr(
        engine._judge, "scores", lambda _, texts: [fit.get(text, 0.0) for text in texts]
    )
    found = engine._copying.instead_of(fill, plan, asked)
    assert found.chain is not None
    texts = [
        engine._texts.text_of(chain.token_ids, plan, asked)
        for chain in (found.chain, *found.others)
    ]
    assert texts == expected
    without = engine._copying.instead_of(fill, plan, dataclasses.replace(asked, num_alternatives=0))
    assert without.chain == found.chain
    assert "range" not in {
        engine._texts.text_of(chain.token_ids, plan, asked) for chain in without.others
    }


@pytest.mark.parametrize("number", [-1, 17])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(RequestError, match=f"num_alternatives must be in 0 .. 16, got {number}"):
        dataclasses.replace(REQUEST, num_alternatives=number)
