"""What the model reads: a hole with the text around it, cut to a budget, becomes an InfillRequest.
Several that are filled together become a JointRequest.

The model sees \\n only; the document keeps the separators it has. Budgets are characters, the
engine counts tokens. It knows no LSP; the engine's `infill.py` is next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dgemma_engine.types import InfillRequest, JointRequest

from .document import DocumentSnapshot
from .hole import Hole


@dataclass(frozen=True, slots=True)
class ContextBudget:
    """Characters of context at most, before and after the hole."""

    prefix_chars: int = 8000
    suffix_chars: int = 2000

    def __post_init__(self) -> None:
        for name in ("prefix_chars", "suffix_chars"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def build_request(
    snapshot: DocumentSnapshot,
    hole: Hole,
    budget: ContextBudget,
    *,
    related: str = "",
    max_tokens: int = 64,
    seed: int = 0,
) -> InfillRequest:
    """The request that fills `hole`; what the hole covers is in neither prefix nor suffix.

    `related` comes first: what changes with every key is at the end, and the rest stays encoded.
    What will be put before and after the fill is read as if it stood there.

    A prefix over its budget begins at a line's start, a suffix ends at a line's end, unless a
    single line is longer than the budget: then it is cut inside that line.
    """
    return InfillRequest(
        prefix=related + prefix_window(snapshot, hole, budget.prefix_chars),
        suffix=_cut_suffix(hole.after + snapshot.text[hole.end :], budget.suffix_chars),
        kind=hole.kind,
        language_id=snapshot.language_id,
        max_tokens=max_tokens,
        seed=seed,
    )


def build_joint_request(
    snapshot: DocumentSnapshot,
    holes: Sequence[Hole],
    drafts: Sequence[str],
    strength: float,
    budget: ContextBudget,
    *,
    related: str = "",
    max_tokens: int = 64,
    seed: int = 0,
) -> JointRequest:
    """The request that fills holes together, beginning with drafts; see `build_request`.

    Args:
        holes: in the order of the text.
        drafts: a text for each.
    """
    first, last = holes[0], holes[-1]
    between = [
        to_lf(hole.after + snapshot.text[hole.end : after.start] + after.before)
        for hole, after in pairwise(holes)
    ]
    return JointRequest(
        texts=(
            related + prefix_window(snapshot, first, budget.prefix_chars),
            *between,
            _cut_suffix(last.after + snapshot.text[last.end :], budget.suffix_chars),
        ),
        kinds=tuple(hole.kind for hole in holes),
        drafts=tuple(drafts),
        strength=strength,
        language_id=snapshot.language_id,
        max_tokens=max_tokens,
        seed=seed,
    )


def prefix_window(snapshot: DocumentSnapshot, hole: Hole, prefix_chars: int) -> str:
    """The text before the fill that is read.

    It begins with a statement of the outermost level, if one begins in the first half of what the
    budget allows, else with a line.
    """
    first = hole.start - prefix_chars
    start = 0
    if first > 0:
        tree = snapshot.syntax.now()
        nodes = tree.outermost() if tree is not None else []
        half = first + prefix_chars // 2
        start = next((node.start for node in nodes if first <= node.start <= half), 0)
    return _cut_prefix(snapshot.text[start : hole.start] + hole.before, prefix_chars)


def to_lf(text: str) -> str:
    """`text` with every line separator as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _cut_prefix(text: str, budget: int) -> str:
    # Twice the budget always holds enough: \r\n shrinks to one character.
    text = to_lf(text[max(0, len(text) - 2 * budget - 2) :])
    if len(text) <= budget:
        return text
    start = len(text) - budget
    line_start = text.find("\n", start - 1) + 1
    return text[line_start if 0 < line_start < len(text) else start :]


def _cut_suffix(text: str, budget: int) -> str:
    text = to_lf(text[: 2 * budget + 2])
    if len(text) <= budget:
        return text
    line_end = text.rfind("\n", 0, budget) + 1
    return text[: line_end or budget]
