"""A fill with a name that nobody gave gives way to another one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest

from dgemma_engine import CancellationToken, Decoder, HoleKind, InfillRequest
from dgemma_engine.chains import likely_fills
from dgemma_engine.drafts import Fill, draft_of
from dgemma_engine.errors import Cancelled
from dgemma_engine.infill import DiffusionEngine, build_engine
from dgemma_engine.scope import Scope
from dgemma_engine.types import StopReason

from .known_texts import fill_by, mix_of
from .tiny import save_checkpoint

HOLE = "def g(left, right):\n    return ║\n\n\nx = 1\n"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return build_engine(str(save_checkpoint(tmp_path_factory.mktemp("model"))))


def request() -> InfillRequest:
    prefix, suffix = HOLE.split("║")
    return InfillRequest(
        prefix, suffix, language_id="python", decoder=Decoder.LEFT_TO_RIGHT, max_tokens=24
    )


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"made": 0.6, "left": 0.4}, "left"),
        ({"left(made)": 0.5, "right(made)": 0.3, "left(right)": 0.2}, "left(right)"),
        ({"[made for made in left]": 0.6, "left": 0.4}, "[made for made in left]"),
        ({"made": 0.5, "mode": 0.3, "mud": 0.2}, "made"),  # there is nothing else
        ({"made": 0.4, "": 0.35, "left": 0.25}, "left"),  # no more likely than some text
    ],
)
def test_a_fill_with_a_made_up_name_gives_way(
    engine: DiffusionEngine,
    monkeypatch: pytest.MonkeyPatch,
    texts: dict[str, float],
    expected: str,
) -> None:
    """To the likeliest that has none, as likely as it is."""
    result = fill_by(engine, monkeypatch, request(), texts)
    assert result.text == expected
    assert result.confidence == pytest.approx(texts[expected], abs=0.01)


@pytest.mark.parametrize("change", [{"least_confidence": 0.1}, {"kind": HoleKind.BLOCK}])
def test_only_lines_that_were_asked_for_are_looked_for_again(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    asked = dataclasses.replace(request(), **change)
    assert fill_by(engine, monkeypatch, asked, {"made": 0.6, "left": 0.4}).text == "made"


def test_a_guess_with_a_made_up_name_is_none(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the judge says of it."""
    asked = dataclasses.replace(request(), decoder=Decoder.AUTO)
    plan = dataclasses.replace(engine.strategy.plan(asked), scope=None)
    _, chain = engine._left_to_right.read(plan, plan.rules, engine._texts.draft_ids("x", b" "))
    unsure = Fill(draft_of(chain), 1, StopReason.END, chain)
    guesses = [engine._texts.draft_ids(text, b" ") for text in ("made", "left")]
    monkeypatch.setattr(engine._copying, "_guesses", lambda *_: guesses)
    judged: list[list[str]] = []

    def scores(_: object, texts: Sequence[str]) -> list[float]:
        judged.append(list(texts))
        return [0.0] * len(texts)

    monkeypatch.setattr(engine._judge, "scores", scores)
    for scope in (None, Scope.around(asked.prefix, asked.suffix)):
        engine._copying.instead_of(unsure, dataclasses.replace(plan, scope=scope), asked)
    assert judged == [["x", "made", "left"], ["x", "left"]]


def test_the_search_finds_the_likeliest_fills(engine: DiffusionEngine) -> None:
    """Those of a model that knows five, with their chances."""
    asked = request()
    plan = engine.strategy.plan(asked)
    assert plan.rules is not None
    texts = {"left": 0.1, "left(right)": 0.15, "right": 0.3, "range(left)": 0.25, "x": 0.2}
    cache, _ = engine._prefix_cache.encode(plan.prompt_ids)
    mix = mix_of(engine, asked, texts)
    search = likely_fills(
        engine.model, cache, plan.prompt_ids, plan.rules, asked.max_tokens, 5, mix
    )
    fills: Any = engine._alone(search)  # type: ignore[arg-type]
    found = [engine._texts.text_of(fill.token_ids, plan, asked) for fill in fills]
    assert found == sorted(texts, key=lambda text: -texts[text])
    chances = [math.exp(fill.log_probability) for fill in fills]
    assert chances == pytest.approx(sorted(texts.values(), reverse=True), abs=0.01)


def test_a_search_is_cancelled_between_passes(engine: DiffusionEngine) -> None:
    asked, cancel = request(), CancellationToken()
    plan = engine.strategy.plan(asked)
    assert plan.rules is not None
    cache, _ = engine._prefix_cache.encode(plan.prompt_ids)
    search = likely_fills(
        engine.model, cache, plan.prompt_ids, plan.rules, asked.max_tokens, 3, cancel=cancel
    )
    next(search)
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(search)
