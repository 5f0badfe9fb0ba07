"""What a decoder came to, as an answer: text, and how sure the model is of every start of it.

The last thing that `infill.py` does with a fill; `texts.py` makes text of its tokens.
"""

from __future__ import annotations

import itertools
import math

from .drafts import Fill
from .strategies import InfillPlan
from .texts import Texts
from .types import Alternative, Decoder, InfillRequest, InfillResult, StopReason, Timings

_LEAST_PROBABILITY = 1e-30


def build_result(
    fill: Fill,
    plan: InfillPlan,
    request: InfillRequest,
    texts: Texts,
    decoder: Decoder,
    num_cached: int,
    timings: Timings,
) -> InfillResult:
    """A fill's result, at most `max_tokens` of it.

    Args:
        fill: its chain says how sure the model is; without one, the canvas does.
        decoder: that came to it.
        num_cached: tokens of the prompt that were encoded before.
    """
    token_ids = fill.draft.token_ids[: request.max_tokens]
    confidences = fill.draft.confidences[: len(token_ids)]
    entropies = fill.draft.entropies[: max(1, len(token_ids))]
    text = texts.text_of(token_ids, plan, request)
    chances = [math.log(max(value, _LEAST_PROBABILITY)) for value in confidences]
    end = 0.0
    if fill.chain is not None:
        chances = list(fill.chain.log_probabilities[: len(token_ids)])
        if fill.stop_reason is not StopReason.UNSURE:
            end = fill.chain.end_log_probability
    chain = list(itertools.accumulate(chances))
    return InfillResult(
        text=text,
        token_ids=tuple(token_ids),
        token_confidences=tuple(confidences),
        token_ends=tuple(texts.token_ends(token_ids, plan.healed, text)),
        prefix_confidences=tuple(map(math.exp, chain)),
        confidence=math.exp((chain[-1] if chain else 0.0) + end),
        mean_entropy=sum(entropies) / len(entropies),
        decoder=decoder,
        num_passes=fill.num_passes,
        num_cached_tokens=num_cached,
        num_context_tokens=len(plan.prompt_ids),
        timings=timings,
        stop_reason=fill.stop_reason,
        alternatives=_alternatives(fill, text, plan, request, texts),
    )


def _alternatives(
    fill: Fill, text: str, plan: InfillPlan, request: InfillRequest, texts: Texts
) -> tuple[Alternative, ...]:
    """The fill's others that are different texts, and texts at all."""
    found: dict[str, Alternative] = {}
    for chain in fill.others:
        other = texts.text_of(chain.token_ids, plan, request)
        if other.strip() and other.rstrip() != text.rstrip():
            confidence = math.exp(chain.log_probability)
            found.setdefault(other.rstrip(), Alternative(other, confidence))
    return tuple(found.values())[: request.num_alternatives]
