"""The HumanEval-Infilling benchmark: holes in functions whose tests tell whether a fill works.

Reads the published files (openai/human-eval-infilling): one JSON object a line, plain or gzipped,
single-line, multi-line or random-span. The files are the user's to bring.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgemma_engine.types import HoleKind, InfillRequest

from ..context import ContextBudget, build_request
from ..document import DocumentSnapshot
from ..hole import Hole
from ..source_file import InputError
from .methods import Answer
from .metrics import Share
from .sandbox import passes

_FIELDS = ("task_id", "entry_point", "prompt", "suffix", "canonical_solution", "test")
_MAX_TOKENS = 95


@dataclass(frozen=True, slots=True)
class Problem:
    """One hole. The fields have the names of the file."""

    task_id: str
    entry_point: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str

    @property
    def kind(self) -> HoleKind:
        """What the task's name promises; a random span may be anything."""
        if self.task_id.startswith("SingleLine"):
            return HoleKind.LINE
        return HoleKind.BLOCK if self.task_id.startswith("MultiLine") else HoleKind.SELECTION

    @property
    def snapshot(self) -> DocumentSnapshot:
        text = self.prompt + self.suffix
        snapshot = DocumentSnapshot(f"file:///{self.task_id}.py", 0, "python", text)
        snapshot.syntax.wait()
        return snapshot

    @property
    def hole(self) -> Hole:
        return Hole(len(self.prompt), len(self.prompt), self.kind)

    def request(self, seed: int) -> InfillRequest:
        return build_request(
            self.snapshot, self.hole, ContextBudget(), max_tokens=_MAX_TOKENS, seed=seed
        )

    def program(self, fill: str) -> str:
        """The function with the fill, and its tests."""
        code = self.prompt + fill + self.suffix
        return f"{code}\n\n{self.test}\n\ncheck({self.entry_point})\n"

    def is_solved_by(self, fill: str) -> bool:
        """Runs the tests in a child process; see `sandbox.py`."""
        return passes(self.program(fill))


def read_problems(path: Path) -> list[Problem]:
    """Read a benchmark file.

    Raises:
        InputError: no such file, or a line that is not a problem (the message shows which).
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    problems: list[Problem] = []
    line_number = 0
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
        for line in text.split("\n"):
            line_number += 1
            if line.strip():
                problems.append(_problem(json.loads(line)))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}:{line_number} is not a HumanEval-Infilling problem ({error}); each line is a "
            f"JSON object with {', '.join(_FIELDS)}"
        ) from error
    if not problems:
        raise InputError(f"{path} holds no problems")
    return problems


def _problem(raw: dict[str, Any]) -> Problem:
    values = {name: raw[name] for name in _FIELDS}
    if not all(isinstance(value, str) for value in values.values()):
        raise TypeError("every field must be a text")
    return Problem(**values)


def summarise(
    problems: Sequence[Problem], answers: Sequence[Answer], solved: Sequence[bool]
) -> dict[str, float | list[float]]:
    """The row of a table; shares in percent."""
    rate = Share.of(solved)
    exact = Share.of(
        [
            problem.canonical_solution.strip() == answer.text.strip()
            for problem, answer in zip(problems, answers, strict=True)
        ]
    )
    return {
        "holes": len(problems),
        "pass_at_1": rate.percent,
        "pass_at_1_interval": [rate.low, rate.high],
        "exact_match": exact.percent,
        "mean_passes": round(sum(answer.num_passes for answer in answers) / len(answers), 2),
    }
