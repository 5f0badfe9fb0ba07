"""Fills of held-out spans, scored where there is nothing but the engine: on a GPU that is lent.

A first look at a model. `dgemma-lsp eval` is the measure: it asks as editors ask, and says what a
user would be shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dgemma_engine import InfillEngine, InfillRequest
from dgemma_engine.types import Decoder, HoleKind

from .documents import TokenizedDocument
from .spans import sample_span

_LINE_KINDS = ("rest_of_line", "mid_line", "whole_line", "bracket", "expression")
_PREFIX_CHARS, _SUFFIX_CHARS = 4000, 1000
_MAX_TOKENS = 48


@dataclass(frozen=True)
class HeldOutHole:
    """A span with what stands around it. `kind` is one of `spans.SPAN_SHARES`."""

    kind: str
    prefix: str
    text: str
    suffix: str


def held_out_holes(
    documents: Sequence[TokenizedDocument], num_each: int, seed: int = 0
) -> Iterator[HeldOutHole]:
    """So many holes of each kind within a line, none on a line that training files share."""
    for number, kind in enumerate(_LINE_KINDS):
        rng = np.random.default_rng([seed, number])
        found = 0
        for _ in range(200 * num_each):
            document = documents[int(rng.integers(len(documents)))]
            anchor = int(document.token_starts[int(rng.integers(document.num_tokens))])
            span = sample_span(document, anchor, kind, rng)
            if span is None or document.line_at(span[0]) in document.leaked_lines:
                continue
            text = document.text[span[0] : span[1]]
            if len(text.strip()) < 2 or "\n" in text:
                continue
            yield HeldOutHole(
                kind,
                document.text[max(0, span[0] - _PREFIX_CHARS) : span[0]],
                text,
                document.text[span[1] : span[1] + _SUFFIX_CHARS],
            )
            found += 1
            if found == num_each:
                break


def score_fills(
    engine: InfillEngine, holes: Sequence[HeldOutHole], decoder: Decoder = Decoder.AUTO
) -> dict[str, dict[str, float]]:
    """By kind: holes, exact matches and edit similarity (both per cent), mean passes."""
    by_kind: dict[str, list[tuple[bool, float, int]]] = {}
    for hole in holes:
        result = engine.fill(
            InfillRequest(
                hole.prefix,
                hole.suffix,
                kind=HoleKind.LINE,
                language_id="python",
                max_tokens=_MAX_TOKENS,
                decoder=decoder,
            )
        )
        expected, actual = hole.text.strip(), result.text.strip()
        similarity = difflib.SequenceMatcher(None, expected, actual, autojunk=False).ratio()
        row = (expected == actual, similarity, result.num_passes)
        by_kind.setdefault(hole.kind, []).append(row)
    return {
        kind: {
            "holes": len(rows),
            "exact": round(100 * float(np.mean([row[0] for row in rows])), 1),
            "similarity": round(100 * float(np.mean([row[1] for row in rows])), 1),
            "passes": round(float(np.mean([row[2] for row in rows])), 1),
        }
        for kind, rows in by_kind.items()
    }
