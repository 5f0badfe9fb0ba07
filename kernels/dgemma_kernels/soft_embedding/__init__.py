"""The mean embedding under a distribution over the vocabulary: self-conditioning's first step."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from ..weights import QuantizedWeight
from .reference import TruncatedSoftEmbedding, soft_embedding_reference, truncated_soft_embedding

__all__ = ["TruncatedSoftEmbedding", "soft_embedding", "truncated_soft_embedding"]


def soft_embedding(
    masses: Tensor,
    mass_scale: Tensor | None,
    table: Tensor | QuantizedWeight,
    *,
    embedding_scale: float = 1.0,
) -> Tensor:
    """Average the embeddings by probability: exact, over the whole vocabulary.

    Args:
        masses: (N, V) in the dtype of the table, as `vocab_head` keeps them; or, with no
            `mass_scale`, logits of any float dtype, divided by the temperature. Not modified.
        mass_scale: (N,) float32: masses times this are the probabilities; None if `masses` are
            logits, whose softmax is rounded to the dtype of the table as the published model does.
        table: (V, D).
        embedding_scale: multiplies the mean after it was rounded; itself rounded to the dtype of
            the table.
    Returns:
        (N, D), dtype of the table.
    Source: transformers 5.23 DiffusionGemmaSelfConditioning.
    """

    def twin() -> Tensor:
        return soft_embedding_reference(masses, mass_scale, table, embedding_scale=embedding_scale)

    if not wants_kernel("soft_embedding", masses.device):
        return twin()
    from . import kernel

    given = (masses, table) if isinstance(table, Tensor) else (masses,)
    reason = why_not_these(*given) or kernel.why_not(masses, mass_scale, table)

    def launched() -> Tensor:
        assert isinstance(table, Tensor)
        return kernel.soft_embedding_kernel(
            masses, mass_scale, table, embedding_scale=embedding_scale
        )

    return attempt("soft_embedding", reason, launched, twin)
