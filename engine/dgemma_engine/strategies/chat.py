"""Instruction-tuned models: the hole is described, the reply is a code block."""

from __future__ import annotations

import dataclasses

import torch

from ..canvas import Canvas
from ..config import ModelConfig
from ..errors import RequestError
from ..tokenizer import Tokenizer
from ..types import ChatRequest, InfillRequest
from .plan import InfillPlan, continuing, cut_to_kind, heal, not_text
from .turns import FENCE, Chat, check_fits, end_ids

_INSTRUCTION = (
    "Write the code that belongs at the cursor. Reply with one code block that continues exactly "
    "where the code before the cursor stops and ends exactly where the code after it starts. "
    "Repeat neither of them."
)


class ChatStrategy:
    """The hole is described in a user turn; the reply is a code block that the prompt has opened.

    The suffix is named before the prefix, so that typing leaves most of the cache valid. The reply
    begins with the line the cursor is on, and the canvas goes on from there.
    """

    name = "chat"

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
        language = request.language_id
        line_start = request.prefix.rfind("\n") + 1
        user = (
            f"{_INSTRUCTION}\n\nThe code after the cursor:\n"
            f"{FENCE}{language}\n{request.suffix}\n{FENCE}\n\nThe code before the cursor:\n"
            f"{FENCE}{language}\n{request.prefix}\n{FENCE}"
        )
        reply_start = f"{FENCE}{language}\n{request.prefix[line_start:]}"
        prompt_ids, healed = heal(self._tokenizer, self._chat.prompt(user, reply_start))
        check_fits(len(prompt_ids), self._config.canvas_length, self._config)
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
        check_fits(len(prompt_ids), self._config.canvas_length, self._config)
        open_canvas = Canvas.open(1, self._config.canvas_length, self._device)
        canvas = dataclasses.replace(open_canvas, banned=self._banned)
        return InfillPlan(prompt_ids, canvas, may_continue=True, is_reply=True)

    def cut(self, text: str, request: InfillRequest) -> str:
        text = cut_to_kind(text.split(f"\n{FENCE}", maxsplit=1)[0], request.kind)
        return _without_overlap(text, request.suffix)


def _without_overlap(text: str, suffix: str) -> str:
    """Drop the end of `text` where it already says how `suffix` begins."""
    for length in range(min(len(text), len(suffix)), 0, -1):
        if text.endswith(suffix[:length]) and suffix[:length].strip():
            return text[:-length]
    return text
