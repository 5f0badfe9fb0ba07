"""What a hole holds so far: read off a denoising step or a chain, joined, cut.

Knows token ids, not text; `texts.py` makes text of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .canvas import Canvas
from .chains import Chain
from .denoise import DenoisingStep
from .types import StopReason


class Draft(NamedTuple):
    """One row's hole, read up to its end: of each token the probability, the entropy in nats, and
    whether it was accepted. `has_ended`: there was an end.
    """

    token_ids: list[int]
    confidences: list[float]
    entropies: list[float]
    accepted: list[bool]
    has_ended: bool

    def start(self, size: int) -> Draft:
        """The first `size` tokens, taken for all of it."""
        return Draft(
            self.token_ids[:size],
            self.confidences[:size],
            self.entropies[: max(1, size)],
            self.accepted[:size],
            has_ended=True,
        )


class Fill(NamedTuple):
    """What a decoder came to, and what else it might have been; `chain` is None where nothing can
    read it from left to right.
    """

    draft: Draft
    num_passes: int
    stop_reason: StopReason
    chain: Chain | None
    others: tuple[Chain, ...] = ()


def read_draft(
    step: DenoisingStep, canvas: Canvas, row: int, end_token_ids: Sequence[int]
) -> Draft:
    """A row's hole, up to its first end token; without end tokens it is all of the hole."""
    hole = canvas.hole_mask[row]
    token_ids = step.argmax_canvas[row, hole].tolist()
    ends = (index for index, token_id in enumerate(token_ids) if token_id in end_token_ids)
    length = next(ends, len(token_ids))
    return Draft(
        token_ids=token_ids[:length],
        confidences=step.confidence[row, hole].tolist()[:length],
        # An empty fill is as sure as its end mark.
        entropies=step.entropy[row, hole].tolist()[: max(1, length)],
        accepted=step.accepted[row, hole].tolist()[:length],
        has_ended=length < len(token_ids) or not end_token_ids,
    )


def draft_of(chain: Chain) -> Draft:
    """What a chain says of its tokens, each given those before it."""
    confidences = [math.exp(value) for value in chain.log_probabilities]
    # The entropy of two outcomes, this token and any other: a lower bound of the true one.
    entropies = [binary_entropy(value) for value in confidences] or [0.0]
    accepted = [True] * len(confidences)
    return Draft(list(chain.token_ids), confidences, entropies, accepted, has_ended=True)


def join(done: Draft, more: Draft) -> Draft:
    """A draft that goes on over several canvases."""
    return Draft(
        done.token_ids + more.token_ids,
        done.confidences + more.confidences,
        done.entropies + more.entropies,
        done.accepted + more.accepted,
        more.has_ended,
    )


def surest_row(step: DenoisingStep, canvas: Canvas) -> int:
    """The row to show while several are denoised."""
    return int(mean_log_confidence(step, canvas).argmax())


def mean_log_confidence(step: DenoisingStep, canvas: Canvas) -> Tensor:
    """(B,) how sure each row is of its hole's draft: mean log-probability over the hole."""
    log_confidence = step.confidence.clamp_min(1e-30).log() * canvas.hole_mask
    return log_confidence.sum(dim=-1) / canvas.hole_mask.sum(dim=-1)


def binary_entropy(probability: float) -> float:
    """Of an event and its opposite, nats."""
    return -sum(p * math.log(p) for p in (probability, 1.0 - probability) if p > 0.0)
