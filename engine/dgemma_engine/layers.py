"""The parts of a layer that look at one token at a time: norm, dense MLP, router, experts.

Thin holders of parameters, named as the checkpoint names them; the arithmetic is dgemma_kernels'.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dgemma_kernels import gated_mlp, linear, moe_experts, rms_norm, route
from dgemma_kernels.weights import QuantizedWeight

from .config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (D,)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, self.eps)


class Linear(nn.Module):
    """A matrix (N, K) without bias, in few bits if it is held so."""

    weight: Tensor | QuantizedWeight

    def __init__(self, num_columns: int, num_rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, num_columns))

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight)


def hold(model: nn.Module, name: str, weight: QuantizedWeight) -> None:
    """Give a model a quantised weight in the place of a parameter, which it loses."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    assert isinstance(module, Linear | Experts), name
    delattr(module, attribute)
    setattr(module, attribute, weight)


def held_weights(model: nn.Module) -> Iterator[QuantizedWeight]:
    """Every quantised weight of a model."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, QuantizedWeight):
                yield value


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return gated_mlp(hidden, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class SelfConditioning(GatedMLP):
    """Adds what the previous pass believed to the canvas embeddings. Decoder only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.intermediate_size)
        self.pre_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def combine(self, embeddings: Tensor, soft_embeddings: Tensor | None) -> Tensor:
        """Return rms(embeddings + mlp(pre_norm(soft_embeddings))).

        Args:
            embeddings: (B, C, D), scaled embeddings of the canvas.
            soft_embeddings: (B, C, D), scaled mean embedding under the previous pass's
                probabilities; None in the first pass, where the MLP of zeros is exactly zero.
        Returns:
            (B, C, D). The last norm has no scale, and is applied in the first pass too.
        """
        if soft_embeddings is not None:
            embeddings = embeddings + self(self.pre_norm(soft_embeddings))
        return rms_norm(embeddings, None, self.pre_norm.eps)


class Router(nn.Module):
    """Chooses A of E experts for every token and says what each counts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.top_k = config.top_k_experts
        self.proj = Linear(config.hidden_size, config.num_experts)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits over experts: (T, D), the raw residual and not the normed one, to (T, E)."""
        normed = rms_norm(hidden, None, self.eps)
        scores: Tensor = self.proj(normed * self.scale * hidden.shape[-1] ** -0.5)
        return scores

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Route (T, D) to expert_index (T, A) int64 and expert_weight (T, A) float32.

        Softmax over all experts first, then the top A, renormalised, times each expert's scale.
        """
        return self.choose(self.scores(hidden))

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The second half of `forward`: from (T, E) logits."""
        return route(scores, self.top_k, self.per_expert_scale)


class Experts(nn.Module):
    """The experts' weights, stacked: gate_up_proj (E, 2F, D), down_proj (E, D, F)."""

    gate_up_proj: Tensor | QuantizedWeight
    down_proj: Tensor | QuantizedWeight

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, size = config.num_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, config.hidden_size, size))

    def forward(self, hidden: Tensor, expert_index: Tensor, expert_weight: Tensor) -> Tensor:
        return moe_experts(hidden, expert_index, expert_weight, self.gate_up_proj, self.down_proj)
