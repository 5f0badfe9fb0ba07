"""How many clients' holes are filled at once: the one place that decides."""

from __future__ import annotations

from .model import DiffusionGemma

# A pass reads the weights however many canvases it has. From this size on that is most of its time
# on a GPU; a smaller model's pass is its launches, which a CUDA graph of one canvas saves.
_LEAST_PARAMETERS = 1_000_000_000
# As many canvases of 256 tokens of the 26B as `passes.MOST_LOGITS_BYTES` lets be one pass.
_MOST_ROWS = 4


def rows_that_gain(model: DiffusionGemma) -> int:
    """As many fills are faster together than one after the other; 1 where that is never so.

    On a CPU it is not: two canvases of 64 tokens of the shipped model take 1.97 times as long as
    one. On a GPU this is reckoned, not measured: 4 canvases of 256 tokens of the 26B, of which 4 B
    work for a token, are 8 TFLOP, 0.02 s of an H100 at 400 TFLOP/s; reading the weights takes it
    0.016 s, once or four times.
    """
    if model.device.type != "cuda" or model.num_parameters < _LEAST_PARAMETERS:
        return 1
    return _MOST_ROWS
