"""When to stop denoising: small criteria, each asked once per step with what the step found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .config import SamplerConfig
from .types import StopReason


class StoppingCriterion(Protocol):
    """Asked once per step and canvas; remembers what it needs of earlier steps."""

    reason: StopReason

    def __call__(self, argmax_canvas: Tensor, entropy: Tensor, hole_mask: Tensor) -> Tensor:
        """Which rows are finished.

        Args:
            argmax_canvas: (B, C) int64, the most likely token everywhere.
            entropy: (B, C) float32, nats.
            hole_mask: (B, C) bool, True at hole slots.
        Returns:
            (B,) bool.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """From now on there are only these rows: (N,) int64."""
        ...


class StopNumbers(NamedTuple):
    """What the criteria of this module test, in numbers, for a loop that tests it by itself.

    Attributes:
        stability_threshold: of `StableAndConfident`; None without it.
        confidence_threshold: nats.
        stable_text_passes: of `StableText`; None without it.
        end_token_ids: where a text ends.
    """

    stability_threshold: int | None = None
    confidence_threshold: float = 0.0
    stable_text_passes: int | None = None
    end_token_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, criteria: Sequence[StoppingCriterion]) -> StopNumbers | None:
        """Those of some criteria; None if any of them is another, or in another order."""
        numbers = cls()
        kinds = [type(criterion) for criterion in criteria]
        if kinds not in ([], [StableAndConfident], [StableText], [StableAndConfident, StableText]):
            return None
        for criterion in criteria:
            if isinstance(criterion, StableAndConfident):
                numbers = numbers._replace(
                    stability_threshold=criterion.stability_threshold,
                    confidence_threshold=criterion.confidence_threshold,
                )
            elif isinstance(criterion, StableText):
                numbers = numbers._replace(
                    stable_text_passes=criterion.num_passes, end_token_ids=criterion.end_token_ids
                )
        return numbers


class StableAndConfident:
    """The checkpoint's own rule: nothing changed for some steps, and the mean entropy is low.

    Source: transformers 5.23 StableAndConfidentStoppingCriteria; there the mean runs over the whole
    canvas, here over the hole, which is the same where nothing is clamped.
    """

    reason = StopReason.CONVERGED

    def __init__(self, stability_threshold: int, confidence_threshold: float) -> None:
        self.stability_threshold = stability_threshold
        self.confidence_threshold = confidence_threshold
        self._history: list[Tensor] = []

    def __call__(self, argmax_canvas: Tensor, entropy: Tensor, hole_mask: Tensor) -> Tensor:
        stable = _unchanged(self._history, argmax_canvas, self.stability_threshold)
        mean_entropy = (entropy * hole_mask).sum(-1) / hole_mask.sum(-1)
        return stable & (mean_entropy < self.confidence_threshold)

    def select(self, rows: Tensor) -> None:
        self._history = [earlier[rows] for earlier in self._history]


class StableText:
    """Nothing before the holes' end marks changed for some steps, however unsure the model is."""

    reason = StopReason.STABLE

    def __init__(self, num_passes: int, end_token_ids: Sequence[int]) -> None:
        self.num_passes = num_passes
        self.end_token_ids = tuple(end_token_ids)
        self._history: list[Tensor] = []

    def __call__(self, argmax_canvas: Tensor, entropy: Tensor, hole_mask: Tensor) -> Tensor:
        end_token_ids = torch.tensor(
            self.end_token_ids, dtype=torch.int64, device=argmax_canvas.device
        )
        is_end = torch.isin(argmax_canvas, end_token_ids) & hole_mask
        ends = is_end.cumsum(dim=-1)
        # Those of the holes before do not count: every clamped position begins anew.
        earlier = ends.masked_fill(hole_mask, 0).cummax(dim=-1).values
        after_end = ends > earlier
        text = argmax_canvas.masked_fill(after_end & hole_mask, -1)
        return _unchanged(self._history, text, self.num_passes)

    def select(self, rows: Tensor) -> None:
        self._history = [earlier[rows] for earlier in self._history]


def criteria(config: SamplerConfig, end_token_ids: Sequence[int]) -> list[StoppingCriterion]:
    """Those that a checkpoint asks for, anew for every canvas."""
    chosen: list[StoppingCriterion] = [
        StableAndConfident(config.stability_threshold, config.confidence_threshold)
    ]
    if config.stable_text_passes > 0:
        chosen.append(StableText(config.stable_text_passes, end_token_ids))
    return chosen


def _unchanged(history: list[Tensor], current: Tensor, num_steps: int) -> Tensor:
    """Which rows of `current` equal the last `num_steps` entries; `current` joins the history."""
    rows = current.shape[0]
    unchanged = torch.full((rows,), len(history) >= num_steps, device=current.device)
    for earlier in history:
        unchanged &= (earlier == current).all(dim=-1)
    history.append(current)
    del history[: max(0, len(history) - num_steps)]
    return unchanged
