"""Refusal as a value: logged, counted, tested."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RejectReason(str, Enum):
    """Why nothing was offered."""

    EMPTY = "empty"  # nothing to insert, or nothing would change
    STALE = "stale"  # the document went another way meanwhile
    DUPLICATES_SUFFIX = "duplicates_suffix"  # the fill only repeats what follows
    UNBALANCED = "unbalanced"  # it opens what it does not close
    DOES_NOT_PARSE = "does_not_parse"  # the grammar cannot read the text with it
    LOW_CONFIDENCE = "low_confidence"  # not even the fill's start is likely to be right
    DEADLINE = "deadline"  # the draft at hand when the time was over was none of use
    OFF = "off"  # switched off, or not at such a place
    NO_ENGINE = "no_engine"  # it cannot be loaded, or it died
    FAILED = "failed"  # the engine refused, or an error nobody foresaw
    CANCELLED = "cancelled"  # a newer request took its place


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a fill is not offered; `detail` is a sentence for a person and holds no code."""

    reason: RejectReason
    detail: str
