"""Any model: the suffix clamped behind holes of several lengths, the best kept."""

from __future__ import annotations

import torch

from ..canvas import Canvas
from ..config import ModelConfig
from ..edges import cut_to_kind
from ..layouts import lay_out_lengths
from ..tokenizer import Tokenizer
from ..types import InfillRequest, JointRequest
from .plan import InfillPlan, JointPlan, continuing, not_text, one_by_one


class LengthStrategy:
    """The suffix clamped right behind holes of several lengths, all in one batch.

    One pass over all lengths ranks them by the mean log-probability of their drafts; the best two
    are denoised to the end, and the better of these is the fill.
    """

    name = "lengths"
    fills_together = False

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self.end_token_ids: tuple[int, ...] = ()
        self._banned = not_text(tokenizer, config, self.end_token_ids, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        length = self._config.canvas_length
        layout = lay_out_lengths(
            self._tokenizer,
            request,
            canvas_length=length,
            max_position_embeddings=self._config.max_position_embeddings,
        )
        rows = [[0] * size + layout.behind(size) for size in layout.sizes]
        hole_mask = torch.arange(length, device=self._device)[None] < torch.tensor(
            layout.sizes, device=self._device
        ).unsqueeze(1)
        vocab_size = self._config.vocab_size
        canvas = Canvas(
            torch.tensor(rows, device=self._device),
            hole_mask,
            banned=self._banned,
            first_allowed=continuing(self._tokenizer, layout.healed, vocab_size, self._device),
        )
        return InfillPlan(layout.prompt_ids, canvas, layout.healed)

    def plan_together(self, request: JointRequest) -> JointPlan:
        raise one_by_one(self.name)

    def cut(self, text: str, request: InfillRequest) -> str:
        return cut_to_kind(text, request.kind)
