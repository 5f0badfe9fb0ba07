"""Tokens of a hole to text: what would be inserted, and what a caller may show of a draft."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from .drafts import Draft
from .strategies import InfillPlan, InfillStrategy
from .tokenizer import Tokenizer
from .types import DraftStep, DraftToken, InfillRequest


class Texts:
    """Reads token ids as one strategy means them.

    `healed` is everywhere what the first token repeats of the text before the hole, in bytes.
    """

    def __init__(self, tokenizer: Tokenizer, strategy: InfillStrategy) -> None:
        self._tokenizer = tokenizer
        self._strategy = strategy

    def text(
        self,
        token_ids: Sequence[int],
        healed: bytes,
        request: InfillRequest,
        *,
        is_reply: bool = False,
    ) -> str:
        """What would be inserted; a reply in a conversation is not cut to a hole."""
        data = self._tokenizer.decode_bytes(token_ids).removeprefix(healed)
        text = data.decode("utf-8", errors="ignore")
        return text if is_reply else self._strategy.cut(text, request)

    def text_of(self, token_ids: Sequence[int], plan: InfillPlan, request: InfillRequest) -> str:
        """As `text`, for a plan's only hole."""
        return self.text(token_ids, plan.healed, request, is_reply=plan.is_reply)

    def step(self, step: int, max_steps: int, draft: Draft, healed: bytes, text: str) -> DraftStep:
        """A draft, of which `text` would be inserted, as a caller may show it."""
        texts = [self._tokenizer.decode([token_id]) for token_id in draft.token_ids]
        if texts:  # what the first token repeats is not part of the draft
            first = self._tokenizer.token_bytes(draft.token_ids[0]).removeprefix(healed)
            texts[0] = first.decode("utf-8", errors="ignore")
        tokens = tuple(map(DraftToken, texts, draft.confidences, draft.accepted))
        return DraftStep(
            step=step,
            max_steps=max_steps,
            text=text,
            tokens=tokens,
            mean_entropy=sum(draft.entropies) / len(draft.entropies),
        )

    def step_of(
        self, step: int, max_steps: int, draft: Draft, plan: InfillPlan, request: InfillRequest
    ) -> DraftStep:
        """As `step`, for a plan's only hole."""
        text = self.text_of(draft.token_ids, plan, request)
        return self.step(step, max_steps, draft, plan.healed, text)

    def token_ends(self, token_ids: Sequence[int], healed: bytes, text: str) -> Iterator[int]:
        """Where in `text` each token ends; the text's end for what was cut off."""
        data = b""
        for token_id in token_ids:
            data += self._tokenizer.token_bytes(token_id)
            so_far = data.removeprefix(healed).decode("utf-8", errors="ignore")
            yield min(len(so_far), len(text))

    def render(self, plan: InfillPlan) -> str:
        """A plan's prompt and canvas, special tokens by their names."""
        token_ids, hole = plan.canvas.token_ids[0].tolist(), plan.canvas.hole_mask[0].tolist()
        canvas = ""
        for is_hole, slots in itertools.groupby(range(len(hole)), hole.__getitem__):
            part = list(slots)
            clamped = self._tokenizer.render(token_ids[slot] for slot in part)
            canvas += f"⟨{len(part)} slots to fill⟩" if is_hole else clamped
        prompt = self._tokenizer.render(plan.prompt_ids)
        healed = plan.healed.decode("utf-8", errors="replace")
        start = f"the first slot begins with {healed!r}, taken back from the prefix\n"
        return (
            f"prompt ({len(plan.prompt_ids)} tokens):\n{prompt}\n\n"
            f"canvas:\n{canvas}\n{start if healed else ''}"
        )

    def draft_ids(self, draft: str, healed: bytes) -> list[int]:
        """A hole's text as its tokens."""
        return self._tokenizer.encode(healed.decode("utf-8", errors="ignore") + draft)
