"""The vocabulary head: what each row believes the next token is, without writing its logits."""

from __future__ import annotations

from torch import Tensor

from ..backend import attempt, wants_kernel, why_not_these
from ..weights import QuantizedWeight
from .reference import HeadOutput, TokenRules, vocab_head_reference

__all__ = ["HeadOutput", "TokenRules", "vocab_head"]


def vocab_head(
    hidden: Tensor,
    weight: Tensor | QuantizedWeight,
    *,
    softcap: float | None,
    temperature: float | Tensor,
    draws: Tensor | None = None,
    rows: Tensor | None = None,
    rules: TokenRules | None = None,
    round_logits: bool = True,
    keep_masses: bool = False,
    keep_logits: bool = False,
    masses_into: Tensor | None = None,
) -> HeadOutput:
    """Multiply by the vocabulary, softcap, divide by the temperature; say what a sampler asks for.

    One pass over the weight finds the maximum, its first token, the normaliser, the entropy and a
    draw. Probabilities are kept for `soft_embedding` if asked for; logits are written if asked for.

    A draw takes two numbers: the first chooses one of the vocabulary's tiles of 128 tokens by their
    probability, the second a token in it. That is a draw from the whole distribution, and the same
    numbers draw the same token.

    Args:
        hidden: (T, D), after the final norm. Not modified.
        weight: (V, D).
        softcap: c of c * tanh(logit / c); None for no softcap.
        temperature: > 0, a number, or () or (1,) float32 that may lie on the device. For masses it
            is at least softcap / 77 on a GPU; a number below that takes the twin.
        draws: (N, 2) float32, uniform in [0, 1); None draws nothing.
        rows: (N,) int64, the rows that are asked about, N of T; None asks about all.
        rules: what the N rows may say; None allows everything. Each row may say something.
        round_logits: whether logits are rounded to the dtype of `hidden` before the softcap, and
            before they become masses, as the published model does.
        keep_masses: whether to keep what is proportional to the probabilities.
        keep_logits: whether to write the logits.
        masses_into: (N, V) in the dtype of `hidden`, contiguous: where kept masses are written;
            None for a new tensor.
    Returns:
        see `HeadOutput`.
    Source: transformers 5.23 DiffusionGemmaForBlockDiffusion.forward and its sampler.
    """

    def twin() -> HeadOutput:
        return vocab_head_reference(
            hidden,
            weight,
            softcap=softcap,
            temperature=temperature,
            draws=draws,
            rows=rows,
            rules=rules,
            round_logits=round_logits,
            keep_masses=keep_masses,
            keep_logits=keep_logits,
            masses_into=masses_into,
        )

    if not wants_kernel("vocab_head", hidden.device):
        return twin()
    from . import kernel

    given = (hidden, weight) if isinstance(weight, Tensor) else (hidden,)
    reason = why_not_these(*given) or kernel.why_not(
        hidden,
        weight,
        softcap=softcap,
        temperature=temperature,
        rows=rows,
        keep_masses=keep_masses,
    )
    return attempt(
        "vocab_head",
        reason,
        lambda: kernel.vocab_head_kernel(
            hidden,
            weight,
            softcap=softcap,
            temperature=temperature,
            draws=draws,
            rows=rows,
            rules=rules,
            round_logits=round_logits,
            keep_masses=keep_masses,
            keep_logits=keep_logits,
            masses_into=masses_into,
        ),
        twin,
    )
