"""A suggestion that nobody asked for goes only as far as the model is sure of it."""

from __future__ import annotations

from dgemma_engine.types import InfillResult

from .rejection import Rejection, RejectReason

# One bracket or blank is right often, and worth a keystroke at most.
_LEAST_CHARACTERS = 2


def confident_starts(result: InfillResult, threshold: float) -> list[str] | Rejection:
    """The starts of a fill that are exactly right with some likelihood, the longest first.

    They end where a token ends, and not within a word.

    Args:
        result: of the engine.
        threshold: least of its `prefix_confidences`, 0 .. 1; 0 takes the whole text.
    Returns:
        at least one start.
    """
    text = result.text
    if threshold <= 0.0:
        return [text]
    starts: list[str] = []
    for end, confidence in zip(result.token_ends, result.prefix_confidences, strict=True):
        if confidence < threshold:
            break
        if end == len(text) or not (_is_word(text[end - 1 : end]) and _is_word(text[end])):
            start = text[:end].rstrip()
            if (len(start.strip()) >= _LEAST_CHARACTERS or start == text) and start not in starts:
                starts.append(start)
    if not starts:
        return Rejection(
            RejectReason.LOW_CONFIDENCE,
            f"the model gives this fill a chance of {result.confidence:.0%}, "
            f"and no start of it one of {threshold:.0%}",
        )
    return starts[::-1]


def sound_starts(text: str) -> list[str]:
    """The starts of a text that ends badly, the longest first: whole lines, then whole words."""
    lines = text.split("\n")
    starts = ["\n".join(lines[:count]).rstrip() for count in range(len(lines) - 1, 0, -1)]
    first = lines[0]
    starts += [
        first[:end].rstrip()
        for end in range(len(first) - 1, _LEAST_CHARACTERS, -1)
        if not (_is_word(first[end - 1]) and _is_word(first[end]))
    ]
    return [start for start in dict.fromkeys(starts) if start.strip()]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
