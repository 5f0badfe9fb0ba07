"""The canvas: hole slots to be filled among clamped tokens that are given.

Also the layout that our own small models are trained on, so that training and inference build it
from one place. Knows token ids, not text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import special_tokens


@dataclass(frozen=True, slots=True)
class Canvas:
    """Hole slots among clamped tokens.

    A clamped position is re-imposed before every pass and its logits are restricted to its token:
    it costs no entropy, conditions the rest, and cannot change.

    Attributes:
        token_ids: (B, C) int64; meaningful at clamped positions only.
        hole_mask: (B, C) bool, True at hole slots; at least one in every row.
        banned: (V,) bool, tokens that no hole slot may take; None bans nothing.
        first_allowed: (V,) bool, the tokens that the first slot of a hole may take, `banned` or
            not; at least one. None treats the first slot like the others.
        starts: of a canvas with several holes, (B, C) int64, h + 1 at the first slot of hole h and
            else 0; `first_allowed` is then (H, V), a row a hole. None: one hole a row.
    """

    token_ids: Tensor
    hole_mask: Tensor
    banned: Tensor | None = None
    first_allowed: Tensor | None = None
    starts: Tensor | None = None
    _has_clamped: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_has_clamped", not bool(self.hole_mask.all()))
        assert self.token_ids.shape == self.hole_mask.shape, "token_ids and hole_mask differ"
        assert bool(self.hole_mask.any(dim=-1).all()), "a canvas row has no hole"

    @classmethod
    def open(cls, batch_size: int, length: int, device: torch.device) -> Canvas:
        """A canvas that is all hole."""
        token_ids = torch.zeros((batch_size, length), dtype=torch.int64, device=device)
        return cls(token_ids, torch.ones_like(token_ids, dtype=torch.bool))

    def impose(self, token_ids: Tensor) -> Tensor:
        """Put the clamped tokens back: (B, C) int64 to (B, C) int64."""
        return torch.where(self.hole_mask, token_ids, self.token_ids)

    def restrict(self, logits: Tensor) -> Tensor:
        """Rule out what must not be: all but the clamped token, banned tokens, a wrong start.

        Args:
            logits: (B, C, V) float32. Not modified.
        Returns:
            (B, C, V) float32 with -inf where a token is ruled out.
        """
        if self._has_clamped:
            logits = clamp_logits(logits, self.token_ids, self.hole_mask)
        is_free = self.hole_mask
        if self.first_allowed is not None:
            is_first = self.hole_mask & (self.hole_mask.cumsum(dim=-1) == 1)
            wrong = ~self.first_allowed
            if self.starts is not None:
                is_first = self.starts > 0
                wrong = wrong[(self.starts - 1).clamp_min(0)]  # (B, C, V)
            is_free = self.hole_mask & ~is_first
            logits = torch.where(is_first[..., None] & wrong, -math.inf, logits)
        if self.banned is not None:
            logits = torch.where(is_free[..., None] & self.banned, -math.inf, logits)
        return logits

    def select(self, rows: Tensor) -> Canvas:
        """The canvas of some rows: (N,) int64 row indices."""
        return dataclasses.replace(
            self,
            token_ids=self.token_ids[rows],
            hole_mask=self.hole_mask[rows],
            starts=None if self.starts is None else self.starts[rows],
        )

    def hole_slots(self) -> Tensor:
        """Where the holes are: (B, M) int64, ascending, M the slots of the largest row.

        Rows with fewer slots are filled up with clamped positions.
        """
        num_slots = int(self.hole_mask.sum(dim=-1).max())
        first = torch.argsort(~self.hole_mask, dim=-1, stable=True)[:, :num_slots]
        return first.sort(dim=-1).values

    def part(self, slots: Tensor) -> Canvas:
        """The canvas at some positions only: (B, M) int64."""
        return dataclasses.replace(
            self,
            token_ids=self.token_ids.gather(1, slots),
            hole_mask=self.hole_mask.gather(1, slots),
            starts=None if self.starts is None else self.starts.gather(1, slots),
        )


def clamp_logits(logits: Tensor, token_ids: Tensor, hole_mask: Tensor) -> Tensor:
    """Make every clamped position certain of its token: logit 0 there, -inf elsewhere.

    Args:
        logits: (B, C, V) float32. Not modified.
        token_ids: (B, C) int64, read at clamped positions.
        hole_mask: (B, C) bool, False at clamped positions.
    Returns:
        (B, C, V) float32.
    """
    certain = torch.full_like(logits, -math.inf).scatter_(-1, token_ids[..., None], 0.0)
    return torch.where(hole_mask[..., None], logits, certain)


PAD_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.PAD)
BOS_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.BOS)
EOM_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.EOM)
MID_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.MID)
EXACT_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.EXACT)
PRE_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.PRE)
SUF_ID = special_tokens.SPECIAL_TOKENS.index(special_tokens.SUF)

# A hole's slots begin here: slot 0 of the canvas is the marker.
HOLE_START = 1


def marked_prompt(
    language_tag_id: int | None, suffix_ids: Sequence[int], prefix_ids: Sequence[int]
) -> list[int]:
    """What the encoder reads: [bos] [language] ([suf] suffix) [pre] prefix.

    The suffix comes first: typing then changes only the end, and the cache keeps the rest.

    Args:
        language_tag_id: id of the language's tag, or None for a language without one.
        suffix_ids: the start of the text after the hole; empty for none.
        prefix_ids: the end of the text before the hole.
    """
    prompt = [BOS_ID]
    if language_tag_id is not None:
        prompt.append(language_tag_id)
    if suffix_ids:
        prompt += [SUF_ID, *suffix_ids]
    return [*prompt, PRE_ID, *prefix_ids]


def marked_canvas(
    hole_length: int, suffix_ids: Sequence[int], canvas_length: int, marker: int = MID_ID
) -> tuple[list[int], list[bool]]:
    """The canvas: marker, hole slots, [suf], head of the suffix, padding; all but the hole clamped.

    With marker `MID_ID` the hole is longer than its text, which ends in [eom] and [pad]s; with
    `EXACT_ID` it is exactly as long.

    Args:
        hole_length: slots, >= 1.
        suffix_ids: text after the hole; cut to the room that is left.
        canvas_length: C, >= hole_length + 2.
        marker: `MID_ID` or `EXACT_ID`.
    Returns:
        token ids, length C, with `PAD_ID` at the hole slots; and which positions are hole slots.
    """
    token_ids, holes = marked_canvas_of_several([hole_length], [suffix_ids], canvas_length, marker)
    return token_ids, [hole >= 0 for hole in holes]


def marked_canvas_of_several(
    hole_lengths: Sequence[int],
    following_ids: Sequence[Sequence[int]],
    canvas_length: int,
    marker: int = MID_ID,
) -> tuple[list[int], list[int]]:
    """Several holes on one canvas, each as `marked_canvas` has one.

    Args:
        hole_lengths: slots of each hole, >= 1.
        following_ids: text after each hole, whole up to the next; the last is cut to the room left.
        canvas_length: C, with room for all but the last text.
        marker: of all holes.
    Returns:
        token ids, length C, with `PAD_ID` at the hole slots; and the number of the hole that each
        position is a slot of, from 0, -1 for none.
    """
    token_ids: list[int] = []
    holes: list[int] = []
    for number, (length, following) in enumerate(zip(hole_lengths, following_ids, strict=True)):
        token_ids += [marker, *([PAD_ID] * length), SUF_ID, *following]
        holes += [-1, *([number] * length), *([-1] * (1 + len(following)))]
    room = canvas_length - len(token_ids)
    assert room + len(following_ids[-1]) >= 0, (hole_lengths, canvas_length)
    return (
        token_ids[:canvas_length] + [PAD_ID] * room,
        holes[:canvas_length] + [-1] * room,
    )


def marked_target(middle_ids: Sequence[int], hole_length: int) -> list[int]:
    """What a `MID_ID` hole should hold: the middle, [eom], and [pad]s to its length."""
    assert len(middle_ids) < hole_length, (len(middle_ids), hole_length)
    return [*middle_ids, EOM_ID, *([PAD_ID] * (hole_length - len(middle_ids) - 1))]
