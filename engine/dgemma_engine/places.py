"""Places of a long text that are like one place: what `recall.py` and `analogies.py` share.

Texts are arrays of numbers, of tokens or of words' shapes. Imports no torch.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

# So few places are compared in one step.
_AT_ONCE = 256
_TOP_LEVEL = re.compile(r"\n(?=\S)")


def pieces(text: str) -> list[str]:
    """A text cut before each line that is not indented: a change to it leaves most as they were."""
    starts = [0, *(match.start() for match in _TOP_LEVEL.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(starts)]


def num_shared(values: Numbers, places: Places, wanted: Numbers, step: int) -> Places:
    """How many of the numbers wanted stand from each place on.

    Args:
        values: (S,).
        places: (N,), where to begin.
        wanted: in the order in which they are looked for.
        step: 1 to read on from there, -1 to read back.
    Returns:
        (N,), each 0 .. len(wanted).
    """
    shared = np.zeros(len(places), dtype=np.int64)
    alike = np.arange(len(places))
    for count, number in enumerate(wanted):
        if len(alike) <= _AT_ONCE:
            there = places[alike, None] + step * np.arange(count, len(wanted))
            is_inside = (there >= 0) & (there < len(values))
            is_same = is_inside & (values[np.where(is_inside, there, 0)] == wanted[count:])
            shared[alike] += np.logical_and.accumulate(is_same, axis=1).sum(axis=1)
            break
        there = places[alike] + step * count
        alike = alike[(there >= 0) & (there < len(values))]
        alike = alike[values[places[alike] + step * count] == number]
        shared[alike] += 1
    return shared


def pairs(
    starts: Places, ends: Places, reach: int, most: int | None = None
) -> tuple[Places, Places]:
    """Every start with each of the ends behind it, start by start.

    Args:
        starts: (N,).
        ends: (M,), ascending.
        reach: how far behind its start an end may be.
        most: of the ends of each start, the first ones; None for all.
    Returns:
        indices into `starts` and into `ends`.
    """
    first = np.searchsorted(ends, starts)
    num_ends = np.searchsorted(ends, starts + reach, side="right") - first
    if most is not None:
        num_ends = np.minimum(num_ends, most)
    start = np.repeat(np.arange(len(starts)), num_ends)
    nth = np.arange(len(start)) - np.repeat(np.cumsum(num_ends) - num_ends, num_ends)
    return start, first[start] + nth
