"""Noise and temperature as functions of the denoising step. `step` counts up from 0.

transformers counts the steps that remain: its `cur_step` is `max_denoising_steps - step`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import SamplerConfig


def noise_proportion(step: int, max_denoising_steps: int) -> float:
    """Share of the schedule still to come: 1 before the first step, 1 / N before the last."""
    return (max_denoising_steps - step) / max_denoising_steps


def temperature(step: int, config: SamplerConfig) -> Tensor:
    """Linear from `t_max` at the first step towards `t_min`: a float32 scalar.

    Computed in float32 throughout, as the published sampler does, so that dividing logits by it
    rounds alike.
    """
    remaining = torch.tensor(config.max_denoising_steps - step, dtype=torch.int32)
    return config.t_min + (config.t_max - config.t_min) * (remaining / config.max_denoising_steps)


def min_accepted(step: int, num_slots: int, config: SamplerConfig) -> int:
    """How many of a hole's slots have to be accepted at this step: 1, or the schedule's share."""
    if not config.min_accept:
        return 1
    return max(1, math.ceil(num_slots * (step + 1) / config.max_denoising_steps))
