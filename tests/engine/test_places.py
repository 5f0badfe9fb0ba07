"""Places that are like one place, against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dgemma_engine.places import num_shared, pairs, pieces


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("num_kinds", [1, 2, 50])
def test_shared_numbers_are_counted(num_kinds: int, step: int) -> None:
    """Of few places and of many, to the ends of the text and beyond what is wanted."""
    generator = np.random.default_rng(num_kinds)
    values = generator.integers(num_kinds, size=2000)
    wanted = values[700:708][::step]
    for places in (np.arange(len(values)), np.arange(690, 720), np.arange(0)):
        shared = num_shared(values, places, wanted, step)
        for place, count in zip(places, shared, strict=True):
            end = int(place) + step * int(count)
            stretch = values[int(place) : end] if step > 0 else values[end + 1 : int(place) + 1]
            assert list(stretch[::step]) == list(wanted[:count])
            if count < len(wanted) and 0 <= end < len(values):
                assert values[end] != wanted[count]


def test_starts_have_the_ends_behind_them() -> None:
    """In order, none too far, and no more of a start than asked for."""
    starts, ends = np.array([5, 0, 9]), np.array([1, 5, 6, 7, 30])
    start, end = pairs(starts, ends, 6)
    assert list(zip(starts[start], ends[end], strict=True)) == [
        (5, 5), (5, 6), (5, 7), (0, 1), (0, 5), (0, 6)
    ]  # fmt: skip
    start, end = pairs(starts, ends, 6, 1)
    assert list(zip(starts[start], ends[end], strict=True)) == [(5, 5), (0, 1)]


def test_pieces_make_up_the_text() -> None:
    """Each begins with a line that is not indented."""
    text = "a\n  b\n\nc\n\td\n"
    assert pieces(text) == ["a\n  b\n", "\nc\n\td\n"]
    assert pieces("") == [""]
