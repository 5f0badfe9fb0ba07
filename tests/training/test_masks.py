"""Who sees whom in a training row, drawn as truth tables."""

import torch

from training.masks import joint_mask


def draw(mask):
    return ["".join("x" if open_ else "." for open_ in row) for row in mask.tolist()]


def build(window):
    """Documents of 4 and 2 tokens; canvases of 2 tokens after 3 of the first, 1 of the second."""
    return joint_mask(
        document_index=torch.tensor([[0, 0, 0, 0, 1, 1]]),
        document_positions=torch.tensor([[0, 1, 2, 3, 0, 1]]),
        canvas_index=torch.tensor([[0, 0, 1, 1]]),
        canvas_document=torch.tensor([[0, 0, 1, 1]]),
        canvas_cut=torch.tensor([[3, 3, 1, 1]]),
        sliding_window=window,
    )


def test_full_layers():
    """Documents are causal and apart; a canvas sees its document before its cut, and itself."""
    expected = [
        "x.........",
        "xx........",
        "xxx.......",
        "xxxx......",
        "....x.....",
        "....xx....",
        "xxx...xx..",
        "xxx...xx..",
        "....x...xx",
        "....x...xx",
    ]
    mask = build(window=None)
    assert mask.shape == (1, 1, 10, 10)
    assert expected == draw(mask[0, 0])


def test_sliding_layers():
    """A token sees itself and window - 1 before it; a canvas the last window - 1 of its prefix."""
    expected = [
        "x.........",
        "xx........",
        "xxx.......",
        ".xxx......",
        "....x.....",
        "....xx....",
        ".xx...xx..",
        ".xx...xx..",
        "....x...xx",
        "....x...xx",
    ]
    assert expected == draw(build(window=3)[0, 0])
