"""How a hole is laid out for a model that has not been trained to fill holes: prompt and canvas.

Knows text and token ids, no tensors: the engine on this machine and the one on a server share it.
Our own checkpoints have a layout of their own, in `canvas.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .edges import heal
from .tokenizer import Tokenizer
from .turns import FENCE, TURN_START, Chat, check_fits, end_ids
from .types import InfillRequest

_INSTRUCTION = (
    "Write the code that belongs at the cursor. Reply with one code block that continues exactly "
    "where the code before the cursor stops and ends exactly where the code after it starts. "
    "Repeat neither of them."
)


# Lengths in tokens at which a hole is tried.
_LENGTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_SUFFIX_ROOM = 8  # at least so many tokens of suffix stay in the canvas


def describe_hole(request: InfillRequest) -> tuple[str, str]:
    """A user turn that asks for the hole, and how the reply begins.

    The suffix is named before the prefix, so that typing leaves most of the cache valid. The reply
    begins with the line the cursor is on.
    """
    language = request.language_id
    line_start = request.prefix.rfind("\n") + 1
    user = (
        f"{_INSTRUCTION}\n\nThe code after the cursor:\n"
        f"{FENCE}{language}\n{request.suffix}\n{FENCE}\n\nThe code before the cursor:\n"
        f"{FENCE}{language}\n{request.prefix}\n{FENCE}"
    )
    return user, f"{FENCE}{language}\n{request.prefix[line_start:]}"


@dataclass(frozen=True, slots=True)
class LengthLayout:
    """The suffix right behind holes of several lengths, a canvas each.

    Attributes:
        prompt_ids: for the encoder.
        healed: bytes of the prefix that the first token repeats; not part of the fill.
        sizes: lengths of holes, ascending, at least one.
        clamped: what stands behind a hole, as long as the canvas or longer.
        canvas_length: C.
    """

    prompt_ids: list[int]
    healed: bytes
    sizes: tuple[int, ...]
    clamped: list[int]
    canvas_length: int

    def behind(self, size: int) -> list[int]:
        """The clamped tokens of the canvas with a hole of `size` slots, which come first in it."""
        return self.clamped[: self.canvas_length - size]


def lay_out_lengths(
    tokenizer: Tokenizer,
    request: InfillRequest,
    *,
    canvas_length: int,
    max_position_embeddings: int,
    is_healed: bool = True,
) -> LengthLayout:
    """Lay out a request for every length that suits it.

    Args:
        canvas_length: C, slots of a canvas.
        max_position_embeddings: what prompt and canvas may have together.
        is_healed: whether the token that the cursor cut is taken back.
    Raises:
        ContextTooLong: prompt and canvas exceed the model.
    """
    tail_ids = end_ids(tokenizer)[:1] or (0,)
    if tokenizer.token_id(TURN_START) is not None:
        opening = f"{FENCE}{request.language_id}\n{request.prefix}"
        prompt_ids = Chat(tokenizer).prompt("Write the file.", opening)
        closing = tokenizer.encode(f"{request.suffix}\n{FENCE}")
    else:
        bos = tokenizer.token_id("<bos>")
        prompt_ids = [] if bos is None else [bos]
        prompt_ids += tokenizer.encode(request.prefix)
        closing = tokenizer.encode(request.suffix)
    healed = b""
    if is_healed:
        prompt_ids, healed = heal(tokenizer, prompt_ids)
    check_fits(len(prompt_ids), canvas_length, max_position_embeddings)
    most = min(request.max_tokens, max(1, canvas_length - _SUFFIX_ROOM))
    sizes = tuple(size for size in _LENGTHS if size <= most) or (most,)
    if request.num_tokens is not None:
        sizes = (min(request.num_tokens, most),)
    clamped = closing[:canvas_length] + list(tail_ids) * canvas_length
    return LengthLayout(prompt_ids or list(tail_ids), healed, sizes, clamped, canvas_length)
