"""Muon for the hidden matrices, AdamW for the rest.

torch's own Muon takes two-dimensional parameters only; the experts' are stacked in three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

# Quintic iteration that drives all singular values towards 1. Source: Keller Jordan, "Muon", 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values around 1: (N, R, S) to (N, R, S) bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def _orthogonalize_together(matrices: Tensor) -> Tensor:
    """`orthogonalize`, each of several processes a share of the same matrices."""
    if not torch.distributed.is_initialized():
        return orthogonalize(matrices)
    shares = matrices.bfloat16().tensor_split(torch.distributed.get_world_size())
    rank = torch.distributed.get_rank()
    updates = [orthogonalize(own) if i == rank else own for i, own in enumerate(shares)]
    for source, own in enumerate(updates):
        if len(own):
            torch.distributed.broadcast(own, src=source)
    return torch.cat(updates)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: every direction of a matrix is learned at the same rate.

    Takes (R, S) matrices and (E, R, S) stacks of them; matrices of one shape go together.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2:]].append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(group, shape, parameters)

    def _step_shape(
        self, group: dict[str, Any], shape: torch.Size, parameters: list[nn.Parameter]
    ) -> None:
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
            direction = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
            directions.append(direction.view(-1, *shape))
        updates = _orthogonalize_together(torch.cat(directions))
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        sizes = [direction.shape[0] for direction in directions]
        for parameter, update in zip(parameters, updates.split(sizes), strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def build_optimizers(
    model: nn.Module, muon_lr: float = 0.02, adam_lr: float = 3e-3
) -> list[torch.optim.Optimizer]:
    """Muon for projections, MLPs and experts; AdamW for embeddings, norms and routers."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_hidden = parameter.ndim >= 2 and "embed_tokens" not in name and ".router." not in name
        (matrices if is_hidden else others).append(parameter)
    optimizers = [
        Muon(matrices, lr=muon_lr),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
