"""How many clients' holes are filled at once: the one place that decides."""

from __future__ import annotations

from .model import DiffusionGemma

# A pass reads the weights however many canvases it has. From this size on that is most of its time
# on a GPU; a smaller model's pass is its launches, which a CUDA graph of one canvas saves.
_LEAST_PARAMETERS = 1_000_000_000
_MOST_ROWS = 8


def rows_that_gain(model: DiffusionGemma) -> int:
    """As many fills are faster together than one after the other; 1 where that is never so.

    On a CPU it is not: two canvases of 64 tokens of the shipped model take 1.97 times as long as
    one. On a GPU it is reckoned, not measured: 8 canvases of 256 tokens of the 26B are less work
    than an H100 does while it reads the weights a few times.
    """
    if model.device.type != "cuda" or model.num_parameters < _LEAST_PARAMETERS:
        return 1
    return _MOST_ROWS
