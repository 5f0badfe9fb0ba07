"""How a request becomes a prompt and a canvas: one strategy per kind of checkpoint.

    MarkerStrategy   our own models: clamped markers and suffix, the text ends in an end-of-middle
    ChatStrategy     instruction-tuned models: the hole is described, the reply is a code block
    LengthStrategy   any model: the suffix clamped behind holes of several lengths, the best kept

Each knows text and token ids; running the canvas is `infill.py`'s part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .canvas import EOM_ID, PAD_ID, Canvas, marked_canvas, marked_prompt
from .config import ModelConfig
from .errors import CheckpointError, ContextTooLong
from .special_tokens import LANGUAGE_TAGS
from .tokenizer import Tokenizer
from .types import HoleKind, InfillRequest


@dataclass(frozen=True, slots=True)
class InfillPlan:
    """What to run for a request.

    Attributes:
        prompt_ids: for the encoder.
        canvas: (N, C), one row, or one row per candidate length.
        healed: bytes of the prefix that the first token repeats; not part of the fill.
        may_continue: further open canvases may follow if this one does not end.
    """

    prompt_ids: list[int]
    canvas: Canvas
    healed: bytes = b""
    may_continue: bool = False


class InfillStrategy(Protocol):
    """Turns a request into a plan, and the tokens that came out into text."""

    name: str
    end_token_ids: tuple[int, ...]  # a hole's text ends before the first of these

    def plan(self, request: InfillRequest) -> InfillPlan:
        """Build the prompt and the canvas.

        Raises:
            ContextTooLong: the context cannot be cut to what the model reads.
        """
        ...

    def cut(self, text: str, request: InfillRequest) -> str:
        """Cut decoded text to the shape of the hole."""
        ...


def choose_strategy(
    name: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
    infill_config: Mapping[str, Any],
    device: torch.device,
) -> InfillStrategy:
    """The strategy that suits a checkpoint, or the one asked for by name.

    Args:
        name: "auto", "markers", "chat" or "lengths". "auto" takes markers if the tokenizer has an
            end-of-middle token, chat if it has turn markers, else lengths.
        tokenizer: of the checkpoint.
        config: of the checkpoint.
        infill_config: the checkpoint's `infill_config.json`, or empty.
        device: where canvases are built.
    Raises:
        CheckpointError: the checkpoint lacks what the named strategy needs, or the name is unknown.
    """
    has_markers = tokenizer.token_id("<eom>") == EOM_ID
    has_turns = tokenizer.token_id(TURN_START) is not None
    if name == "auto":
        name = "markers" if has_markers else "chat" if has_turns else "lengths"
    if name == "markers" and has_markers:
        layout = MarkerLayout.from_json(infill_config)
        return MarkerStrategy(tokenizer, config, layout, device)
    if name == "chat" and has_turns:
        return ChatStrategy(tokenizer, config, device)
    if name == "lengths":
        return LengthStrategy(tokenizer, config, device)
    raise CheckpointError(
        f"strategy {name!r} does not suit this checkpoint: 'markers' needs a tokenizer with <eom>, "
        f"'chat' one with {TURN_START}, 'lengths' runs on any"
    )


def token_mask(token_ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool, True at the given ids."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[torch.tensor(list(token_ids), dtype=torch.int64, device=device)] = True
    return mask


def _not_text(
    tokenizer: Tokenizer, config: ModelConfig, end_token_ids: tuple[int, ...], device: torch.device
) -> Tensor:
    """(V,) bool: special tokens but the ends, and embedding rows that no token belongs to."""
    specials = [index for index in tokenizer.special_ids if index not in end_token_ids]
    unused = range(tokenizer.vocab_size, config.vocab_size)
    return token_mask([*specials, *unused], config.vocab_size, device)


def heal(tokenizer: Tokenizer, token_ids: list[int]) -> tuple[list[int], bytes]:
    """Take back the last token before the cursor, which may be the start of a longer one.

    The first token of the hole then has to begin with the bytes taken back.

    Returns:
        the remaining ids, and the bytes taken back (empty if none were).
    """
    last = tokenizer.token_bytes(token_ids[-1]) if token_ids else b""
    return (token_ids[:-1], last) if last else (token_ids, b"")


def last_tokens(tokenizer: Tokenizer, token_ids: list[int], limit: int) -> list[int]:
    """The end of a prefix, from a start that stays put while text is typed behind it.

    Dropping exactly what is too much would move every token at each keystroke and leave nothing of
    the cache. The start therefore moves by a quarter of the limit at a time, then to a line start.
    """
    if len(token_ids) <= limit:
        return token_ids
    chunk = max(1, limit // 4)
    start = -(-(len(token_ids) - limit) // chunk) * chunk
    for index in range(start, min(start + chunk, len(token_ids))):
        if tokenizer.token_bytes(token_ids[index]).startswith(b"\n"):
            return token_ids[index:]
    return token_ids[start:]


def cut_to_kind(text: str, kind: HoleKind) -> str:
    """Cut text to the shape of the hole: a line ends at a line break, a block holds whole lines."""
    if kind is HoleKind.LINE:
        return re.split(r"[\r\n]", text, maxsplit=1)[0]
    if kind is HoleKind.BLOCK:
        return text.rstrip()
    return text


# --- our own models -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MarkerLayout:
    """What a checkpoint of ours was trained on; the "layout" part of its `infill_config.json`.

    Attributes:
        canvas_lengths: C, ascending.
        hole_lengths: slots of a hole, ascending; a hole takes the smallest that suffices.
        line_tokens: slots wanted for the rest of a line.
        block_tokens: slots wanted for anything longer.
        prefix_tokens: longest prefix.
        suffix_tokens: longest suffix that the encoder reads; the canvas holds the head of it again.
    """

    canvas_lengths: tuple[int, ...] = (32, 64, 128)
    hole_lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96)
    line_tokens: int = 32
    block_tokens: int = 64
    prefix_tokens: int = 320
    suffix_tokens: int = 64

    @classmethod
    def from_json(cls, infill_config: Mapping[str, Any]) -> MarkerLayout:
        """Read the "layout" part.

        Raises:
            CheckpointError: an unknown key.
        """
        values = dict(infill_config.get("layout", {}))
        for name in ("canvas_lengths", "hole_lengths"):
            if name in values:
                values[name] = tuple(sorted(values[name]))
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"infill_config.json: layout: {error}") from error

    def hole_length(self, kind: HoleKind, max_tokens: int) -> int:
        """Slots for a hole: room for the kind's usual text, or `max_tokens`, and an end mark."""
        usual = self.line_tokens if kind is HoleKind.LINE else self.block_tokens
        wanted = min(max_tokens + 1, usual)
        return next((size for size in self.hole_lengths if size >= wanted), self.hole_lengths[-1])

    def canvas_length(self, hole_length: int) -> int:
        """The smallest canvas that holds the hole and as much suffix again, else the largest."""
        wanted = 2 * hole_length
        return next(
            (size for size in self.canvas_lengths if size >= wanted), self.canvas_lengths[-1]
        )


class MarkerStrategy:
    """In-painting with markers: [mid] hole [suf] suffix, all but the hole clamped.

    The hole is longer than its text; the model writes the text, an end-of-middle, and padding, and
    so decides the length itself.
    """

    name = "markers"
    end_token_ids: tuple[int, ...] = (EOM_ID, PAD_ID)

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        layout: MarkerLayout,
        device: torch.device,
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._device = device
        self._vocab_size = config.vocab_size
        self._banned = _not_text(tokenizer, config, self.end_token_ids, device)
        line_breaks = token_mask(tokenizer.ids_containing(b"\n"), config.vocab_size, device)
        self._banned_in_line = self._banned | line_breaks

    def plan(self, request: InfillRequest) -> InfillPlan:
        tokenizer, layout = self._tokenizer, self._layout
        prefix_ids = last_tokens(tokenizer, tokenizer.encode(request.prefix), layout.prefix_tokens)
        prefix_ids, healed = heal(tokenizer, prefix_ids)
        suffix_ids = tokenizer.encode(request.suffix)[: layout.suffix_tokens]
        tag = LANGUAGE_TAGS.get(request.language_id)
        tag_id = tokenizer.token_id(tag) if tag is not None else None
        hole_length = layout.hole_length(request.kind, request.max_tokens)
        token_ids, hole = marked_canvas(hole_length, suffix_ids, layout.canvas_length(hole_length))
        first_allowed = None
        if healed:
            allowed = tokenizer.ids_starting_with(healed)
            first_allowed = token_mask(allowed, self._vocab_size, self._device)
        is_line = request.kind is HoleKind.LINE
        canvas = Canvas(
            torch.tensor([token_ids], device=self._device),
            torch.tensor([hole], device=self._device),
            banned=self._banned_in_line if is_line else self._banned,
            first_allowed=first_allowed,
        )
        return InfillPlan(marked_prompt(tag_id, suffix_ids, prefix_ids), canvas, healed)

    def cut(self, text: str, request: InfillRequest) -> str:
        return cut_to_kind(text, request.kind)


# --- instruction-tuned models -------------------------------------------------------------------

TURN_START, TURN_END = "<|turn>", "<turn|>"
_CHANNEL_START, _CHANNEL_END = "<|channel>", "<channel|>"
_FENCE = "```"

_INSTRUCTION = (
    "Write the code that belongs at the cursor. Reply with one code block that continues exactly "
    "where the code before the cursor stops and ends exactly where the code after it starts. "
    "Repeat neither of them."
)


class _Chat:
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
            *self._special(TURN_START),
            *self._tokenizer.encode(f"user\n{user.strip()}"),
            *self._special(TURN_END),
            *self._tokenizer.encode("\n"),
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


def _end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    found = (tokenizer.token_id(name) for name in (TURN_END, "<eos>", "<pad>", "<|tool_response>"))
    return tuple(token_id for token_id in found if token_id is not None)


def _fit(num_tokens: int, canvas_length: int, config: ModelConfig) -> None:
    if num_tokens + canvas_length > config.max_position_embeddings:
        raise ContextTooLong(
            f"{num_tokens} tokens of context and a canvas of {canvas_length} exceed the model's "
            f"{config.max_position_embeddings}; shorten the prefix or the suffix"
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
        self._chat = _Chat(tokenizer)
        self.end_token_ids = _end_ids(tokenizer)
        self._banned = _not_text(tokenizer, config, self.end_token_ids, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        language = request.language_id
        line_start = request.prefix.rfind("\n") + 1
        user = (
            f"{_INSTRUCTION}\n\nThe code after the cursor:\n"
            f"{_FENCE}{language}\n{request.suffix}\n{_FENCE}\n\nThe code before the cursor:\n"
            f"{_FENCE}{language}\n{request.prefix}\n{_FENCE}"
        )
        reply_start = f"{_FENCE}{language}\n{request.prefix[line_start:]}"
        prompt_ids, healed = heal(self._tokenizer, self._chat.prompt(user, reply_start))
        _fit(len(prompt_ids), self._config.canvas_length, self._config)
        canvas = Canvas.open(1, self._config.canvas_length, self._device)
        first_allowed = None
        if healed:
            allowed = self._tokenizer.ids_starting_with(healed)
            first_allowed = token_mask(allowed, self._config.vocab_size, self._device)
        canvas = Canvas(canvas.token_ids, canvas.hole_mask, self._banned, first_allowed)
        return InfillPlan(prompt_ids, canvas, healed, may_continue=True)

    def cut(self, text: str, request: InfillRequest) -> str:
        text = cut_to_kind(text.split(f"\n{_FENCE}", maxsplit=1)[0], request.kind)
        return _without_overlap(text, request.suffix)


def _without_overlap(text: str, suffix: str) -> str:
    """Drop the end of `text` where it already says how `suffix` begins."""
    for length in range(min(len(text), len(suffix)), 0, -1):
        if text.endswith(suffix[:length]) and suffix[:length].strip():
            return text[:-length]
    return text


class LengthStrategy:
    """The suffix clamped right behind holes of several lengths, all in one batch.

    One pass over all lengths ranks them by the mean log-probability of their drafts; the best two
    are denoised to the end, and the better of these is the fill.
    """

    name = "lengths"
    _LENGTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    _SUFFIX_ROOM = 8  # at least so many tokens of suffix stay in the canvas

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._device = device
        self._chat = _Chat(tokenizer)
        self._has_turns = tokenizer.token_id(TURN_START) is not None
        self._tail_ids = _end_ids(tokenizer)[:1] or (0,)
        self.end_token_ids: tuple[int, ...] = ()
        self._banned = _not_text(tokenizer, config, self.end_token_ids, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        if self._has_turns:
            opening = f"{_FENCE}{request.language_id}\n{request.prefix}"
            prompt_ids = self._chat.prompt("Write the file.", opening)
            closing = self._tokenizer.encode(f"{request.suffix}\n{_FENCE}")
        else:
            bos = self._tokenizer.token_id("<bos>")
            prompt_ids = [] if bos is None else [bos]
            prompt_ids += self._tokenizer.encode(request.prefix)
            closing = self._tokenizer.encode(request.suffix)
        prompt_ids, healed = heal(self._tokenizer, prompt_ids)
        length = self._config.canvas_length
        _fit(len(prompt_ids), length, self._config)
        most = min(request.max_tokens, max(1, length - self._SUFFIX_ROOM))
        holes = [size for size in self._LENGTHS if size <= most] or [most]
        clamped = closing[:length] + list(self._tail_ids) * length
        rows = [[0] * size + clamped[: length - size] for size in holes]
        hole_mask = torch.arange(length, device=self._device)[None] < torch.tensor(
            holes, device=self._device
        ).unsqueeze(1)
        first_allowed = None
        if healed:
            allowed = self._tokenizer.ids_starting_with(healed)
            first_allowed = token_mask(allowed, self._config.vocab_size, self._device)
        canvas = Canvas(
            torch.tensor(rows, device=self._device), hole_mask, self._banned, first_allowed
        )
        return InfillPlan(prompt_ids or list(self._tail_ids), canvas, healed)

    def cut(self, text: str, request: InfillRequest) -> str:
        return cut_to_kind(text, request.kind)
