"""The trainer: left-to-right first, then documents and canvases together, within a time budget.

    python -m training.train --corpus DIR --out RUN --size 4m --minutes 50 --processes 2
    python -m training.train --corpus DIR --out RUN --size 4m --minutes 50 --processes 2 --resume

Writes to RUN: `checkpoint.pt` every two minutes (all that a resumed run needs), `losses.csv`,
`held_out.csv` and `losses.png`. On a CPU several processes of one thread each train faster than one
process of several threads; on a GPU it is one process.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
import torch.utils.data
from tokenizers import Tokenizer
from torch import Tensor

from dgemma_engine.checkpoint import load_checkpoint
from dgemma_engine.config import ModelConfig
from dgemma_engine.model import DiffusionGemma

from .corpus import read_documents
from .documents import tokenize
from .fast_kernels import training_kernels
from .initialise import SIZES, build_config, initialise
from .objective import Losses, Noise, compute_losses, corrupt
from .optimizer import build_optimizers
from .rows import Batch, Mixture, RowSource
from .streams import Streams
from .widen import widen

CAUSAL_ONLY = Mixture(block=0.0, exact=0.0, slack=1.0, canvas_tokens=0)
# Blocks give many targets per canvas and teach denoising fast. At inference lines are drafted in
# exact holes, blocks in slack ones.
DENSE = Mixture(block=0.40, exact=0.25, slack=0.35, suffix_window=0.45)
EDITOR = Mixture(block=0.15, exact=0.45, slack=0.40, suffix_window=0.60)

# Training never draws these batch numbers for its own seed: held-out batches have their own.
_HELD_OUT_SEED = 1_000_003
_NUM_HELD_OUT_BATCHES = 6
_WARM_UP_STEPS = 40
_LOG_EVERY = 25

# glibc hands freed tensors back to the kernel and faults their pages in again at every step; kept,
# in large pages, a step of the 4 M model takes 0.6 s instead of 1.0. For the child processes.
_KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True, slots=True)
class StepChoices:
    """What is drawn for a step, and not for a process, so that all processes do the same work."""

    is_long: bool = False
    self_condition: bool = False
    has_canvases: bool = True


@dataclass(frozen=True)
class Options:
    """What decides a run, beside the data. Stored in its checkpoint.

    Attributes:
        size: of `initialise.SIZES`.
        minutes: wall time that the schedule is spread over, restarts not counted ...
        steps: ... or, if above 0, the steps that it is spread over.
        tokens_per_step: document and canvas tokens together, of all processes.
        document_length: L of most rows.
        long_share: of the steps, with rows twice as long.
        noise: see `objective.corrupt`.
        causal_share: of the run, left-to-right only, at its start; none of a run that goes on from
            another's weights.
        editor_share: of the run, with the editor's mixture, at its end.
        canvas_share: of the steps behind that, those whose rows have canvases; the others are
            documents alone, which takes less than half of the time.
        decay_share: of the run, over which the learning rates fall to 0, at its end.
        self_conditioning: share of steps with a first pass.
        pure_noise: share of canvases that are nothing but noise. All of them are in steps without
            self-conditioning: so begins every fill, and no later pass is like it.
        front_noise: share of canvases that are clean up to a slot and noise behind it, the state of
            a fill that settles from its start.
        muon_lr, adam_lr, clip, ema: the optimisers'.
        seed: of everything.
    """

    size: str = "4m"
    minutes: float = 50.0
    steps: int = 0
    tokens_per_step: int = 6144
    document_length: int = 256
    long_share: float = 0.25
    noise: Noise = "uniform"
    causal_share: float = 0.25
    editor_share: float = 0.34
    canvas_share: float = 1.0
    decay_share: float = 0.35
    self_conditioning: float = 0.5
    pure_noise: float = 0.2
    front_noise: float = 0.4
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0

    def mixture(self, progress: float, *, goes_on: bool = False) -> Mixture:
        """What rows hold; `goes_on` where another run's weights were the first.

        These have no phase of documents alone: a quarter of an hour of it, on two cores, unlearned
        the canvases (from 2.5 to 8 nats), and the rest of that run did not bring them back.
        """
        if progress < self.causal_share and not goes_on:
            return CAUSAL_ONLY
        return EDITOR if progress >= 1.0 - self.editor_share else DENSE

    def choices(self, step: int) -> StepChoices:
        draws = np.random.default_rng([self.seed, step, 0]).random(3)
        shares = (self.long_share, self.self_conditioning, self.canvas_share)
        return StepChoices(*(bool(draw < share) for draw, share in zip(draws, shares, strict=True)))

    def learning_rate(self, step: int, progress: float) -> float:
        """Share of the full rates: warm-up, constant, linear decay."""
        warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
        return warm_up * min(1.0, max(0.0, 1.0 - progress) / max(1e-9, self.decay_share))


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a batch depends on, beside the documents."""

    seed: int
    number: int
    mixture: Mixture
    num_rows: int
    document_length: int
    sliding_window: int


class RequestedBatches(torch.utils.data.Dataset[Batch]):
    """Batches by request, so that a DataLoader's workers may cut them."""

    def __init__(self, source: RowSource) -> None:
        self._source = source

    def __getitem__(self, request: BatchRequest) -> Batch:
        return self._source.batch(
            request.seed,
            request.number,
            request.mixture,
            request.num_rows,
            request.document_length,
            request.sliding_window,
        )


@dataclass
class Progress:
    """How far a run is. `seconds` counts training time over all restarts.

    `before` is how far the runs before it in a chain were, as `losses` counts; the rows of both
    lists go on from there.
    """

    step: int = 0
    seconds: float = 0.0
    document_tokens: int = 0
    canvas_tokens: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)

    def totals(self) -> dict[str, float]:
        """Steps, minutes and tokens of the whole chain."""
        own = {
            "step": self.step,
            "minutes": self.seconds / 60.0,
            "document_tokens": self.document_tokens,
            "canvas_tokens": self.canvas_tokens,
        }
        return {name: round(value + self.before.get(name, 0), 2) for name, value in own.items()}


class Trainer:
    """Model, optimisers and data of one process."""

    def __init__(
        self,
        options: Options,
        vocab_size: int,
        source: RowSource,
        held_out: RowSource | None = None,
        device: str = "cpu",
        rank: int = 0,
        num_processes: int = 1,
        workers: int = 0,
        compiled: bool = False,
        in_blocks: bool = False,
    ) -> None:
        """Build everything; see `_worker`.

        Args:
            workers: processes that cut rows ahead of time; 0 cuts each batch when it is needed.
            compiled, in_blocks: see `Streams`.
        """
        self.options = options
        self.config_json = build_config(options.size, vocab_size)
        self.config = ModelConfig.from_json(self.config_json)
        self.device = torch.device(device)
        self.model = DiffusionGemma(self.config)
        initialise(self.model, torch.Generator().manual_seed(options.seed))
        self.model.to(self.device)
        self.ema = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.optimizers = build_optimizers(self.model, options.muon_lr, options.adam_lr)
        self.progress = Progress()
        self._held_out = held_out
        self._rank, self._num_processes = rank, num_processes
        self._source = RequestedBatches(source)
        self._share = 0.0
        self._workers = workers
        self._batches: Iterator[Batch] | None = None
        self._streams = Streams(self.model, compiled=compiled, in_blocks=in_blocks)
        # The few batches of an evaluation are not worth compiling a form without gradients for.
        self._plain_streams = Streams(self.model)

    def share_done(self) -> float:
        """Progress through the schedule, from 0 to 1, the same in every process."""
        if self.options.steps:
            return self.progress.step / self.options.steps
        done = torch.tensor(self.progress.seconds / (60.0 * self.options.minutes))
        if self._num_processes > 1:
            torch.distributed.broadcast(done, src=0)
        return float(done)

    def train_step(self) -> Losses | None:
        """One step; None when the schedule is over."""
        share = self._share = self.share_done()
        if share >= 1.0:
            return None
        started = time.monotonic()
        step, options = self.progress.step, self.options
        choices = options.choices(step)
        batch = self._next_batch(choices)
        losses = self._losses(batch, self._generator(options.seed, step), choices.self_condition)
        losses.total.backward()
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        rate = options.learning_rate(step, share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._update_ema(step)
        document_tokens = batch.document_weight.numel() * self._num_processes
        self.progress.document_tokens += document_tokens
        self.progress.canvas_tokens += batch.hole_mask.numel() * self._num_processes
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started
        return losses

    def _next_batch(self, choices: StepChoices) -> Batch:
        if not self._workers:
            request = self._request(self.options.seed, self.progress.step, choices)
            return self._source[request].to(self.device)
        if self._batches is None:
            self._batches = iter(
                torch.utils.data.DataLoader(
                    self._source,
                    sampler=self._requests_ahead(),
                    batch_size=None,
                    num_workers=self._workers,
                    prefetch_factor=4,
                    pin_memory=self.device.type == "cuda",
                )
            )
        return next(self._batches).to(self.device)

    def _requests_ahead(self) -> Iterator[BatchRequest]:
        """As `train_step` will need them; by the clock's phase when they are drawn up."""
        for step in itertools.count(self.progress.step):
            yield self._request(self.options.seed, step, self.options.choices(step))

    def _request(
        self,
        seed: int,
        step: int,
        choices: StepChoices = StepChoices(),
        mixture: Mixture | None = None,
    ) -> BatchRequest:
        steps = self.options.steps
        if mixture is None:
            share = step / steps if steps else self._share
            mixture = self.options.mixture(share, goes_on=bool(self.progress.before))
        # A row has as many canvas tokens as document tokens, or none.
        length = self.options.document_length * (2 if choices.is_long else 1)
        canvas_tokens = length if mixture.canvas_tokens and choices.has_canvases else 0
        own_tokens = self.options.tokens_per_step // self._num_processes
        return BatchRequest(
            seed,
            step * self._num_processes + self._rank,
            dataclasses.replace(mixture, canvas_tokens=canvas_tokens),
            max(1, own_tokens // (length + canvas_tokens)),
            length,
            self.config.sliding_window,
        )

    def _generator(self, seed: int, step: int) -> torch.Generator:
        generator = torch.Generator(self.device)
        number = (seed * 1_000_000 + step) * self._num_processes + self._rank
        return generator.manual_seed(number)

    def probe(self) -> tuple[float, Tensor]:
        """Loss and gradient (all parameters, float32, on the CPU) on one batch; nothing changes."""
        batch = self._source[self._request(self.options.seed, 0, mixture=EDITOR)].to(self.device)
        losses = self._losses(batch, self._generator(self.options.seed, 0), self_condition=True)
        losses.total.backward()
        parameters = self.model.parameters()
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        self.model.zero_grad(set_to_none=True)
        return float(losses.total.detach()), gradient.float().cpu()

    def _losses(self, batch: Batch, generator: torch.Generator, self_condition: bool) -> Losses:
        options = self.options
        pure_noise = 0.0
        if not self_condition:
            pure_noise = min(1.0, options.pure_noise / max(1e-9, 1.0 - options.self_conditioning))
        front_noise = min(options.front_noise, 1.0 - pure_noise)
        corruption = corrupt(
            batch, self.config.vocab_size, options.noise, pure_noise, front_noise, generator
        )
        with self._autocast(), training_kernels(self.device):
            streams = self._streams if torch.is_grad_enabled() else self._plain_streams
            return compute_losses(streams, batch, corruption, self_condition)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _average_gradients(self) -> None:
        if self._num_processes == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self._num_processes
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, averaged in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(averaged.view_as(gradient))

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        decay = min(self.options.ema, (step + 1) / (step + 10))
        parameters = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.ema.values()), parameters, 1.0 - decay)

    @torch.no_grad()
    def evaluate(self, use_ema: bool = True) -> dict[str, float]:
        """Mean losses on fixed held-out batches, without and with self-conditioning in turn."""
        assert self._held_out is not None, "no held-out documents were given"
        raw = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        if use_ema:
            self._load_parameters(self.ema)
        collected: list[dict[str, float]] = []
        for step in range(_NUM_HELD_OUT_BATCHES):
            request = self._request(_HELD_OUT_SEED, step, mixture=EDITOR)
            batch = RequestedBatches(self._held_out)[request].to(self.device)
            generator = self._generator(_HELD_OUT_SEED, step)
            collected.append(_to_row(self._losses(batch, generator, step % 2 == 1)))
        self._load_parameters(raw)
        return mean_rows(collected)

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(values[name])

    def state(self) -> dict[str, Any]:
        return {
            "options": dataclasses.asdict(self.options),
            "config": self.config_json,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": dataclasses.asdict(self.progress),
        }

    def start_from(
        self, weights: dict[str, Tensor], losses: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """Take another run's weights and curve; the schedule and the optimisers begin anew.

        Raises:
            ValueError: its model is neither of this size nor half as wide.
        """
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        if weights["embed_tokens.weight"].shape != shapes["embed_tokens.weight"]:
            weights = widen(weights, shapes, torch.Generator().manual_seed(self.options.seed))
        self.model.load_state_dict(weights)
        for name, value in self.ema.items():
            value.copy_(weights[name])
        if losses:
            self.progress.losses = [dict(row) for row in losses]
            self.progress.before = {name: losses[-1][name] for name in self.progress.totals()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint was written; the options are those given now."""
        self.model.load_state_dict(state["model"])
        for name, value in state["ema"].items():
            self.ema[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


def _to_row(losses: Losses) -> dict[str, float]:
    return {
        f.name: float(torch.as_tensor(getattr(losses, f.name)).detach())
        for f in dataclasses.fields(losses)
    }


def mean_rows(rows: list[dict[str, float]]) -> dict[str, float]:
    """Column means; a column's NaNs, batches that had nothing of the kind, are left out."""
    means = {}
    for name in rows[0]:
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[name] = round(sum(values) / len(values), 4) if values else float("nan")
    return means


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write the checkpoint and the curves; a crash in between leaves the old checkpoint."""
    partial = folder / "checkpoint.pt.partial"
    torch.save(trainer.state(), partial)
    partial.replace(folder / "checkpoint.pt")
    write_csv(trainer.progress.losses, folder / "losses.csv")
    write_csv(trainer.progress.held_out, folder / "held_out.csv")


def packed_run(folder: Path, device: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and losses of a packed checkpoint, for `Trainer.start_from`."""
    weights = load_checkpoint(folder, device, "float32").state_dict()
    rows: list[dict[str, float]] = []
    if (folder / "losses.csv").exists():
        with (folder / "losses.csv").open(encoding="utf-8") as file:
            rows = [{n: _number(v) for n, v in row.items()} for row in csv.DictReader(file)]
    return weights, rows


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


def write_csv(rows: list[dict[str, float]], path: Path) -> None:
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot_losses(progress: Progress, path: Path) -> None:
    """Losses over minutes as a picture; does nothing where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    for column, name in enumerate(("causal", "canvas", "t1", "noisy")):
        rows = [r for r in progress.losses if not math.isnan(r[name])]
        axes.plot(
            [r["minutes"] for r in rows], [r[name] for r in rows], color=f"C{column}", alpha=0.35
        )
        rows = [r for r in progress.held_out if not math.isnan(r[name])]
        axes.plot(
            [r["minutes"] for r in rows],
            [r[name] for r in rows],
            color=f"C{column}",
            marker=".",
            label=f"{name}, held out",
        )
    axes.set(xlabel="minutes of training", ylabel="cross-entropy, nats per token", ylim=(0, 8.5))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def run(
    trainer: Trainer,
    folder: Path,
    checkpoint_minutes: float,
    is_main: bool,
    stop_after_minutes: float = math.inf,
    on_save: Callable[[], None] = lambda: None,
) -> None:
    """Train to the end of the schedule; the main process logs and writes.

    Args:
        stop_after_minutes: of this call, in one process; the rest is for a call that resumes.
        on_save: called by the main process behind every checkpoint but the last; its time counts.
    """
    progress = trainer.progress
    stop_at = progress.seconds + 60.0 * stop_after_minutes
    pending: list[dict[str, float]] = []
    last_saved = progress.seconds
    while (losses := trainer.train_step()) is not None:
        if not is_main:
            continue
        pending.append(_to_row(losses))
        if progress.step % _LOG_EVERY == 0:
            _log(trainer, pending)
        if progress.seconds - last_saved >= 60.0 * checkpoint_minutes:
            last_saved = progress.seconds
            _evaluate_and_save(trainer, folder)
            started = time.monotonic()
            on_save()
            progress.seconds += time.monotonic() - started
        if progress.seconds >= stop_at:
            break
    if is_main:
        _log(trainer, pending)
        _evaluate_and_save(trainer, folder)
        plot_losses(progress, folder / "losses.png")


def _log(trainer: Trainer, pending: list[dict[str, float]]) -> None:
    if pending:
        row = _stamp(trainer, mean_rows(pending))
        trainer.progress.losses.append(row)
        print(json.dumps(row), flush=True)
        pending.clear()


def _stamp(trainer: Trainer, means: dict[str, float]) -> dict[str, float]:
    return {**trainer.progress.totals(), **means}


def _evaluate_and_save(trainer: Trainer, folder: Path) -> None:
    started = time.monotonic()
    row = _stamp(trainer, trainer.evaluate())
    trainer.progress.held_out.append(row)
    print("held out:", json.dumps(row), flush=True)
    save_checkpoint(trainer, folder)
    trainer.progress.seconds += time.monotonic() - started


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, and write over the next run's checkpoint."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _worker(rank: int, arguments: argparse.Namespace, options: Options) -> None:
    if arguments.processes > 1:
        _end_with_parent()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        store = f"file://{(arguments.out / 'rendezvous').resolve()}"
        torch.distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=arguments.processes
        )
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    tokenizer = Tokenizer.from_file(str(arguments.corpus / "tokenizer.json"))
    documents = read_documents(arguments.corpus / "documents.jsonl")
    sources = {
        split: RowSource(tokenize((d for d in documents if d.split == split), tokenizer), tokenizer)
        for split in ("train", "held_out")
    }
    del documents
    trainer = Trainer(
        options,
        tokenizer.get_vocab_size(),
        sources["train"],
        sources["held_out"],
        arguments.device,
        rank,
        arguments.processes,
        arguments.workers,
        arguments.compile,
        arguments.blocks,
    )
    if arguments.init_from is not None:
        trainer.start_from(*packed_run(arguments.init_from, arguments.device))
    if arguments.resume:
        state = torch.load(
            arguments.out / "checkpoint.pt", map_location=arguments.device, weights_only=True
        )
        trainer.load_state(state)
    if rank == 0:
        count = sum(p.numel() for p in trainer.model.parameters())
        print(f"{count:,} parameters, from step {trainer.progress.step}, {options}", flush=True)
    run(trainer, arguments.out, arguments.checkpoint_minutes, is_main=rank == 0)
    if arguments.processes > 1:
        torch.distributed.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="training.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="FOLDER",
        help="start from a packed checkpoint's weights, of this size or half as wide: the next\n"
        "link of a chain of runs",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that cut rows")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--blocks", action="store_true", help="attend in blocks (GPU only)")
    parser.add_argument("--checkpoint-minutes", type=float, default=2.0)
    for option in dataclasses.fields(Options):
        default = option.default
        flag = "--" + option.name.replace("_", "-")
        if option.name in ("size", "noise"):
            choices = SIZES if option.name == "size" else ("uniform", "hybrid")
            parser.add_argument(flag, choices=choices, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    parsed = parser.parse_args(arguments)
    options = Options(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(Options)})
    parsed.out.mkdir(parents=True, exist_ok=True)
    (parsed.out / "rendezvous").unlink(missing_ok=True)
    if parsed.processes == 1:
        _worker(0, parsed, options)
    else:
        os.environ.update(_KEEP_MEMORY | dict(os.environ))
        torch.multiprocessing.spawn(_worker, (parsed, options), nprocs=parsed.processes)


if __name__ == "__main__":
    main()
