"""One denoising pass on buffers that stay where they are: what a CUDA graph can hold.

`Buffers` is the memory of canvases of one size; `run_pass` reads it, works, and leaves in it the
draft, what the next pass begins with, and one number that says whether to stop. It asks the host
nothing and is given nothing: steps, temperatures, random numbers and lengths all lie on the device.
The loop around it is `device_loop.py`; what a pass means is told by `denoise.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_kernels import TokenRules, entropy_accept, soft_embedding, vocab_head
from dgemma_kernels.entropy_accept import SlotState

from .cache import KVCache
from .canvas import Canvas
from .config import SamplerConfig
from .model import DiffusionGemma, NewTokens
from .sampler import Randoms
from .schedule import min_accepted, temperature
from .stopping import StopNumbers

GO_ON, CONVERGED, STABLE = 0, 1, 2  # what `Buffers.verdict` may say
_NEVER = 2**30


class Size(NamedTuple):
    """The size of buffers: rows, canvas positions, slots, holes, steps; and the rows of a cache."""

    rows: int
    canvas: int
    slots: int
    holes: int
    steps: int

    @classmethod
    def holding(cls, canvas: Canvas, num_slots: int, num_steps: int, cache_rows: int) -> Size:
        """The smallest of a few sizes that these fit into."""
        rows, length = canvas.token_ids.shape
        size = next((size for size in (32, 64, 96, 128, 192, 256) if size >= length), 0)
        size = size or -(-length // 64) * 64
        slots = next((slots for slots in (16, 32, 64, 96, 128, 192) if slots >= num_slots), size)
        holes = 1
        if canvas.starts is not None and canvas.first_allowed is not None:
            holes = len(canvas.first_allowed)
        return cls(
            rows=_power_of_two(rows) if cache_rows == 1 else rows,
            canvas=size,
            slots=min(slots, size),
            holes=_power_of_two(holes),
            steps=max(64, _power_of_two(num_steps)),
        )


class PassRules(NamedTuple):
    """The numbers that are part of a pass itself; other ones make another pass of it."""

    candidates: str
    entropy_bound: float
    has_floor: bool
    stability_threshold: int | None
    confidence_threshold: float
    stable_text_passes: int | None

    @classmethod
    def of(cls, config: SamplerConfig, stop: StopNumbers) -> PassRules:
        return cls(
            config.candidates,
            config.entropy_bound,
            config.min_accept,
            stop.stability_threshold,
            stop.confidence_threshold,
            stop.stable_text_passes,
        )


class Buffers:
    """The memory of a denoising of at most so many rows, positions and slots.

    Rows beyond those that are used are copies of the first, finished from the start. Positions
    beyond the canvas are clamped, and no key of theirs is read; slots beyond the holes' are clamped
    positions, which cost no entropy and do not change.
    """

    def __init__(self, model: DiffusionGemma, size: Size) -> None:
        self.size = size
        self._model = model
        rows, length, slots, holes, steps = size
        vocab_size, device = model.config.vocab_size, model.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # Written once a fill.
        self.clamped = zeros(rows, length)
        self.slots = zeros(rows, slots)
        self.hole_mask = zeros(rows, slots, dtype=torch.bool)
        self.run_start = zeros(rows, slots)  # of the slots side by side, the first one's column
        self.rules = TokenRules(
            banned=zeros(vocab_size, dtype=torch.bool),
            first_allowed=zeros(holes, vocab_size, dtype=torch.bool),
            clamped_ids=zeros(rows * slots),
            is_first=zeros(rows * slots, dtype=torch.bool),
            holes=zeros(rows * slots),
        )
        self.is_end = zeros(vocab_size, dtype=torch.bool)
        self.canvas_length = zeros(1, dtype=torch.int32)
        self.prefix_lengths = zeros(len(model.layers), 4, dtype=torch.int32)
        self.rotaries = model.rotaries(0, length)
        self.temperatures = zeros(steps, dtype=torch.float32)
        self.floors = zeros(steps, rows)
        self.draws = zeros(steps, rows, slots, 2, dtype=torch.float32)
        self.fresh = zeros(steps, rows, slots)
        # Written by every pass.
        self.step = zeros(1)
        self.state = SlotState(
            token_ids=zeros(rows, slots),
            argmax=zeros(rows, slots),
            num_unchanged=zeros(rows, dtype=torch.int32),
            is_finished=zeros(rows, dtype=torch.bool),
        )
        self.text = zeros(rows, slots)  # the draft up to the end marks
        self.text_unchanged = zeros(rows, dtype=torch.int32)
        self.masses = zeros(rows * slots, vocab_size, dtype=model.dtype)
        self.mass_scale = zeros(rows * slots, dtype=torch.float32)
        self.canvas = zeros(rows, length)
        self.argmax = zeros(rows, length)
        self.confidence = zeros(rows, length, dtype=torch.float32)
        self.entropy = zeros(rows, length, dtype=torch.float32)
        self.accepted = zeros(rows, length, dtype=torch.bool)
        self.verdict = zeros(1, dtype=torch.int32)
        self._new: dict[int, NewTokens] = {}

    @property
    def num_bytes(self) -> int:
        """Of the tensors that depend on the vocabulary, which is nearly all."""
        rules = (self.rules.banned, self.rules.first_allowed, self.is_end)
        return self.masses.nbytes + sum(part.nbytes for part in rules if part is not None)

    def new_tokens(self, num_new: int) -> NewTokens:
        """The memory of so many new tokens of the prefix, in the first pass."""
        if num_new not in self._new:
            device, layers = self.slots.device, len(self._model.layers)
            self._new[num_new] = NewTokens(
                torch.zeros((1, num_new), dtype=torch.int64, device=device),
                self._model.rotaries(0, num_new + self.size.rows * self.size.canvas),
                torch.zeros((layers, 4), dtype=torch.int32, device=device),
                torch.zeros((layers, num_new), dtype=torch.int64, device=device),
            )
        return self._new[num_new]

    def load_new(self, token_ids: Tensor, capacity: int, cache: KVCache) -> None:
        """Write new tokens (1, n) into the memory of `capacity`, padded; called after `load`.

        The passes then read the prefix with them, as `cache` will be.
        """
        padded = F.pad(token_ids, (0, capacity - token_ids.shape[1]))
        shape = (self.size.rows, self.size.canvas)
        loaded = self._model.new_tokens(padded, cache, shape, token_ids.shape[1])
        target = self.new_tokens(capacity)
        for kind, angles in loaded.rotaries.items():
            for buffer, values in zip(target.rotaries[kind], angles, strict=True):
                buffer.copy_(values)
        target.token_ids.copy_(padded)
        target.lengths.copy_(loaded.lengths)
        target.places.copy_(loaded.places)
        self._load_place(cache, token_ids.shape[1])

    def load(
        self,
        canvas: Canvas,
        slots: Tensor,
        cache: KVCache,
        config: SamplerConfig,
        stop: StopNumbers,
        randoms: Randoms,
    ) -> None:
        """Write what stays the same for all passes of a fill.

        Args:
            canvas: (B, C), of no more than there is room for.
            slots: (B, M) int64, its `hole_slots`.
            cache: of the prefix.
            config: the schedule.
            stop: where a text ends.
            randoms: of B rows, C positions, M slots.
        """
        (batch_size, length), num_steps = canvas.token_ids.shape, config.max_denoising_steps
        device = slots.device
        _put(self.clamped, canvas.token_ids)
        is_hole = torch.zeros((batch_size, self.size.canvas), dtype=torch.bool, device=device)
        is_hole[:, :length] = canvas.hole_mask
        # Behind the slots that were asked for come positions that are clamped.
        is_slot = torch.zeros_like(is_hole).scatter(1, slots, True)
        rest = torch.argsort(is_slot, dim=-1, stable=True)[:, : self.size.slots - slots.shape[1]]
        slots = torch.cat((slots, rest), dim=1)  # (B, M')
        _put(self.slots, slots)
        hole_mask = is_hole.gather(1, slots)
        _put(self.hole_mask, hole_mask)
        _put(self.run_start, _run_starts(slots, hole_mask))
        self._load_rules(canvas, slots, hole_mask)
        self.is_end.zero_()
        self.is_end[torch.tensor(stop.end_token_ids, dtype=torch.int64, device=device)] = True
        self.canvas_length.fill_(length)
        self._load_place(cache, 0)
        steps = range(num_steps)
        self.temperatures[:num_steps] = torch.stack([temperature(step, config) for step in steps])
        if config.min_accept:
            floors = [
                [
                    self.size.slots - num_slots + min_accepted(step, num_slots, config)
                    for num_slots in hole_mask.sum(dim=-1).tolist()
                ]
                for step in steps
            ]
            _put(self.floors[:num_steps].T, torch.tensor(floors, device=device).T)
        draws = F.pad(randoms.draws, (0, 0, 0, self.size.slots - randoms.draws.shape[2]))
        _put(self.draws[:num_steps].transpose(0, 1), draws.transpose(0, 1))
        fresh = F.pad(randoms.fresh, (0, self.size.canvas - length))
        fresh = fresh.gather(2, slots.expand(num_steps, -1, -1))
        _put(self.fresh[:num_steps].transpose(0, 1), fresh.transpose(0, 1))

    def _load_place(self, cache: KVCache, num_new: int) -> None:
        """Where the canvas stands: behind the prefix and so many tokens that it does not hold."""
        held = [cache.num_held(index) + num_new for index in range(len(self._model.layers))]
        self.prefix_lengths.copy_(torch.tensor(held, dtype=torch.int32)[:, None].expand(-1, 4))
        rotaries = self._model.rotaries(cache.length + num_new, self.size.canvas)
        for kind, angles in rotaries.items():
            for buffer, values in zip(self.rotaries[kind], angles, strict=True):
                buffer.copy_(values)

    def _load_rules(self, canvas: Canvas, slots: Tensor, hole_mask: Tensor) -> None:
        rules, rows = self.rules, self.size.rows
        assert rules.banned is not None
        assert rules.first_allowed is not None
        assert rules.clamped_ids is not None
        assert rules.is_first is not None
        assert rules.holes is not None
        rules.banned.copy_(canvas.banned) if canvas.banned is not None else rules.banned.zero_()
        clamped_ids = self.clamped[: len(slots)].gather(1, slots)
        _put(rules.clamped_ids.view(rows, -1), torch.where(hole_mask, -1, clamped_ids))
        holes = torch.full_like(slots, -1)
        if canvas.first_allowed is not None:
            allowed = canvas.first_allowed.view(-1, canvas.first_allowed.shape[-1])
            rules.first_allowed[: len(allowed)] = allowed
            if canvas.starts is None:
                holes = torch.where(hole_mask & (hole_mask.cumsum(dim=-1) == 1), 0, holes)
            else:
                starts = torch.zeros_like(self.clamped[: len(slots)])
                starts[:, : canvas.starts.shape[1]] = canvas.starts
                holes = starts.gather(1, slots) - 1
        _put(rules.holes.view(rows, -1), holes)
        _put(rules.is_first.view(rows, -1), holes >= 0)

    def begin(self, token_ids: Tensor, first_step: int) -> None:
        """Write what the first pass begins with: (B, C) int64, clamped tokens imposed."""
        rows, length = token_ids.shape
        padded = self.clamped[:rows].clone()
        padded[:, :length] = token_ids
        _put(self.state.token_ids, padded.gather(1, self.slots[:rows]))
        self.state.argmax.fill_(-1)
        self.state.num_unchanged.zero_()
        self.state.is_finished.fill_(True)
        self.state.is_finished[:rows] = False
        self.text.fill_(-2)
        self.text_unchanged.zero_()
        self.step.fill_(first_step)

    def carry(self, rows: Tensor, other: Buffers) -> None:
        """Write what some rows (N,) came to into other buffers, or into these, as their first."""
        pairs = list(zip(self._row_state(), other._row_state(), strict=True))
        for target, values in [(target, source[rows]) for source, target in pairs]:
            _put(target, values)
        other.state.is_finished[len(rows) :] = True
        other.step.copy_(self.step)

    def _row_state(self) -> list[Tensor]:
        rows = self.size.rows
        return [
            *self.state,
            self.text,
            self.text_unchanged,
            self.masses.view(rows, self.size.slots, -1),
            self.mass_scale.view(rows, -1),
            *(self.canvas, self.argmax, self.confidence, self.entropy, self.accepted),
        ]


def run_pass(
    model: DiffusionGemma,
    buffers: Buffers,
    cache: KVCache,
    rules: PassRules,
    *,
    is_first: bool,
    num_new: int = 0,
) -> None:
    """One pass; reads and writes `buffers`.

    Args:
        model: the model.
        buffers: loaded and begun.
        cache: of the prefix.
        rules: acceptance and the stop test.
        is_first: whether nothing was believed before.
        num_new: with how many new tokens of the prefix, padding among them; only in the first pass.
    """
    rows, num_slots = buffers.size.rows, buffers.size.slots
    token_ids = buffers.clamped.scatter(1, buffers.slots, buffers.state.token_ids)
    believed = None
    if not is_first:
        scale = model.config.hidden_size**0.5
        table = model.embed_tokens.weight
        believed = soft_embedding(
            buffers.masses, buffers.mass_scale, table, embedding_scale=scale
        ).view(rows, num_slots, -1)
    hidden = model.embed_canvas(token_ids, believed, buffers.slots)
    asked = (
        lambda index: model.held(cache, index, buffers.prefix_lengths),
        buffers.slots,
        buffers.canvas_length,
    )
    if num_new:
        hidden = model.folded_hidden(hidden, buffers.new_tokens(num_new), *asked)
    else:
        hidden = model.canvas_hidden(hidden, buffers.rotaries, *asked)
    step_draws = buffers.draws.index_select(0, buffers.step).view(-1, 2)
    head = vocab_head(
        model.norm(hidden).flatten(0, 1),
        model.embed_tokens.weight,
        softcap=model.config.final_logit_softcapping,
        temperature=buffers.temperatures.index_select(0, buffers.step),
        draws=None if rules.candidates == "argmax" else step_draws,
        rules=buffers.rules,
        keep_masses=True,
        masses_into=buffers.masses,
    )
    assert head.mass_scale is not None
    buffers.mass_scale.copy_(head.mass_scale)
    entropy = head.entropy.view(rows, num_slots)
    was_finished = buffers.state.is_finished.clone()
    step = entropy_accept(
        buffers.state,
        (head.argmax if head.sample is None else head.sample).view(rows, num_slots),
        head.argmax.view(rows, num_slots),
        entropy,
        buffers.fresh.index_select(0, buffers.step)[0],
        buffers.hole_mask,
        entropy_bound=rules.entropy_bound,
        stability_threshold=_NEVER
        if rules.stability_threshold is None
        else rules.stability_threshold,
        confidence_threshold=rules.confidence_threshold,
        min_accepted=buffers.floors.index_select(0, buffers.step)[0] if rules.has_floor else None,
        in_place=True,
    )
    confidence = (head.maximum - head.log_normalizer).exp().view(rows, num_slots)
    _show(buffers, was_finished, confidence, entropy, step.accepted)
    _decide(buffers, rules)
    buffers.step.add_(1)


def _show(
    buffers: Buffers, was_finished: Tensor, confidence: Tensor, entropy: Tensor, accepted: Tensor
) -> None:
    """Put slots (R, M) back among the clamped positions; finished rows keep what they had."""
    state, slots = buffers.state, buffers.slots
    buffers.canvas.copy_(buffers.clamped.scatter(1, slots, state.token_ids))
    buffers.argmax.copy_(buffers.clamped.scatter(1, slots, state.argmax))
    keep = was_finished[:, None]
    for shown, certain, values in (
        (buffers.confidence, 1.0, confidence),
        (buffers.entropy, 0.0, entropy),
        (buffers.accepted, True, accepted),
    ):
        whole = torch.full_like(shown, certain).scatter(1, slots, values)
        shown.copy_(torch.where(keep, shown, whole))


def _decide(buffers: Buffers, rules: PassRules) -> None:
    """Whether all rows are finished, and by which criterion the last of them."""
    state = buffers.state
    verdict = torch.full_like(buffers.verdict, CONVERGED)
    if rules.stable_text_passes is not None:
        is_end = buffers.is_end[state.argmax] & buffers.hole_mask
        ends = is_end.cumsum(dim=-1)
        # Ends of the holes before do not count: each run of slots begins anew.
        earlier = (ends - is_end.long()).gather(1, buffers.run_start)
        text = state.argmax.masked_fill((ends > earlier) & buffers.hole_mask, -1)
        is_same = (text == buffers.text).all(dim=-1)
        buffers.text_unchanged.copy_(torch.where(is_same, buffers.text_unchanged + 1, 0))
        buffers.text.copy_(text)
        is_met = buffers.text_unchanged >= rules.stable_text_passes
        is_new = (is_met & ~state.is_finished).any()
        state.is_finished.logical_or_(is_met)
        verdict = torch.where(is_new, STABLE, verdict)
    buffers.verdict.copy_(torch.where(state.is_finished.all(), verdict, GO_ON))


def _put(target: Tensor, values: Tensor) -> None:
    """Write (B, M, ...) into a longer (R, M', ...): 0 behind each row, row 0 behind the rows."""
    rows = len(values)
    inside = target[:, : values.shape[1]] if values.ndim > 1 else target
    inside[:rows] = values
    inside[rows:] = values[:1]
    if values.ndim > 1:
        target[:, values.shape[1] :] = 0


def _run_starts(slots: Tensor, hole_mask: Tensor) -> Tensor:
    """For every slot (B, M) the column at which its run of neighbours in the canvas begins."""
    column = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    follows = torch.zeros_like(hole_mask)
    follows[:, 1:] = hole_mask[:, 1:] & hole_mask[:, :-1] & (slots.diff(dim=-1) == 1)
    return torch.where(follows, 0, column).cummax(dim=-1).values


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
