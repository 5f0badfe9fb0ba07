"""How long a model takes, beside the time that reading its weights takes on this machine.

The user's form is `dgemma-lsp bench`, the developer's `engine/benchmarks/full_size.py`. Nothing
here judges a time. A floor is bytes over the bandwidth of a copy, measured in the same run: what a
pass could not be faster than if computing cost nothing. It assumes that tokens choose their experts
evenly; those of a text do not, and read fewer: on a small canvas the true floor is lower.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import KVCache
from .canvas import Canvas
from .device_loop import DeviceLoop
from .layers import held_weights
from .loops import Denoiser
from .model import DiffusionGemma

CANVASES = (32, 64, 128, 256)
PREFIXES = (1024, 4096, 16_384)
# A fill as while typing: a hole of 32 slots in a canvas of 64, and so many new tokens before it.
HOLE, NEW_TOKENS, FILL_PASSES = 32, 16, 8
# The published protocol: 4,096 random tokens, one canvas of 256, 16 passes and a commit.
PROTOCOL_PASSES = 16
_WARM_UP = 2
_COPY_BYTES = {"cuda": 4_000_000_000, "cpu": 64_000_000}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was timed.

    Attributes:
        what: "pass", "prefill", "incremental prefill", "fill" or "protocol"; and of the loop on the
            device "pass" and "first pass", with new tokens or without, each as it is ("eager") and
            as a CUDA graph ("graph").
        canvas: its slots; 0 for a prefill.
        prefix: tokens before it.
        passes: of the decoder.
        ms: milliseconds, the median; `ms_low` and `ms_high` are the 10th and 90th percentile.
        floor_ms: the least that reading weights and cache takes.
        tokens_per_second: of what a fill or a prefill made or read.
    """

    what: str
    canvas: int
    prefix: int
    passes: int
    ms: float
    ms_low: float
    ms_high: float
    floor_ms: float
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time; more than the model can do is left out."""

    canvases: Sequence[int] = CANVASES
    prefixes: Sequence[int] = PREFIXES
    protocol_prefix: int = 4096
    repeats: int = 20
    seconds: float = 480.0


class Bench:
    """Times one model.

    Args:
        model: on the device that counts.
        plan: what is timed. When its seconds are over, what is left is not timed.
        seed: of the random tokens.
        on_device: whether to time the loop on the device, and fills by it; None for where it is
            the one that runs.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        plan: Plan | None = None,
        seed: int = 0,
        *,
        on_device: bool | None = None,
    ) -> None:
        self.model = model
        is_gpu = model.device.type == "cuda"
        self._loops: dict[str, DeviceLoop] = {}
        if is_gpu if on_device is None else on_device:
            self._loops["eager"] = DeviceLoop(model)
        if self._loops and is_gpu:
            self._loops["graph"] = DeviceLoop.on(model)
        self._denoise = Denoiser(model, next(reversed(self._loops.values()), None))
        self.plan = plan or Plan()
        self.left_out: list[str] = []  # what was not timed, and why
        self._generator = torch.Generator(model.device).manual_seed(seed)
        self._deadline = time.monotonic() + self.plan.seconds
        self.bandwidth = copy_bandwidth(model.device)  # bytes a second
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # the copy's memory: on a small card the model needs it

    def rows(self) -> Iterator[Row]:
        """Every row as it is there: prefills, passes, fills and the published protocol."""
        most = self.model.config.max_position_embeddings
        canvases = [size for size in self.plan.canvases if size <= self.model.config.canvas_length]
        prefixes = [size for size in self.plan.prefixes if size + max(canvases) <= most]
        for prefix in sorted(prefixes):
            if self._is_over(f"prefix {prefix}"):
                return
            try:
                yield from self._rows_at(prefix, canvases)
            except torch.OutOfMemoryError:
                self.left_out.append(f"the rest of prefix {prefix}: out of memory")
                return

    def _rows_at(self, prefix: int, canvases: Sequence[int]) -> Iterator[Row]:
        cache, row = self._prefill(prefix)
        yield row
        yield self._incremental(cache, prefix)
        for canvas in canvases:
            if not self._is_over(f"a pass at canvas {canvas}, prefix {prefix}"):
                yield self._pass(cache, canvas)
                for how, loop in self._loops.items():
                    yield self._loop_pass(cache, canvas, how, loop)
        if max(canvases) >= 2 * HOLE and not self._is_over(f"a fill at prefix {prefix}"):
            for how, loop in self._loops.items():
                yield self._first_pass(cache, how, loop, 0)
                yield self._first_pass(cache, how, loop, NEW_TOKENS)
            yield self._fill(cache, prefix)
        if prefix == self.plan.protocol_prefix and not self._is_over("the protocol"):
            yield self._protocol(cache, max(canvases))

    def tokens(self, count: int) -> Tensor:
        """(1, count) random ids of the whole vocabulary."""
        vocabulary = self.model.config.vocab_size
        return torch.randint(
            vocabulary, (1, count), generator=self._generator, device=self.model.device
        )

    def row(
        self,
        what: str,
        milliseconds: list[float],
        floor_bytes: float,
        *,
        canvas: int = 0,
        prefix: int = 0,
        passes: int = 0,
        tokens: int = 0,
    ) -> Row:
        """A row of measured times."""
        ordered = sorted(milliseconds)
        median = statistics.median(ordered)
        return Row(
            what=what,
            canvas=canvas,
            prefix=prefix,
            passes=passes,
            ms=median,
            ms_low=ordered[len(ordered) // 10],
            ms_high=ordered[-1 - len(ordered) // 10],
            floor_ms=floor_bytes / self.bandwidth * 1000,
            tokens_per_second=tokens / median * 1000 if tokens else None,
        )

    def _is_over(self, what: str) -> bool:
        is_over = time.monotonic() > self._deadline
        if is_over:
            self.left_out.append(f"{what}: the time was over")
        return is_over

    def _prefill(self, prefix: int) -> tuple[KVCache, Row]:
        token_ids = self.tokens(prefix)
        caches: list[KVCache] = []

        def run() -> None:
            caches.clear()
            caches.append(self.model.prefill(token_ids))

        repeats = min(3, self.plan.repeats) if prefix <= self.plan.protocol_prefix else 1
        times = timed(self.model.device, run, repeats)
        floor = encoder_bytes(self.model, prefix, 0)
        return caches[0], self.row("prefill", times, floor, prefix=prefix, tokens=prefix)

    def _incremental(self, cache: KVCache, prefix: int) -> Row:
        token_ids = self.tokens(NEW_TOKENS)

        def run() -> None:
            cache.truncate(prefix)
            self.model.prefill(token_ids, cache)

        times = timed(self.model.device, run, self.plan.repeats)
        cache.truncate(prefix)
        floor = encoder_bytes(self.model, NEW_TOKENS, prefix)
        return self.row("incremental prefill", times, floor, prefix=prefix, tokens=NEW_TOKENS)

    def _pass(self, cache: KVCache, canvas: int) -> Row:
        token_ids = self.tokens(canvas)
        with torch.no_grad():
            fed_back = (self.model.denoise_logits(token_ids, cache) / 0.8).to(self.model.dtype)

        @torch.no_grad()
        def run() -> None:
            self.model.denoise_logits(token_ids, cache, fed_back)

        times = timed(self.model.device, run, self.plan.repeats)
        floor = pass_bytes(self.model, canvas, cache.length)
        return self.row("pass", times, floor, canvas=canvas, prefix=cache.length, passes=1)

    def _loop_pass(self, cache: KVCache, canvas: int, how: str, loop: DeviceLoop) -> Row:
        """A later pass of the loop on the device: with the sampler, and what the host reads."""
        empty = Canvas.open(1, canvas, self.model.device)
        passes = 1 + _WARM_UP + self.plan.repeats
        config = self.model.sampler_defaults.with_steps(passes)
        steps = loop.denoise(cache, empty, config, self._generator, [])
        next(steps)
        times = timed(self.model.device, lambda: next(steps), self.plan.repeats)
        floor = pass_bytes(self.model, canvas, cache.length)
        return self.row(f"pass, {how}", times, floor, canvas=canvas, prefix=cache.length, passes=1)

    def _first_pass(self, cache: KVCache, how: str, loop: DeviceLoop, num_new: int) -> Row:
        """From a canvas with a hole to the first draft, some new tokens encoded on the way."""
        prefix, canvas = cache.length, self._hole()
        new_ids = self.tokens(max(1, num_new))[0, :num_new].tolist()

        def run() -> None:
            cache.truncate(prefix)
            config = self.model.sampler_defaults
            next(loop.denoise(cache, canvas, config, self._generator, [], new_ids=new_ids))

        times = timed(self.model.device, run, self.plan.repeats)
        cache.truncate(prefix)
        floor = pass_bytes(self.model, 2 * HOLE + num_new, prefix)
        floor -= self.model.embed_tokens.weight.nbytes  # nothing is believed yet
        added = f" and {num_new} new tokens" if num_new else ""
        return self.row(
            f"first pass{added}, {how}", times, floor, canvas=2 * HOLE, prefix=prefix, passes=1
        )

    def _fill(self, cache: KVCache, prefix: int) -> Row:
        """What an editor waits for: a few new tokens encoded, then passes over a small canvas."""
        new_ids, canvas = self.tokens(NEW_TOKENS)[0].tolist(), self._hole()

        def run() -> None:
            cache.truncate(prefix)
            self._draft(cache, canvas, FILL_PASSES, new_ids)

        times = timed(self.model.device, run, max(1, self.plan.repeats // 4))
        cache.truncate(prefix)
        floor = FILL_PASSES * pass_bytes(self.model, 2 * HOLE, prefix)
        if not self._denoise.most_new_tokens:
            floor += encoder_bytes(self.model, NEW_TOKENS, prefix)
        return self.row(
            "fill",
            times,
            floor,
            canvas=2 * HOLE,
            prefix=prefix,
            passes=FILL_PASSES,
            tokens=HOLE,
        )

    def _hole(self) -> Canvas:
        """A hole of `HOLE` slots, and as many clamped tokens behind it."""
        canvas = Canvas.open(1, 2 * HOLE, self.model.device)
        hole_mask = canvas.hole_mask.clone()
        hole_mask[:, HOLE:] = False
        return dataclasses.replace(canvas, token_ids=self.tokens(2 * HOLE), hole_mask=hole_mask)

    def _protocol(self, cache: KVCache, size: int) -> Row:
        canvas = Canvas.open(1, size, self.model.device)
        prefix = cache.length

        def run() -> None:
            cache.truncate(prefix)
            committed = self._draft(cache, canvas, PROTOCOL_PASSES)
            self.model.prefill(committed, cache)

        times = timed(self.model.device, run, max(1, self.plan.repeats // 8))
        cache.truncate(prefix)
        floor = PROTOCOL_PASSES * pass_bytes(self.model, size, prefix)
        floor += encoder_bytes(self.model, size, prefix)
        return self.row(
            "protocol",
            times,
            floor,
            canvas=size,
            prefix=prefix,
            passes=PROTOCOL_PASSES,
            tokens=size,
        )

    def _draft(
        self, cache: KVCache, canvas: Canvas, passes: int, new_ids: Sequence[int] = ()
    ) -> Tensor:
        """A fixed number of passes; (1, C) the last draft."""
        config = self.model.sampler_defaults.with_steps(passes)
        draft = canvas.token_ids
        for step in self._denoise(cache, canvas, config, self._generator, [], new_ids=new_ids):
            draft = step.argmax_canvas
        return draft


def timed(device: torch.device, run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of every repeat, after some that are not counted."""
    for _ in range(_WARM_UP if repeats > 1 else 1):
        run()
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append((time.perf_counter() - started) * 1000)
    return times


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes together."""
    size = _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = timed(device, lambda: target.copy_(source), repeats=10)
    return 2 * size / min(times) * 1000


def touched_experts(model: DiffusionGemma, num_tokens: int) -> float:
    """The share of experts that some of so many tokens go to, if every choice is even."""
    config = model.config
    missed: float = (1 - config.top_k_experts / config.num_experts) ** num_tokens
    return 1 - missed


def pass_bytes(model: DiffusionGemma, canvas: int, prefix: int) -> float:
    """Bytes that a denoising pass has to read: weights, the embedding twice, the cache."""
    sizes = _Sizes.of(model)
    experts = sizes.experts * touched_experts(model, canvas)
    return experts + sizes.others + 2 * sizes.embedding + _cached_bytes(model, prefix)


def encoder_bytes(model: DiffusionGemma, num_tokens: int, prefix: int) -> float:
    """Bytes that encoding so many tokens has to read, in as few pieces as possible."""
    sizes = _Sizes.of(model)
    experts = sizes.experts * touched_experts(model, num_tokens)
    return experts + sizes.others + _cached_bytes(model, prefix)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes of a model's parts as they are held."""

    experts: int
    embedding: int
    others: int

    @classmethod
    def of(cls, model: DiffusionGemma) -> _Sizes:
        whole = sum(tensor.nbytes for tensor in model.state_dict().values())
        whole += sum(weight.nbytes for weight in held_weights(model))
        experts = 0
        for module in model.modules():
            for name in ("gate_up_proj", "down_proj"):
                weight = getattr(module, name, None)
                experts += getattr(weight, "nbytes", 0)  # an MLP's are modules, and have none
        embedding = model.embed_tokens.weight.nbytes
        return cls(experts, embedding, whole - experts - embedding)


def _cached_bytes(model: DiffusionGemma, prefix: int) -> int:
    total = 0
    for layer in model.config.layers:
        tokens = min(prefix, model.config.sliding_window - 1) if layer.is_sliding else prefix
        total += tokens * layer.num_key_value_heads * layer.head_dim * 2
    return total * model.dtype.itemsize


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
