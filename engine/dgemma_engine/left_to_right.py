"""The encoder as a decoder of its own: a token a pass.

`infill.py` has a hole written by it; what decodes otherwise has its texts read. The judge cuts what
it wrote to fit before the suffix. Which tokens may follow, `chains.py` says.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import torch

from .cache import PrefixCache
from .chains import CausalRules, Chain, Mix, likely_fills, read_left_to_right
from .drafts import Draft, Fill, draft_of
from .judge import Judge
from .model import DiffusionGemma
from .passes import InPasses
from .strategies import InfillPlan
from .texts import Texts
from .tokenizer import Tokenizer
from .types import CancellationToken, HoleKind, InfillRequest, OnStep, StopReason

# Starts of a fill that are compared where the line goes on behind the hole.
_MOST_CUTS = 16
# Fills that are looked for where the first one has a name that nobody gave: of 1,900 in unseen
# packages 148 had one; of what came instead 23 still have one, and 14 are right.
_NUM_SEARCHED = 4


class LeftToRight:
    """Writes a hole from left to right, and reads texts as if it had written them.

    Attributes:
        prefix_cache: of the client that is served; holds the plan's prompt.
    """

    def __init__(
        self, model: DiffusionGemma, tokenizer: Tokenizer, texts: Texts, judge: Judge
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._texts = texts
        self._judge = judge
        self.prefix_cache = PrefixCache(model)

    def fill(
        self,
        plan: InfillPlan,
        request: InfillRequest,
        on_step: OnStep | None,
        cancel: CancellationToken | None,
    ) -> InPasses[Fill]:
        """Write the hole of a plan that has rules; others have a turn after every token."""
        assert plan.rules is not None
        reason = StopReason.END
        least = math.log(request.least_confidence) if request.least_confidence else -math.inf
        num_passes, draft = 0, Draft([], [], [0.0], [], has_ended=False)
        chain = Chain((), (), 0.0)
        for chain in decode_left_to_right(
            self.prefix_cache,
            plan.prompt_ids,
            plan.rules,
            plan.most_tokens,
            request.num_tokens,
            cancel,
            plan.mix,
        ):
            has_written = len(chain.token_ids) > len(draft.token_ids)
            draft = draft_of(chain)
            num_passes += 1
            if on_step is not None and has_written:
                on_step(self._texts.step_of(num_passes - 1, plan.most_tokens, draft, plan, request))
            if request.deadline is not None and time.monotonic() >= request.deadline:
                reason = StopReason.DEADLINE
                break
            if chain.start_log_probability < least:
                reason = StopReason.UNSURE
                break
            yield None
        if reason is StopReason.END and len(draft.token_ids) == plan.most_tokens:
            reason = StopReason.MAX_STEPS
        others: list[Chain] = []
        if not reason.is_early and request.num_tokens is None:
            chain, others = yield from self._among_likely(plan, plan.rules, chain, request, cancel)
            draft, chain = self._cut_before_suffix(
                plan, plan.rules, draft_of(chain), chain, request
            )
        return Fill(draft, num_passes, reason, chain, tuple(others))

    def read(
        self, plan: InfillPlan, rules: CausalRules, token_ids: list[int]
    ) -> tuple[Draft, Chain]:
        """A text as it stands, whoever wrote it, as the encoder reads it."""
        cache, _ = self.prefix_cache.encode(plan.prompt_ids)
        (chain,) = read_left_to_right(
            self._model, cache, plan.prompt_ids, [token_ids], rules, plan.mix
        )
        return draft_of(chain), chain

    def _among_likely(
        self,
        plan: InfillPlan,
        rules: CausalRules,
        chain: Chain,
        request: InfillRequest,
        cancel: CancellationToken | None,
    ) -> InPasses[tuple[Chain, list[Chain]]]:
        """The fill; if it has a name that nobody gave, the likeliest other one that has none.

        Returns:
            and the other likely ones that have none, if they are wanted, or had to be looked for.
        """

        def is_known(fill: Chain) -> bool:
            text = self._texts.text_of(fill.token_ids, plan, request)
            return plan.scope is None or plan.scope.first_unknown(text) is None

        num_wanted = request.num_alternatives if request.kind is HoleKind.LINE else 0
        if is_known(chain) and not num_wanted:
            return chain, []
        cache, _ = self.prefix_cache.encode(plan.prompt_ids)
        others = yield from likely_fills(
            self._model,
            cache,
            plan.prompt_ids,
            rules,
            plan.most_tokens,
            max(_NUM_SEARCHED, 1 + num_wanted),
            plan.mix,
            cancel,
            request.deadline,
        )
        known = [fill for fill in others if fill.is_over(rules, -math.inf) and is_known(fill)]
        if known and not is_known(chain):
            chain = known[0]
        return chain, [fill for fill in known if fill.token_ids != chain.token_ids]

    def _cut_before_suffix(
        self,
        plan: InfillPlan,
        rules: CausalRules,
        draft: Draft,
        chain: Chain,
        request: InfillRequest,
    ) -> tuple[Draft, Chain]:
        """The start of the fill that fits best before the suffix.

        Left to right tends to write a line to its end, whatever follows on it, and a block on and
        on. A line is cut anywhere if it goes on behind the hole; a block at the ends of its lines.
        """
        length = len(draft.token_ids)
        is_line = request.kind is HoleKind.LINE
        if plan.judge is None or (is_line and not request.suffix.partition("\n")[0].strip()):
            return draft, chain
        sizes = [
            size
            for size in range(1, length + 1)
            if is_line or size == length or self._starts_line(draft.token_ids[size])
        ][-_MOST_CUTS:]
        if len(sizes) < 2:
            return draft, chain
        texts = [self._texts.text_of(draft.token_ids[:size], plan, request) for size in sizes]
        size = sizes[self._judge.best(plan.judge, texts)]
        if size == length:
            return draft, chain
        cut = draft.start(size)
        _, again = self.read(plan, rules, cut.token_ids)
        return cut, again

    def _starts_line(self, token_id: int) -> bool:
        return self._tokenizer.token_bytes(token_id).startswith(b"\n")


@torch.no_grad()
def decode_left_to_right(
    prefix_cache: PrefixCache,
    prompt_ids: Sequence[int],
    rules: CausalRules,
    max_tokens: int,
    num_tokens: int | None = None,
    cancel: CancellationToken | None = None,
    mix: Mix | None = None,
) -> Iterator[Chain]:
    """Write the most likely token at each place, until the rules say that it is over.

    Args:
        prefix_cache: of the model; holds the prompt and the fill afterwards, so that accepting the
            fill costs no encoding.
        prompt_ids: S >= 1.
        rules: of the hole.
        max_tokens: where to stop at the latest.
        num_tokens: write exactly so many; None to end where the model ends.
        cancel: looked at before every pass.
        mix: changes the chances of what comes next.
    Yields:
        the fill so far, after every pass. The last one is the fill; the same as the one before, if
        the end came.
    Raises:
        Cancelled: within one pass of the token being set.
    """
    chain = Chain((), (), -math.inf)
    last = max_tokens if num_tokens is None else num_tokens
    while True:
        if cancel is not None:
            cancel.raise_if_cancelled()
        logits = prefix_cache.next_token_logits([*prompt_ids, *chain.token_ids])
        going_on, end = rules.log_probabilities(logits[None], is_first=not chain.token_ids)
        going_on, end = going_on[0], end[0]
        if mix is not None:
            going_on, end = mix(chain.token_ids, going_on, end)
        best, token_id = going_on.max(dim=-1)
        ended = dataclasses.replace(chain, end_log_probability=float(end))
        # When it is full, only the chance of ending here was still to know.
        is_full = len(chain.token_ids) == last
        if is_full or (num_tokens is None and ended.is_over(rules, float(best))):
            yield ended
            return
        chain = chain.longer(int(token_id), float(best))
        yield chain
