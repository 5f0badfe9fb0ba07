"""A trained model in a wider one's weights: the first step of a larger size's run on few cores.

Every channel, head and hidden unit is there twice, and what reads two copies weighs each at about
one half, so that the wide model says what the narrow one does. The halves differ by noise that
cancels as long as the copies agree; it is what makes them learn different things.
Source: Net2WiderNet (Chen et al., 2016).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Of the noise between two copies' weights, against the weights.
_NOISE = 0.5


def widen(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], generator: torch.Generator
) -> dict[str, Tensor]:
    """The weights of a model twice as wide that computes the same.

    Args:
        weights: of the narrow model, by name as `DiffusionGemma` names them.
        shapes: of the wide one: hidden size, heads and hidden units doubled; key and value heads
            doubled or not; as many layers and experts, and the same vocabulary.
        generator: of the noise.
    Raises:
        ValueError: the wide model is not of such a shape.
    """
    return {name: _widened(name, weights[name], shapes[name], generator) for name in shapes}


def _widened(name: str, weight: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    ratios = [new / old for new, old in zip(shape, weight.shape, strict=True)]
    if any(ratio not in (1, 2) for ratio in ratios):
        raise ValueError(f"{name} is {tuple(weight.shape)}; it cannot become {tuple(shape)}")
    if name == "norm.weight":
        # Embeddings, and with them logits: the scale of both is the root of the width.
        return weight.repeat(2) / 2**0.5
    if name == "embed_tokens.weight":
        return weight.repeat(1, 2) / 2**0.5
    if weight.ndim < 2:
        return weight.repeat(int(ratios[0]))
    if name.endswith("gate_up_proj"):  # (E, 2F, D): gates, then what they let through
        weight = torch.cat([half.repeat(1, 2, 1) for half in weight.chunk(2, dim=1)], dim=1)
    elif ratios[-2] == 2:
        weight = weight.repeat(*[1] * (weight.ndim - 2), 2, 1)
    if name.endswith("router.proj.weight"):
        weight = weight * 2**0.5  # its inputs are divided by the root of the width
    noise = torch.randn(weight.shape, generator=generator) * weight.std() * _NOISE
    return torch.cat((weight + noise, weight - noise), dim=-1) / 2
