"""A model that knows a few texts for a hole, and how likely each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dgemma_engine import InfillRequest, InfillResult
from dgemma_engine.chains import Mix
from dgemma_engine.infill import DiffusionEngine


def mix_of(engine: DiffusionEngine, asked: InfillRequest, texts: dict[str, float]) -> Mix:
    """What comes next by such a model, whatever the real one says."""
    healed = engine.strategy.plan(asked).healed
    rows = [(engine._texts.draft_ids(text, healed), chance) for text, chance in texts.items()]

    def mix(written: Sequence[int], going_on: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        chances, ending = torch.full_like(going_on, 1e-9), 1e-9
        for token_ids, chance in rows:
            if list(written) == token_ids[: len(written)]:
                if len(written) == len(token_ids):
                    ending += chance
                else:
                    chances[token_ids[len(written)]] += chance
        total = float(chances.sum()) + ending
        return (chances / total).log(), torch.tensor(ending / total).log()

    return mix


def fill_by(
    engine: DiffusionEngine,
    monkeypatch: pytest.MonkeyPatch,
    asked: InfillRequest,
    texts: dict[str, float],
) -> InfillResult:
    """What a hole gets from a model that knows these texts."""
    mix = mix_of(engine, asked, texts)
    monkeypatch.setattr(
        engine._balance, "into", lambda plan, _: dataclasses.replace(plan, mix=mix, judge=None)
    )
    return engine.fill(asked)
