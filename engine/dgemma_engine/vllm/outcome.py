"""What one of the ways of asking came to, before it becomes an InfillResult."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..tokenizer import Tokenizer
from ..types import Decoder, DraftStep, DraftToken, InfillRequest, OnStep, StopReason


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fill's text and how sure the server was of it.

    `confidences` are of the tokens, 0 .. 1, and `ends` say where in the text they end; both are
    empty where the server gives no probabilities.
    """

    text: str
    decoder: Decoder
    stop_reason: StopReason
    token_ids: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()
    num_rounds: int = 1
    num_context_tokens: int = 0

    @property
    def prefix_confidences(self) -> tuple[float, ...]:
        return tuple(itertools.accumulate(self.confidences, lambda left, right: left * right))

    @property
    def mean_entropy(self) -> float:
        """Of two outcomes, each token and any other: nats, a lower bound of the true one."""
        entropies = [
            -sum(p * math.log(p) for p in (value, 1.0 - value) if p > 0.0)
            for value in self.confidences
        ]
        return sum(entropies) / len(entropies) if entropies else 0.0

    def as_step(self, step: int, max_steps: int) -> DraftStep:
        """The outcome as it is shown while there is more to come."""
        starts = (0, *self.ends)
        tokens = tuple(
            DraftToken(self.text[start:end], confidence, is_accepted=True)
            for start, end, confidence in zip(starts, self.ends, self.confidences, strict=False)
        )
        return DraftStep(step, max_steps, self.text, tokens, self.mean_entropy)


class Level(Protocol):
    """One way to ask a server for a hole."""

    name: str

    def render(self, request: InfillRequest) -> str:
        """What the model would read, for a person."""
        ...

    async def fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """Fill the hole, or what is possible up to `request.deadline`.

        Raises:
            RequestError: the request cannot be served this way.
            EngineUnavailable: the server cannot be had.
        """
        ...


def read_tokens(
    tokenizer: Tokenizer, token_ids: Sequence[int], healed: bytes, cut: Callable[[str], str]
) -> tuple[str, tuple[int, ...]]:
    """The text of a fill's tokens, and where in it each of them ends.

    Args:
        healed: what the first token repeats of the prefix.
        cut: to the shape of the hole.
    """
    decoded = tokenizer.decode_bytes(token_ids).removeprefix(healed)
    text = cut(decoded.decode("utf-8", errors="ignore"))
    data, ends = b"", []
    for token_id in token_ids:
        data += tokenizer.token_bytes(token_id)
        so_far = data.removeprefix(healed).decode("utf-8", errors="ignore")
        ends.append(min(len(so_far), len(text)))
    return text, tuple(ends)


def late(decoder: Decoder) -> Outcome:
    """Nothing came before the deadline."""
    return Outcome("", decoder, StopReason.DEADLINE, confidences=(0.0,), ends=(0,))
