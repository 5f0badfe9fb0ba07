"""A suggestion that nobody asked for goes only as far as the model is sure of it."""

from __future__ import annotations

from dgemma_engine.types import InfillResult

from .rejection import Rejection, RejectReason

# One bracket or blank is right often, and worth a keystroke at most.
_LEAST_CHARACTERS = 2


def confident_start(result: InfillResult, threshold: float) -> str | Rejection:
    """The longest start of a fill that is exactly right with some likelihood.

    It ends where a token ends, and not within a word.

    Args:
        result: of the engine.
        threshold: least of its `prefix_confidences`, 0 .. 1; 0 takes the whole text.
    """
    text = result.text
    if threshold <= 0.0:
        return text
    best = 0
    for end, confidence in zip(result.token_ends, result.prefix_confidences, strict=True):
        if confidence < threshold:
            break
        if end == len(text) or not (_is_word(text[end - 1 : end]) and _is_word(text[end])):
            best = end
    start = text[:best].rstrip()
    if len(start.strip()) < _LEAST_CHARACTERS and start != text:
        return Rejection(
            RejectReason.LOW_CONFIDENCE,
            f"the model gives this fill a chance of {result.confidence:.0%}, "
            f"and no start of it one of {threshold:.0%}",
        )
    return start


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
