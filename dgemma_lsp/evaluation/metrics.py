"""What a fill is worth beside the text that was there; means that say how far chance may move them.

Lengths and first tokens are counted in words and signs of the text (`lexical_tokens`), so that they
mean the same for every model.
"""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .. import syntax
from ..source_file import InputError
from .holes import EvalHole
from .methods import Answer

_TOKEN = re.compile(r"\w+|[^\w\s]|\n")
_CLOSERS = ")]}:,;\"'"


def lexical_tokens(text: str) -> list[str]:
    """Words, single signs, line breaks."""
    return _TOKEN.findall(text.strip())


@dataclass(frozen=True, slots=True)
class FillScore:
    """One fill. Texts are compared without the white space at their ends.

    Attributes:
        exact: the text that was there, to the character.
        similarity: 1 - edit distance / longer length.
        first: the first lexical token is right.
        length_error: lexical tokens too many (or, negative, too few).
        parses: the file with the fill has no more syntax errors than the file as it was.
        repeats: it ends in what follows it anyway, a closing bracket or a whole line, and the true
            text does not.
        shown_exact: exact after the product's filters.
    """

    exact: bool
    similarity: float
    first: bool
    length_error: int
    parses: bool
    repeats: bool
    shown_exact: bool


def require_rapidfuzz() -> None:
    """Raise InputError, which says how to get it, if the package is not installed."""
    if importlib.util.find_spec("rapidfuzz") is None:
        raise InputError("eval needs a package: pip install 'dgemma-lsp[eval]'")


def score_fill(hole: EvalHole, answer: Answer) -> FillScore:
    from rapidfuzz.distance import Levenshtein  # of the extra [eval]

    expected, actual = hole.middle.strip(), answer.text.strip()
    expected_tokens, actual_tokens = lexical_tokens(expected), lexical_tokens(actual)
    return FillScore(
        exact=expected == actual,
        similarity=Levenshtein.normalized_similarity(expected, actual),
        first=expected_tokens[:1] == actual_tokens[:1],
        length_error=len(actual_tokens) - len(expected_tokens),
        parses=_num_errors(hole, answer.text) <= _num_errors(hole, hole.middle),
        repeats=_repeats(actual, hole.after) and not _repeats(expected, hole.after),
        shown_exact=answer.shown is not None and answer.shown.strip() == expected,
    )


def _num_errors(hole: EvalHole, text: str) -> int:
    tree = syntax.parse(hole.before + text + hole.after, "python")
    assert tree is not None
    return len(tree.errors()) if tree.has_errors else 0


def _repeats(text: str, after: str) -> bool:
    same_line, _, next_lines = after.partition("\n")
    closer = same_line.strip()[:1]
    if closer and closer in _CLOSERS and text.endswith(closer):
        return text.count(closer) > text.count(_opener(closer))
    next_line = next_lines.lstrip().partition("\n")[0].strip()
    return len(next_line) > 3 and text.rpartition("\n")[2].strip() == next_line


def _opener(closer: str) -> str:
    return {")": "(", "]": "[", "}": "{"}.get(closer, "\0")


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `count` holes, with the 95 % interval of Wilson; all in percent."""

    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Share:
        """Raises ValueError if there are no outcomes."""
        count = len(outcomes)
        if not count:
            raise ValueError("a share of nothing")
        z = 1.96
        share = sum(outcomes) / count
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        spread = share * (1 - share) / count + z * z / (4 * count * count)
        half = z / (1 + z * z / count) * math.sqrt(spread)
        low, high = max(0.0, middle - half), min(1.0, middle + half)
        return cls(*(round(100 * value, 1) for value in (share, low, high)))


def summarise(
    holes: Sequence[EvalHole], answers: Sequence[Answer]
) -> dict[str, float | list[float]]:
    """The row of a table; shares in percent, times in milliseconds.

    `exact_match_interval` is the 95 % interval of `exact_match`; `edit_similarity_error` is twice
    the standard error of `edit_similarity`.
    """
    scores = [score_fill(hole, answer) for hole, answer in zip(holes, answers, strict=True)]
    exact = Share.of([score.exact for score in scores])
    similarities = [100 * score.similarity for score in scores]
    spread = statistics.stdev(similarities) if len(scores) > 1 else 0.0
    errors = [score.length_error for score in scores]
    times = sorted(answer.milliseconds for answer in answers)
    return {
        "holes": len(scores),
        "exact_match": exact.percent,
        "exact_match_interval": [exact.low, exact.high],
        "edit_similarity": round(statistics.mean(similarities), 1),
        "edit_similarity_error": round(2 * spread / math.sqrt(len(scores)), 1),
        "first_token": Share.of([score.first for score in scores]).percent,
        "exact_length": Share.of([error == 0 for error in errors]).percent,
        "length_within_1": Share.of([abs(error) <= 1 for error in errors]).percent,
        "mean_length_error": round(statistics.mean(errors), 2),
        "parses": Share.of([score.parses for score in scores]).percent,
        "repeats": Share.of([score.repeats for score in scores]).percent,
        "shown_exact_match": Share.of([score.shown_exact for score in scores]).percent,
        "mean_passes": round(statistics.mean(answer.num_passes for answer in answers), 2),
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(times[min(len(times) - 1, math.ceil(0.95 * len(times)) - 1)], 1),
    }
