"""Which of several texts belongs between a prefix and a suffix.

The encoder reads each text between the prefix and the head of the suffix, without having been shown
the suffix before: P(text, suffix | prefix). A text that is too long repeats what follows, one that
is too short leaves it hanging, and both make the suffix unlikely, so that texts of different
lengths can be compared, which neither their own probabilities nor the canvas' confidences allow.

`length_posterior` is the cheaper look that comes first: which lengths are worth drafting at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import PrefixCache
from .canvas import EOM_ID, PAD_ID
from .chains import Mix
from .model import DiffusionGemma
from .tokenizer import Tokenizer
from .types import CancellationToken

# More of the suffix than this says hardly more about the hole.
_SUFFIX_TOKENS = 8
_SUFFIX_CHARS = 80


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """What a text is judged between.

    Attributes:
        prompt_ids: the prefix as a document that has no suffix, up to the healed cut.
        healed: text of the prefix behind the cut.
        suffix: text after the hole.
        mix: changes the chances of what comes next.
        weigh: what is added to a text's score, nats.
    """

    prompt_ids: list[int]
    healed: str
    suffix: str
    mix: Mix | None = None
    weigh: Callable[[str], float] | None = None


class Judge:
    """Judges texts with a model's encoder.

    Attributes:
        prefix_cache: keeps the prefix encoded between calls.
    """

    def __init__(self, model: DiffusionGemma, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.prefix_cache = PrefixCache(model)

    def encode(self, prompt: JudgePrompt, cancel: CancellationToken | None = None) -> None:
        """Encode the prefix ahead of the texts; see `PrefixCache.encode`."""
        self.prefix_cache.encode(prompt.prompt_ids, cancel)

    @torch.no_grad()
    def scores(self, prompt: JudgePrompt, texts: Sequence[str]) -> list[float]:
        """log P(text, head of the suffix | prefix) of each text, nats; -inf of a blank one.

        Where the suffix is cut off is counted in tokens after the text, so that all texts answer
        for about as much of it. No text at all would fit before most suffixes: whether a hole stays
        empty is not asked here.
        """
        encode, head = self._tokenizer.encode, prompt.suffix[:_SUFFIX_CHARS]
        rows = []
        for text in texts:
            own = encode(prompt.healed + text)
            rows.append(encode(prompt.healed + text + head)[: len(own) + _SUFFIX_TOKENS])
        width = max(map(len, rows))
        cache, _ = self.prefix_cache.encode(prompt.prompt_ids)
        last = prompt.prompt_ids[-1]
        padded = [[last, *row, *([0] * (width - len(row)))] for row in rows]
        logits = self._model.continuation_logits(
            torch.tensor(padded, device=self._model.device), cache, len(prompt.prompt_ids) - 1
        )
        chances = logits.log_softmax(dim=-1)
        if prompt.mix is not None:
            scores = _mixed_scores(chances, rows, prompt.mix)
        else:
            scores = [
                float(chances[index, range(len(row)), row].sum()) if row else 0.0
                for index, row in enumerate(rows)
            ]
        weigh = prompt.weigh or (lambda text: 0.0)
        return [
            score + weigh(text) if text.strip() else -math.inf
            for score, text in zip(scores, texts, strict=True)
        ]

    def best(self, prompt: JudgePrompt, texts: Sequence[str]) -> int:
        """Which of some texts has the highest score, the first of those that have it."""
        scores = self.scores(prompt, texts)
        return max(range(len(scores)), key=scores.__getitem__)


def _mixed_scores(chances: Tensor, rows: Sequence[Sequence[int]], mix: Mix) -> list[float]:
    """As `Judge.scores` sums up; a place that rows share is looked at once.

    Args:
        chances: (N, S, V) float32 log probabilities.
        rows: of N, token ids.
    """
    never = chances.new_tensor(-math.inf)
    known: dict[tuple[int, ...], float] = {}
    scores = []
    for index, row in enumerate(rows):
        score = 0.0
        for size, token_id in enumerate(row):
            start = tuple(row[: size + 1])
            if start not in known:
                going_on, _ = mix(row[:size], chances[index, size], never)
                known[start] = float(going_on[token_id])
            score += known[start]
        scores.append(score)
    return scores


def length_posterior(logits: Tensor) -> Tensor:
    """How long the text is, by a first look at a hole that is longer than its text.

    A slot holds padding or the end mark exactly if the text is no longer than the slots before it.

    Args:
        logits: (M, V) float32, of the hole's slots in order.
    Returns:
        (M,) float32, the probability of each length 0 .. M - 1; sums to at most 1.
    """
    probabilities = logits.softmax(dim=-1)
    has_ended = probabilities[:, EOM_ID] + probabilities[:, PAD_ID]  # by slot: length <= slot
    at_most = torch.cummax(has_ended, dim=0).values
    return torch.diff(at_most, prepend=at_most.new_zeros(1))
