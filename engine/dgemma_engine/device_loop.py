"""The denoising loop whose passes stay on the device: the host reads one number and the draft.

It yields the steps that `denoise.py` yields; that module says what they are, this one only how they
are made without waiting for the host. Buffers and graphs are kept from fill to fill.

A graph holds addresses, those of the prefix's keys and values among them. It is made of the cache's
own buffers and captured again when these have grown, which they do by doubling, a few times a
session: a copy of the prefix at a fixed address would cost its memory twice and its time each fill.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgemma_kernels.vocab_head.reference import LARGEST_LOGIT

from .cache import KVCache
from .canvas import Canvas
from .config import SamplerConfig
from .denoise import DenoisingStep
from .device_pass import CONVERGED, GO_ON, STABLE, Buffers, PassRules, Size, run_pass
from .graphs import Capture, Replayed, capture_for
from .model import DiffusionGemma
from .sampler import Randoms
from .schedule import noise_proportion, temperature
from .stopping import StopNumbers, StoppingCriterion
from .types import CancellationToken, StopReason

# Buffers of earlier sizes are kept within this: those of 256 slots of the 26B take 0.14 GB.
_MOST_BYTES = 600_000_000
_MOST_GRAPHS = 16  # they share the memory that they work in
# New tokens of the prefix in the first pass: a key or two, a word, a line.
_NEW_TOKENS = (16, 32, 64)
MOST_NEW_TOKENS = _NEW_TOKENS[-1]
_REASONS = {CONVERGED: StopReason.CONVERGED, STABLE: StopReason.STABLE}


class _Key(NamedTuple):
    """What makes one pass differ from another."""

    size: Size
    rules: PassRules
    is_first: bool
    num_new: int
    cache: int


class _Kept(NamedTuple):
    """A pass, and what it reads."""

    replayed: Replayed
    addresses: tuple[tuple[int, int], ...]
    cache: weakref.ref[KVCache]


class DeviceLoop:
    """Denoises canvases of one model, one at a time.

    Args:
        model: on the device.
        capture: how a pass is captured; None never does.
    """

    def __init__(self, model: DiffusionGemma, capture: Capture | None = None) -> None:
        self._model = model
        self._capture = capture
        self._buffers: OrderedDict[Size, Buffers] = OrderedDict()  # the last used last
        self._passes: OrderedDict[_Key, _Kept] = OrderedDict()
        self._turn = 0

    @classmethod
    def on(cls, model: DiffusionGemma) -> DeviceLoop:
        """With graphs, where the model's device has them."""
        return cls(model, capture_for(model.device))

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, but not that in which passes work."""
        return sum(buffers.num_bytes for buffers in self._buffers.values())

    @property
    def num_graphs(self) -> int:
        """How many passes are captured."""
        return sum(kept.replayed.is_captured for kept in self._passes.values())

    def why_not(
        self, canvas: Canvas, config: SamplerConfig, criteria: Sequence[StoppingCriterion]
    ) -> str | None:
        """Why it cannot do what `denoise` can; None if it does."""
        if StopNumbers.of(criteria) is None:
            return "a stopping criterion that it does not know"
        lowest = float(temperature(config.max_denoising_steps - 1, config))
        if self._model.config.final_logit_softcapping > lowest * LARGEST_LOGIT:
            return f"a temperature of {lowest:.3g}"
        return None

    @torch.no_grad()
    def denoise(
        self,
        cache: KVCache,
        canvas: Canvas,
        config: SamplerConfig,
        generator: torch.Generator,
        criteria: Sequence[StoppingCriterion],
        cancel: CancellationToken | None = None,
        *,
        initial: Tensor | None = None,
        first_step: int = 0,
        randoms: Randoms | None = None,
        new_ids: Sequence[int] = (),
    ) -> Generator[DenoisingStep, Tensor | None, None]:
        """As `denoise.denoise`, but all random numbers are drawn before the first pass.

        `why_not` lets the arguments pass. The buffers are those of the last denoising that was
        begun: an earlier one cannot go on.

        Args:
            new_ids: what the prefix goes on with, `MOST_NEW_TOKENS` at most. The first pass encodes
                them; a cache of one row holds them as soon as it is over.
        """
        stop = StopNumbers.of(criteria)
        assert stop is not None
        slots = canvas.hole_slots()
        batch_size, length = canvas.token_ids.shape
        if randoms is None:
            randoms = Randoms.of(
                generator,
                num_steps=config.max_denoising_steps,
                shape=(batch_size, length),
                num_slots=slots.shape[1],
                vocab_size=self._model.config.vocab_size,
            )
        self._turn = turn = self._turn + 1
        rules = PassRules.of(config, stop)
        buffers = self._sized(canvas, slots, config, cache)
        buffers.load(canvas, slots, cache, config, stop, randoms)
        capacity = self._take_new(buffers, new_ids, cache)
        buffers.begin(canvas.impose(randoms.initial if initial is None else initial), first_step)
        for step in range(first_step, config.max_denoising_steps):
            if cancel is not None:
                cancel.raise_if_cancelled()
            assert turn == self._turn, "another denoising has taken the buffers"
            is_first = step == first_step
            num_new = capacity if is_first else 0
            self._pass(buffers, cache, rules, is_first=is_first, num_new=num_new)()
            if num_new:
                cache.advance(len(new_ids))
            verdict = int(buffers.verdict)
            reason = _REASONS.get(verdict)
            if verdict == GO_ON and step + 1 == config.max_denoising_steps:
                reason = StopReason.MAX_STEPS
            found = (slice(len(slots)), slice(length))
            found_step = DenoisingStep(
                step=step,
                noise_proportion=noise_proportion(step, config.max_denoising_steps),
                canvas=buffers.canvas[found].clone(),
                argmax_canvas=buffers.argmax[found].clone(),
                confidence=buffers.confidence[found].clone(),
                entropy=buffers.entropy[found].clone(),
                accepted=buffers.accepted[found].clone(),
                is_finished=buffers.state.is_finished[: len(slots)].clone(),
                stop_reason=reason,
            )
            rows = yield found_step
            if reason is not None:
                return
            if rows is not None:
                assert turn == self._turn, "another denoising has taken the buffers"
                canvas, slots, randoms = canvas.select(rows), slots[rows], randoms.select(rows)
                fewer = self._sized(canvas, slots, config, cache)
                buffers.carry(rows, fewer)
                fewer.load(canvas, slots, cache, config, stop, randoms)
                buffers = fewer
                if bool(found_step.is_finished[rows].all()):
                    return

    def _take_new(self, buffers: Buffers, new_ids: Sequence[int], cache: KVCache) -> int:
        """Load new tokens of the prefix; returns with how many, padded, the first pass runs."""
        if not new_ids:
            return 0
        assert cache.batch_size == 1, cache.batch_size
        capacity = next(size for size in _NEW_TOKENS if size >= len(new_ids))
        token_ids = torch.tensor([list(new_ids)], device=self._model.device)
        self._model.check_new(token_ids, cache)
        cache.reserve(capacity)
        buffers.load_new(token_ids, capacity, cache)
        return capacity

    def _sized(
        self, canvas: Canvas, slots: Tensor, config: SamplerConfig, cache: KVCache
    ) -> Buffers:
        size = Size.holding(canvas, slots.shape[1], config.max_denoising_steps, cache.batch_size)
        if size not in self._buffers:
            self._buffers[size] = Buffers(self._model, size)
        self._buffers.move_to_end(size)
        while len(self._buffers) > 1 and self.num_bytes > _MOST_BYTES:
            gone, _ = self._buffers.popitem(last=False)
            for key in [key for key in self._passes if key.size == gone]:
                del self._passes[key]
        return self._buffers[size]

    def _pass(
        self,
        buffers: Buffers,
        cache: KVCache,
        rules: PassRules,
        *,
        is_first: bool,
        num_new: int,
    ) -> Callable[[], None]:
        """The pass of these buffers over this cache as it lies in memory now."""
        for dead in [key for key, kept in self._passes.items() if kept.cache() is None]:
            del self._passes[dead]
        key = _Key(buffers.size, rules, is_first, num_new, id(cache))
        addresses = _addresses(cache, len(self._model.layers))
        kept = self._passes.get(key)
        if kept is None or kept.addresses != addresses:
            reference = weakref.ref(cache)  # what a graph reads may not live on for its sake

            def run() -> None:
                held = reference()
                assert held is not None
                run_pass(self._model, buffers, held, rules, is_first=is_first, num_new=num_new)

            name = f"a pass over a canvas of {buffers.size.canvas}"
            kept = _Kept(Replayed(name, run, self._capture), addresses, reference)
            self._passes[key] = kept
        self._passes.move_to_end(key)
        while len(self._passes) > _MOST_GRAPHS:
            self._passes.popitem(last=False)
        return kept.replayed


def _addresses(cache: KVCache, num_layers: int) -> tuple[tuple[int, int], ...]:
    """Where the keys and values of all layers lie, and how long they are."""
    held = [buffer for index in range(num_layers) for buffer in cache.buffers(index)]
    return tuple((buffer.data_ptr(), buffer.shape[2]) for buffer in held)
