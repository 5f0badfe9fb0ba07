"""Into how many parts a kernel splits a long sum, so that few rows still use the whole GPU."""

from __future__ import annotations

import functools

import torch

# What the interpreter is taken for: few enough that small tests split, and split unevenly.
_INTERPRETED_PROCESSORS = 6


def splits_for(
    device: torch.device, *, num_programs: int, num_steps: int, shortest: int, largest: int
) -> int:
    """Two programs for each of the GPU's processors, within bounds.

    Depends on shapes and on the GPU alone: the order of the sums is then fixed, and the same from
    run to run.

    Args:
        device: where the kernel runs.
        num_programs: of one split.
        num_steps: along the sum, in all.
        shortest: steps that a split has at least; a shorter one costs more to add than it saves.
        largest: number of splits.
    Returns:
        >= 1.
    """
    wanted = -(-2 * _num_processors(device) // num_programs)
    return max(1, min(wanted, num_steps // shortest, largest))


@functools.cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
