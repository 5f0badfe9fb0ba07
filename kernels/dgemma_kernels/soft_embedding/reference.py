"""The mean embedding under a distribution over the vocabulary, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..weights import QuantizedWeight


def soft_embedding_reference(
    masses: Tensor,
    mass_scale: Tensor | None,
    table: Tensor | QuantizedWeight,
    *,
    embedding_scale: float = 1.0,
) -> Tensor:
    """See `dgemma_kernels.soft_embedding`."""
    if isinstance(table, QuantizedWeight):
        table = table.dequantize(torch.bfloat16)
    if mass_scale is None:
        probability = masses.softmax(dim=-1, dtype=torch.float32).to(table.dtype)
        mean = probability @ table
    else:
        mean = (masses.float() @ table.float()) * mass_scale[:, None]
    # Filled on the device: while a CUDA graph is captured nothing may be copied to it.
    factor = torch.full((), embedding_scale, dtype=table.dtype, device=table.device)
    return mean.to(table.dtype) * factor


class TruncatedSoftEmbedding(NamedTuple):
    """A soft embedding of the most likely tokens only.

    Attributes:
        embedding: (N, D) in the dtype of the table.
        error_bound: (N,) float32, no less than the Euclidean distance to the whole mean, but for
            the rounding of either.
    """

    embedding: Tensor
    error_bound: Tensor


def truncated_soft_embedding(
    masses: Tensor,
    mass_scale: Tensor,
    table: Tensor,
    *,
    top_k: int,
    embedding_scale: float = 1.0,
    largest_norm: Tensor | None = None,
) -> TruncatedSoftEmbedding:
    """As `soft_embedding`, from the `top_k` most likely tokens of each row. Not exact: an option.

    What is left out is not made up for: with a tail of probability t the error is the norm of a
    mean over the tail times t, so at most t times the largest norm of an embedding.

    Args:
        masses: (N, V), as from `vocab_head`.
        mass_scale: (N,) float32: masses times this are the probabilities.
        table: (V, D).
        top_k: tokens a row, 1 <= top_k <= V.
        embedding_scale: multiplies the mean, and the bound.
        largest_norm: () float32, the largest Euclidean norm of a row of the table, for who calls
            this often; None measures it.
    Returns:
        the embedding and its error bound.
    Raises:
        ValueError: top_k is out of its range (the message shows it).
    """
    if not 1 <= top_k <= masses.shape[-1]:
        raise ValueError(f"top_k must be in 1 .. {masses.shape[-1]}, got {top_k}")
    mass, token = masses.float().topk(top_k, dim=-1)  # (N, top_k)
    probability = mass * mass_scale[:, None]
    mean = torch.einsum("nk,nkd->nd", probability, table[token].float()) * embedding_scale
    tail = (1.0 - probability.sum(dim=-1)).clamp(min=0.0)
    if largest_norm is None:
        largest_norm = table.float().norm(dim=-1).amax()
    return TruncatedSoftEmbedding(mean.to(table.dtype), tail * largest_norm * embedding_scale)
