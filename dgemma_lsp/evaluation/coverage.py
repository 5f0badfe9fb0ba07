"""Precision against coverage: of the suggestions shown above a threshold, how many are right.

A suggestion is a fill's confident start (`postprocess.confident_starts`), as an editor shows it
while the user types (`methods.WHILE_TYPING`). It is right if the true text begins with it. The
threshold is chosen on half of the holes and judged on the other half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..postprocess import Rejection, confident_starts, first_that_fits
from .holes import EvalHole
from .methods import LEAST_CONFIDENCE, Answer
from .metrics import Share

THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(round(100 * LEAST_CONFIDENCE), 100))
TARGET_PRECISION = 50.0  # percent


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """What one threshold does.

    Attributes:
        threshold: 0 .. 1.
        coverage: percent of the holes for which something is shown.
        precision: percent of these where it is right; None if nothing is shown.
        precision_interval: 95 %.
        whole: percent of all holes filled completely and rightly.
        mean_characters: of a suggestion that is right.
    """

    threshold: float
    coverage: float
    precision: float | None
    precision_interval: tuple[float, float] | None
    whole: float
    mean_characters: float


def shown_text(hole: EvalHole, answer: Answer, threshold: float) -> str | None:
    """What an editor would show unasked, or None."""
    assert answer.result is not None, "only a model's answer has a confidence"
    starts = confident_starts(answer.result, threshold)
    if isinstance(starts, Rejection):
        return None
    return _offered(hole, tuple(starts), answer.result.text)


@lru_cache(maxsize=100_000)  # many thresholds leave the same starts
def _offered(hole: EvalHole, starts: tuple[str, ...], whole: str) -> str | None:
    outcome = first_that_fits(hole.snapshot, hole.hole, starts, whole)
    return outcome if isinstance(outcome, str) else None


def point(holes: Sequence[EvalHole], answers: Sequence[Answer], threshold: float) -> CoveragePoint:
    """Judge one threshold. There must be holes."""
    pairs = [
        (hole.middle, text)
        for hole, answer in zip(holes, answers, strict=True)
        if (text := shown_text(hole, answer, threshold))
    ]
    right = [text for middle, text in pairs if middle.startswith(text)]
    whole = sum(middle.rstrip() == text.rstrip() for middle, text in pairs)
    precision = Share.of([middle.startswith(text) for middle, text in pairs]) if pairs else None
    return CoveragePoint(
        threshold=threshold,
        coverage=round(100 * len(pairs) / len(holes), 1),
        precision=precision.percent if precision else None,
        precision_interval=(precision.low, precision.high) if precision else None,
        whole=round(100 * whole / len(holes), 1),
        mean_characters=round(sum(map(len, right)) / len(right), 1) if right else 0.0,
    )


def curve(holes: Sequence[EvalHole], answers: Sequence[Answer]) -> list[CoveragePoint]:
    return [point(holes, answers, threshold) for threshold in THRESHOLDS]


def choose_threshold(points: Sequence[CoveragePoint]) -> float | None:
    """The least threshold from which on precision stays at the target; None if there is none.

    Thresholds so high that hardly anything is shown are noise, and are not looked at.
    """
    chosen: float | None = None
    for candidate in reversed(points):
        if candidate.precision is None or candidate.coverage < 1.0:
            continue
        if candidate.precision < TARGET_PRECISION:
            break
        chosen = candidate.threshold
    return chosen


def examine(holes: Sequence[EvalHole], answers: Sequence[Answer]) -> dict[str, Any]:
    """The curve over all holes; the threshold of one half, and what it does on the other.

    Returns:
        JSON: "curve", "threshold", "fitted_on", "judged" and "by_bucket" (of the judged half).
    """
    pairs = list(zip(holes, answers, strict=True))
    fitting, judging = (
        ([hole for hole, _ in half], [own for _, own in half]) for half in (pairs[::2], pairs[1::2])
    )
    found: dict[str, Any] = {
        "curve": [dataclasses.asdict(item) for item in curve(holes, answers)],
        "threshold": choose_threshold(curve(*fitting)),
        "fitted_on": len(fitting[0]),
        "judged": None,
        "by_bucket": {},
    }
    if found["threshold"] is not None and judging[0]:
        found["judged"] = dataclasses.asdict(point(*judging, found["threshold"]))
        for bucket in dict.fromkeys(hole.bucket for hole in judging[0]):
            own = [pair for pair in zip(*judging, strict=True) if pair[0].bucket == bucket]
            found["by_bucket"][bucket] = dataclasses.asdict(
                point([hole for hole, _ in own], [answer for _, answer in own], found["threshold"])
            )
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Precision over coverage as a picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [item for item in found["curve"] if item["precision"] is not None]
    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=120)
    coverage = [item["coverage"] for item in points]
    low = [item["precision_interval"][0] for item in points]
    high = [item["precision_interval"][1] for item in points]
    axes.fill_between(coverage, low, high, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(coverage, [item["precision"] for item in points], marker=".", label="precision")
    axes.axhline(TARGET_PRECISION, color="grey", linestyle=":", label="half are right")
    judged = found["judged"]
    if judged is not None and judged["precision"] is not None:
        axes.plot(
            judged["coverage"],
            judged["precision"],
            "o",
            color="C3",
            label=f"threshold {judged['threshold']:.2f}, judged on holes it was not fitted on",
        )
    axes.set(
        xlabel="holes with a suggestion, %",
        ylabel="suggestions that the true text begins with, %",
        xlim=(0, 100),
        ylim=(0, 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
