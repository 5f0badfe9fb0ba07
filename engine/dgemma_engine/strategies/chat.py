"""Instruction-tuned models: the hole is described, the reply is a code block."""

from __future__ import annotations

import dataclasses

import torch

from ..canvas import Canvas
from ..config import ModelConfig
from ..edges import cut_to_kind, heal, without_overlap
from ..errors import RequestError
from ..layouts import describe_hole
from ..tokenizer import Tokenizer
from ..turns import FENCE, Chat, check_fits, end_ids
from ..types import ChatRequest, InfillRequest, JointRequest
from .plan import InfillPlan, JointPlan, continuing, not_text, one_by_one


class ChatStrategy:
    """The hole is described in a user turn; the reply is a code block that the prompt has opened.

    The suffix is named before the prefix, so that typing leaves most of the cache valid. The reply
    begins with the line the cursor is on, and the canvas goes on from there.
    """

    name = "chat"
    fills_together = False

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self._chat = Chat(tokenizer)
        self.end_token_ids = end_ids(tokenizer)
        self._banned = not_text(tokenizer, config, self.end_token_ids, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        if request.num_tokens is not None:
            raise RequestError("strategy 'chat' cannot be told a length; leave num_tokens out")
        user, reply_start = describe_hole(request)
        prompt_ids, healed = heal(self._tokenizer, self._chat.prompt(user, reply_start))
        most = self._config.max_position_embeddings
        check_fits(len(prompt_ids), self._config.canvas_length, most)
        vocab_size, length = self._config.vocab_size, self._config.canvas_length
        canvas = dataclasses.replace(
            Canvas.open(1, length, self._device),
            banned=self._banned,
            first_allowed=continuing(self._tokenizer, healed, vocab_size, self._device),
        )
        return InfillPlan(prompt_ids, canvas, healed, may_continue=True)

    def plan_reply(self, request: ChatRequest) -> InfillPlan:
        """What to run for the next turn of a conversation.

        Raises:
            ContextTooLong: the conversation exceeds what the model can read.
        """
        prompt_ids = self._chat.conversation(request.turns)
        most = self._config.max_position_embeddings
        check_fits(len(prompt_ids), self._config.canvas_length, most)
        open_canvas = Canvas.open(1, self._config.canvas_length, self._device)
        canvas = dataclasses.replace(open_canvas, banned=self._banned)
        return InfillPlan(prompt_ids, canvas, may_continue=True, is_reply=True)

    def plan_together(self, request: JointRequest) -> JointPlan:
        raise one_by_one(self.name)

    def cut(self, text: str, request: InfillRequest) -> str:
        text = cut_to_kind(text.split(f"\n{FENCE}", maxsplit=1)[0], request.kind)
        return without_overlap(text, request.suffix)
