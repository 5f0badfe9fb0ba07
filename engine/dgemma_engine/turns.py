"""Chat turns as token ids, for checkpoints whose tokenizer has turn markers."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ContextTooLong
from .tokenizer import Tokenizer
from .types import Role

TURN_START, TURN_END = "<|turn>", "<turn|>"
_CHANNEL_START, _CHANNEL_END = "<|channel>", "<channel|>"
FENCE = "```"


class Chat:
    """Renders turns as ids: turn markers are special tokens, everything else is plain text.

    Source: the chat template of google/diffusiongemma-26B-A4B-it, thinking off: the empty thought
    block belongs to the prompt, not to the canvas.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prompt(self, user: str, reply_start: str) -> list[int]:
        """A user turn, and the model's turn opened and begun with `reply_start`."""
        return [
            *self._special("<bos>"),
            *self._turn("user", user),
            *self._opening(reply_start),
        ]

    def conversation(self, turns: Sequence[tuple[Role, str]]) -> list[int]:
        """All turns, and the model's next one opened."""
        ids = self._special("<bos>")
        for role, text in turns:
            ids += self._turn("model" if role is Role.ASSISTANT else role.value, text)
        return ids + self._opening("")

    def _turn(self, who: str, text: str) -> list[int]:
        return [
            *self._special(TURN_START),
            *self._tokenizer.encode(f"{who}\n{text.strip()}"),
            *self._special(TURN_END),
            *self._tokenizer.encode("\n"),
        ]

    def _opening(self, reply_start: str) -> list[int]:
        return [
            *self._special(TURN_START),
            *self._tokenizer.encode("model\n"),
            *self._special(_CHANNEL_START),
            *self._tokenizer.encode("thought\n"),
            *self._special(_CHANNEL_END),
            *self._tokenizer.encode(reply_start),
        ]

    def _special(self, token: str) -> list[int]:
        token_id = self._tokenizer.token_id(token)
        return [] if token_id is None else [token_id]


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    found = (tokenizer.token_id(name) for name in (TURN_END, "<eos>", "<pad>", "<|tool_response>"))
    return tuple(token_id for token_id in found if token_id is not None)


def check_fits(num_tokens: int, canvas_length: int, most: int) -> None:
    """Raise `ContextTooLong` where a prompt and a canvas exceed what the model reads."""
    if num_tokens + canvas_length > most:
        raise ContextTooLong(
            f"{num_tokens} tokens of context and a canvas of {canvas_length} exceed the model's "
            f"{most}; shorten the prefix or the suffix"
        )
