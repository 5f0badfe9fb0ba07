"""Any model: the suffix clamped behind holes of several lengths, the best kept."""

from __future__ import annotations

import torch

from ..canvas import Canvas
from ..config import ModelConfig
from ..tokenizer import Tokenizer
from ..types import InfillRequest, JointRequest
from .plan import InfillPlan, JointPlan, continuing, cut_to_kind, heal, not_text, one_by_one
from .turns import FENCE, TURN_START, Chat, check_fits, end_ids


class LengthStrategy:
    """The suffix clamped right behind holes of several lengths, all in one batch.

    One pass over all lengths ranks them by the mean log-probability of their drafts; the best two
    are denoised to the end, and the better of these is the fill.
    """

    name = "lengths"
    fills_together = False
    _LENGTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    _SUFFIX_ROOM = 8  # at least so many tokens of suffix stay in the canvas

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self._chat = Chat(tokenizer)
        self._has_turns = tokenizer.token_id(TURN_START) is not None
        self._tail_ids = end_ids(tokenizer)[:1] or (0,)
        self.end_token_ids: tuple[int, ...] = ()
        self._banned = not_text(tokenizer, config, self.end_token_ids, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        if self._has_turns:
            opening = f"{FENCE}{request.language_id}\n{request.prefix}"
            prompt_ids = self._chat.prompt("Write the file.", opening)
            closing = self._tokenizer.encode(f"{request.suffix}\n{FENCE}")
        else:
            bos = self._tokenizer.token_id("<bos>")
            prompt_ids = [] if bos is None else [bos]
            prompt_ids += self._tokenizer.encode(request.prefix)
            closing = self._tokenizer.encode(request.suffix)
        prompt_ids, healed = heal(self._tokenizer, prompt_ids)
        length = self._config.canvas_length
        check_fits(len(prompt_ids), length, self._config)
        most = min(request.max_tokens, max(1, length - self._SUFFIX_ROOM))
        holes = [size for size in self._LENGTHS if size <= most] or [most]
        if request.num_tokens is not None:
            holes = [min(request.num_tokens, most)]
        clamped = closing[:length] + list(self._tail_ids) * length
        rows = [[0] * size + clamped[: length - size] for size in holes]
        hole_mask = torch.arange(length, device=self._device)[None] < torch.tensor(
            holes, device=self._device
        ).unsqueeze(1)
        vocab_size = self._config.vocab_size
        canvas = Canvas(
            torch.tensor(rows, device=self._device),
            hole_mask,
            banned=self._banned,
            first_allowed=continuing(self._tokenizer, healed, vocab_size, self._device),
        )
        return InfillPlan(prompt_ids or list(self._tail_ids), canvas, healed)

    def plan_together(self, request: JointRequest) -> JointPlan:
        raise one_by_one(self.name)

    def cut(self, text: str, request: InfillRequest) -> str:
        return cut_to_kind(text, request.kind)
