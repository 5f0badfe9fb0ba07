"""The encoder's masks, drawn: rows are queries, columns are keys, # may look."""

from __future__ import annotations

import pytest
import torch

from dgemma_engine.masks import encoder_mask

CASES = {
    "causal": (0, 3, None, ["#..", "##.", "###"]),
    "causal_after_two_cached": (2, 2, None, ["###.", "####"]),
    "window_of_two": (0, 4, 2, ["#...", "##..", ".##.", "..##"]),
    "window_of_two_after_two_cached": (2, 2, 2, [".##.", "..##"]),
    "window_as_long_as_the_text": (0, 3, 3, ["#..", "##.", "###"]),
    "one_new_token": (3, 1, 2, ["..##"]),
}


@pytest.mark.parametrize("case", CASES)
def test_encoder_mask(case: str) -> None:
    """A token sees itself and what is before it, on sliding layers within the window."""
    num_cached, num_new, window, expected = CASES[case]
    mask = encoder_mask(num_cached, num_new, window, torch.device("cpu"))
    drawn = ["".join("#" if seen else "." for seen in row) for row in mask.tolist()]
    assert expected == drawn
