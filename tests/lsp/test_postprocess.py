"""The filters, by golden files: one `.txt` in `postprocess_cases` is one case.

    --- input        the text; « and » enclose the hole
    --- suggestion   what the engine wrote
    --- expected     what is offered, or "rejected: <reason>"

`⏎` stands for a line break where the end of a part matters, `·` for a blank.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_engine import HoleKind
from dgemma_lsp.hole import Hole
from dgemma_lsp.postprocess import FILTERS, Rejection, postprocess

from .drawn import read_span, snapshot

CASES = {path.stem: path for path in (Path(__file__).parent / "postprocess_cases").glob("*.txt")}


def read_case(path: Path) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in path.read_text(encoding="utf-8").split("--- ")[1:]:
        name, _, body = part.partition("\n")
        parts[name.strip()] = body.removesuffix("\n").replace("⏎", "\n").replace("·", " ")
    return parts


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name: str) -> None:
    """The chain gives what the case expects."""
    case = read_case(CASES[name])
    text, start, end = read_span(case["input"])
    kind = HoleKind.BLOCK if case.get("kind") == "block" else HoleKind.LINE
    outcome = postprocess(snapshot(text), Hole(start, end, kind), case["suggestion"])
    shown = f"rejected: {outcome.reason.value}" if isinstance(outcome, Rejection) else outcome
    assert case["expected"] == shown


def test_cases_cover_every_filter() -> None:
    """Without any one of the filters some case would come out otherwise."""
    for left_out in set(FILTERS):
        changed = 0
        for path in CASES.values():
            case = read_case(path)
            text, start, end = read_span(case["input"])
            kind = HoleKind.BLOCK if case.get("kind") == "block" else HoleKind.LINE
            outcome: str | Rejection = case["suggestion"]
            for apply in FILTERS:
                if apply is not left_out and isinstance(outcome, str):
                    outcome = apply(snapshot(text), Hole(start, end, kind), outcome)
            rejected = isinstance(outcome, Rejection)
            shown = f"rejected: {outcome.reason.value}" if rejected else outcome  # type: ignore[union-attr]
            changed += shown != case["expected"]
        assert changed, left_out.__name__
