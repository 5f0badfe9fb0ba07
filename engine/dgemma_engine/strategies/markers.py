"""Our own models: markers and suffix are clamped, the text ends in an end-of-middle.

The layout is the one of `canvas.py`, which training builds its rows with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..canvas import (
    EOM_ID,
    EXACT_ID,
    MID_ID,
    PAD_ID,
    Canvas,
    marked_canvas,
    marked_canvas_of_several,
    marked_prompt,
)
from ..chains import CausalRules
from ..config import ModelConfig
from ..edges import cut_to_kind, heal, last_tokens
from ..errors import CheckpointError, HolesTooFarApart
from ..judge import JudgePrompt
from ..special_tokens import LANGUAGE_TAGS
from ..tokenizer import Tokenizer
from ..types import Decoder, HoleKind, InfillRequest, JointRequest
from .plan import InfillPlan, JointPlan, continuing, not_text, token_mask

# A canvas of several holes shows at least so much of what follows the last, in tokens.
_LEAST_SUFFIX = 8


@dataclass(frozen=True, slots=True)
class MarkerLayout:
    """What a checkpoint of ours was trained on; the "layout" part of its `infill_config.json`.

    Attributes:
        canvas_lengths: C, ascending.
        hole_lengths: slots of a hole, ascending; a hole takes the smallest that suffices.
        line_tokens: slots wanted for the rest of a line, which is shorter, whoever writes it.
        block_tokens: slots wanted for anything longer.
        prefix_tokens: longest prefix.
        suffix_tokens: longest suffix that the encoder reads; the canvas holds the head of it again.
        drafts: how many are denoised at once where the canvas decides the length, from different
            noise; the one that fits best before the suffix is the fill.
        line_candidates: lengths in tokens at which a line is drafted, all at once, in the place of
            these; the best is the fill. None leaves the length to the canvas.
        line_drafts: how many of them, the likeliest by a first look; 0 drafts all.
        probe_passes: after so many passes only the best drafts go on; 0 denoises all to the end.
        refined: how many go on.
        left_to_right: kinds of holes that `Decoder.AUTO` leaves to the encoder, because it fills
            them better.
    """

    canvas_lengths: tuple[int, ...] = (32, 64, 128)
    hole_lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96)
    line_tokens: int = 32
    block_tokens: int = 64
    prefix_tokens: int = 320
    suffix_tokens: int = 64
    drafts: int = 1
    line_candidates: tuple[int, ...] = ()
    line_drafts: int = 0
    probe_passes: int = 0
    refined: int = 2
    left_to_right: tuple[HoleKind, ...] = ()

    @classmethod
    def from_json(cls, infill_config: Mapping[str, Any]) -> MarkerLayout:
        """Read the "layout" part.

        Raises:
            CheckpointError: an unknown key.
        """
        values = dict(infill_config.get("layout", {}))
        for name in ("canvas_lengths", "hole_lengths", "line_candidates"):
            if name in values:
                values[name] = tuple(sorted(values[name]))
        try:
            values["left_to_right"] = tuple(map(HoleKind, values.get("left_to_right", ())))
            return cls(**values)
        except (TypeError, ValueError) as error:
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
    fills_together = True
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
        self._banned = not_text(tokenizer, config, self.end_token_ids, device)
        self._line_breaks = token_mask(tokenizer.ids_containing(b"\n"), config.vocab_size, device)
        ends = token_mask(self.end_token_ids, config.vocab_size, device)
        self._specials = self._banned | ends
        self._is_end = token_mask([EOM_ID], config.vocab_size, device)

    def plan(self, request: InfillRequest) -> InfillPlan:
        tokenizer, layout = self._tokenizer, self._layout
        all_ids = tokenizer.encode(request.prefix)
        before_ids, healed = heal(tokenizer, all_ids)
        prefix_ids = last_tokens(tokenizer, before_ids, layout.prefix_tokens)
        after_ids = tokenizer.encode(request.suffix)
        suffix_ids = after_ids[: layout.suffix_tokens]
        tag_id = self._tag_id(request.language_id)
        is_line = request.kind is HoleKind.LINE
        first_allowed = continuing(tokenizer, healed, self._vocab_size, self._device)
        line_breaks = self._line_breaks if is_line else torch.zeros_like(self._line_breaks)

        def build(lengths: Sequence[int], marker: int) -> Canvas:
            """A row for each hole length, all in the smallest canvas that holds them."""
            canvas_length = max(map(layout.canvas_length, lengths))
            rows = [marked_canvas(size, suffix_ids, canvas_length, marker) for size in lengths]
            banned = self._banned if marker == MID_ID else self._specials
            return Canvas(
                torch.tensor([token_ids for token_ids, _ in rows], device=self._device),
                torch.tensor([hole for _, hole in rows], device=self._device),
                banned=banned | line_breaks,
                first_allowed=first_allowed,
            )

        def build_exact(lengths: Sequence[int]) -> Canvas:
            return build(lengths, EXACT_ID)

        longest = layout.hole_lengths[-1]
        candidates: tuple[int, ...] = ()
        most_tokens = request.max_tokens
        if request.num_tokens is not None:
            canvas = build_exact([min(request.num_tokens, longest)])
        elif request.draft is not None:
            # Room for the draft and an end mark; one that is longer is refused later.
            num_draft = len(tokenizer.encode(healed.decode("utf-8", "ignore") + request.draft))
            size = next((size for size in layout.hole_lengths if size > num_draft), longest)
            canvas = build([size], MID_ID)
        else:
            size = layout.hole_length(request.kind, request.max_tokens)
            if is_line:
                most_tokens = min(size - 1, most_tokens)
                candidates = tuple(
                    length for length in layout.line_candidates if length <= most_tokens
                )
            canvas = build([size] * (1 if candidates else layout.drafts), MID_ID)
        # Who did not ask is not to be shown a guess at a place that looks whole.
        is_wanted = not request.least_confidence and request.num_tokens is None
        is_auto_left_to_right = request.kind in layout.left_to_right
        return InfillPlan(
            marked_prompt(tag_id, suffix_ids, prefix_ids),
            canvas,
            healed,
            rules=CausalRules(
                self._specials & ~self._is_end,
                self._is_end | line_breaks,
                first_allowed,
                empty=tuple(all_ids[len(before_ids) :]) if is_wanted else None,
            ),
            decoder=Decoder.LEFT_TO_RIGHT if is_auto_left_to_right else Decoder.DIFFUSION,
            candidates=candidates,
            num_drafts=layout.line_drafts or len(candidates),
            num_refined=layout.refined,
            probe_passes=layout.probe_passes,
            exact_canvas=build_exact,
            judge=JudgePrompt(
                marked_prompt(tag_id, [], prefix_ids),
                healed.decode("utf-8", errors="ignore"),
                request.suffix,
            ),
            most_tokens=most_tokens,
            before_ids=before_ids,
            after_ids=after_ids,
        )

    def plan_together(self, request: JointRequest) -> JointPlan:
        """Holes and all of the text between them, clamped, on the smallest canvas that has room."""
        tokenizer, layout = self._tokenizer, self._layout
        before, *between, after = request.texts
        prefix_ids = last_tokens(tokenizer, tokenizer.encode(before), layout.prefix_tokens)
        pieces, healed = [], []
        for piece in (prefix_ids, *map(tokenizer.encode, between)):
            kept, taken_back = heal(tokenizer, piece)
            pieces.append(kept)
            healed.append(taken_back)
        prefix_ids, *following = pieces
        suffix_ids = tokenizer.encode(after)[: layout.suffix_tokens]
        lengths = self._joint_lengths(request, healed, sum(map(len, following)))
        num_clamped = 2 * len(lengths) + sum(map(len, following))
        wanted = sum(lengths) + num_clamped + min(_LEAST_SUFFIX, len(suffix_ids))
        canvas_length = next(size for size in layout.canvas_lengths if size >= wanted)
        token_ids, holes = marked_canvas_of_several(
            lengths, [*following, suffix_ids], canvas_length
        )
        number = torch.tensor(holes, device=self._device)  # (C,)
        is_start = (number >= 0) & (number != number.roll(1))
        everything = torch.ones(self._vocab_size, dtype=torch.bool, device=self._device)
        are_lines = all(kind is HoleKind.LINE for kind in request.kinds)
        banned = self._banned | self._line_breaks if are_lines else self._banned
        starts = [
            continuing(tokenizer, taken_back, self._vocab_size, self._device)
            for taken_back in healed
        ]
        canvas = Canvas(
            torch.tensor([token_ids], device=self._device),
            (number >= 0)[None],
            banned=banned,
            first_allowed=torch.stack(
                [everything & ~banned if start is None else start for start in starts]
            ),
            starts=torch.where(is_start, number + 1, 0)[None],
        )
        tag_id = self._tag_id(request.language_id)
        return JointPlan(
            marked_prompt(tag_id, suffix_ids, prefix_ids),
            canvas,
            torch.stack([number == hole for hole in range(len(lengths))]),
            tuple(healed),
            JudgePrompt(
                marked_prompt(tag_id, [], prefix_ids),
                healed[0].decode("utf-8", errors="ignore"),
                after,
            ),
        )

    def _joint_lengths(
        self, request: JointRequest, healed: Sequence[bytes], num_between: int
    ) -> list[int]:
        """Slots of each hole: as many as it would have alone, or the most that there is room for.

        Raises:
            HolesTooFarApart: there is not even room for the least.
        """
        layout = self._layout
        drafts = request.drafts or ("",) * len(request.kinds)
        needed = [
            len(self._tokenizer.encode(taken_back.decode("utf-8", "ignore") + draft)) + 1
            for taken_back, draft in zip(healed, drafts, strict=True)
        ]
        usual = [layout.hole_length(kind, request.max_tokens) for kind in request.kinds]
        room = layout.canvas_lengths[-1] - num_between - 2 * len(needed) - _LEAST_SUFFIX
        for most in reversed(layout.hole_lengths):
            lengths = [
                next((size for size in layout.hole_lengths if size >= least), least)
                for least in map(max, needed, (min(size, most) for size in usual))
            ]
            if sum(lengths) <= room:
                return lengths
        raise HolesTooFarApart(
            f"{len(needed)} holes and {num_between} tokens between them do not fit on a canvas of "
            f"{layout.canvas_lengths[-1]}; ask for fewer at once"
        )

    def _tag_id(self, language_id: str) -> int | None:
        tag = LANGUAGE_TAGS.get(language_id)
        return self._tokenizer.token_id(tag) if tag is not None else None

    def cut(self, text: str, request: InfillRequest) -> str:
        return cut_to_kind(text, request.kind)
