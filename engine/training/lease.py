"""A whole training run on a GPU that is lent for half an hour, ten minutes a command.

    python -m training.lease carry  --corpus corpus --archive .lease/corpus.tar.xz  # at home
    python -m training.lease check  --archive ... --state /tmp/state --out $OUT     # on the GPU
    python -m training.lease noise  --archive ... --state /tmp/state --out $OUT
    python -m training.lease train  --archive ... --state /tmp/state --out $OUT     # and again
    python -m training.lease unpack --files DIR --checkpoint FOLDER                 # at home

The GPU machine has torch, numpy, tokenizers and safetensors, no network and nothing of ours: the
archive brings the corpus, PYTHONPATH=engine:kernels the code. `train` resumes from `--state`, stops
in time, and puts the packed checkpoint into `--out` in few files of at most 16 MiB, every time.
`--smoke` runs any of them in seconds, at a tiny size, on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from .corpus import read_documents
from .documents import tokenize
from .pack import pack
from .rows import RowSource
from .train import Options, Trainer, run, save_checkpoint

_CORPUS_FILES = ("documents.jsonl", "tokenizer.json", "statistics.json")
_SMALL_FILES = "small_files.tar"
_LARGE_BYTES = 4 * 2**20  # a file above this travels by itself

# Rows of 1024 document and as many canvas tokens, in shapes that never change, so that the layers
# are compiled once for each phase. 64 rows a step should take half of an H200's memory (estimated;
# `check` measures it).
FULL = Options(
    size="33m",
    minutes=22.0,
    tokens_per_step=131_072,
    document_length=1024,
    long_share=0.0,
    muon_lr=0.02,
    adam_lr=3e-3,
    ema=0.998,
)
SMOKE = Options(size="tiny", minutes=0.1, tokens_per_step=1024, document_length=256, long_share=0.0)


def carry(corpus: Path, archive: Path) -> None:
    """Pack a corpus folder into one archive; at most 60 MiB can be brought along."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz") as tar:
        for name in _CORPUS_FILES:
            tar.add(corpus / name, name)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


class Lease:
    """What the commands on the GPU machine share: corpus, options, state."""

    def __init__(
        self, archive: Path, state: Path, out: Path, options: Options, device: str
    ) -> None:
        self.state, self.out, self.options, self.device = state, out, options, device
        self.corpus = state / "corpus"
        state.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if not (self.corpus / _CORPUS_FILES[-1]).exists():
            with tarfile.open(archive) as tar:
                tar.extractall(self.corpus, filter="data")
        tokenizer = Tokenizer.from_file(str(self.corpus / "tokenizer.json"))
        documents = read_documents(self.corpus / "documents.jsonl")
        self._sources = {
            split: RowSource(
                tokenize((d for d in documents if d.split == split), tokenizer), tokenizer
            )
            for split in ("train", "held_out")
        }
        self._vocab_size = tokenizer.get_vocab_size()

    def trainer(self, options: Options, *, compiled: bool, workers: int) -> Trainer:
        return Trainer(
            options,
            self._vocab_size,
            self._sources["train"],
            self._sources["held_out"],
            self.device,
            workers=workers,
            compiled=compiled,
        )

    def check(self, seconds: float, workers: int) -> dict[str, Any]:
        """Tokens per second and memory, plain and compiled, with documents alone and with both."""
        found: dict[str, Any] = {"torch": torch.__version__, "device": self.device}
        for compiled in (False, True):
            for phase, causal_share in (("documents", 1.0), ("both", 0.0)):
                options = dataclasses.replace(
                    self.options, minutes=1e9, causal_share=causal_share, editor_share=0.0
                )
                name = f"{'compiled' if compiled else 'plain'}, {phase}"
                try:
                    found[name] = self._throughput(options, seconds, compiled, workers)
                except Exception as error:  # the other forms are still worth knowing
                    found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
                print(name, json.dumps(found[name]), flush=True)
        _write_json(found, self.out / "check.json")
        return found

    def _throughput(
        self, options: Options, seconds: float, compiled: bool, workers: int
    ) -> dict[str, Any]:
        trainer = self.trainer(options, compiled=compiled, workers=workers)
        started = time.monotonic()
        for _ in range(3):  # the first steps compile, with self-conditioning and without
            trainer.train_step()
        warm_up, tokens, began = time.monotonic() - started, 0, time.monotonic()
        while time.monotonic() - began < seconds:
            losses = trainer.train_step()
            assert losses is not None
            float(losses.total)  # waits for the device
            tokens = trainer.progress.document_tokens + trainer.progress.canvas_tokens
        steps = trainer.progress.step - 3
        elapsed = time.monotonic() - began
        tokens = tokens * steps // trainer.progress.step
        result: dict[str, Any] = {
            "tokens_per_second": round(tokens / elapsed),
            "seconds_per_step": round(elapsed / max(1, steps), 4),
            "warm_up_seconds": round(warm_up, 1),
        }
        if self.device.startswith("cuda"):
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            torch.cuda.reset_peak_memory_stats()
        return result

    def noise(self, minutes: float, *, compiled: bool, workers: int) -> dict[str, Any]:
        """Uniform beside hybrid noise: held-out losses of two short runs from the same start.

        `t1` and `first` can be compared between them: text predicted from nothing but noise.
        """
        found = {}
        for kind in ("uniform", "hybrid"):
            options = dataclasses.replace(self.options, minutes=minutes, noise=kind)
            trainer = self.trainer(options, compiled=compiled, workers=workers)
            while trainer.train_step() is not None:
                pass
            found[kind] = {"steps": trainer.progress.step, **trainer.evaluate()}
            print(kind, json.dumps(found[kind]), flush=True)
        _write_json(found, self.out / "noise.json")
        return found

    def train(self, stop_after_minutes: float, *, compiled: bool, workers: int) -> None:
        """Go on with the run, then pack what there is."""
        trainer = self.trainer(self.options, compiled=compiled, workers=workers)
        folder = self.state / "run"
        folder.mkdir(exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            state = torch.load(
                folder / "checkpoint.pt", map_location=self.device, weights_only=True
            )
            trainer.load_state(state)
        run(trainer, folder, 2.0, is_main=True, stop_after_minutes=stop_after_minutes)
        save_checkpoint(trainer, folder)
        packed = self.state / "packed"
        pack(folder, self.corpus, packed)
        bundle(packed, self.out)


def bundle(folder: Path, out: Path) -> None:
    """Few files: the large ones by themselves, all others in one archive."""
    with tarfile.open(out / _SMALL_FILES, "w") as tar:
        for path in sorted(folder.iterdir()):
            if path.stat().st_size > _LARGE_BYTES:
                (out / path.name).write_bytes(path.read_bytes())
            else:
                tar.add(path, path.name)


def unpack(files: Path, checkpoint: Path) -> None:
    """The inverse of `bundle`, at home."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    with tarfile.open(files / _SMALL_FILES) as tar:
        tar.extractall(checkpoint, filter="data")
    for path in files.iterdir():
        if path.name != _SMALL_FILES:
            (checkpoint / path.name).write_bytes(path.read_bytes())


def _write_json(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="training.lease", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    home = commands.add_parser("carry")
    home.add_argument("--corpus", type=Path, required=True)
    home.add_argument("--archive", type=Path, required=True)
    back = commands.add_parser("unpack")
    back.add_argument("--files", type=Path, required=True)
    back.add_argument("--checkpoint", type=Path, required=True)
    for name in ("check", "noise", "train"):
        command = commands.add_parser(name)
        command.add_argument("--archive", type=Path, required=True)
        command.add_argument("--state", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--device", default="cuda")
        command.add_argument("--workers", type=int, default=8)
        command.add_argument("--plain", action="store_true", help="do not compile")
        command.add_argument("--smoke", action="store_true", help="tiny, on a CPU, in seconds")
        command.add_argument("--size", help="of initialise.SIZES")
        command.add_argument("--noise-kind", choices=("uniform", "hybrid"), default="uniform")
        command.add_argument(
            "--minutes", type=float, help="check: seconds / 60 of each form; else of the schedule"
        )
        command.add_argument("--stop-after", type=float, default=8.5, help="minutes, of train")
    parsed = parser.parse_args(arguments)
    if parsed.command == "carry":
        carry(parsed.corpus, parsed.archive)
        return
    if parsed.command == "unpack":
        unpack(parsed.files, parsed.checkpoint)
        return
    options = dataclasses.replace(SMOKE if parsed.smoke else FULL, noise=parsed.noise_kind)
    if parsed.size:
        options = dataclasses.replace(options, size=parsed.size)
    if parsed.minutes and parsed.command == "train":
        options = dataclasses.replace(options, minutes=parsed.minutes)
    device = "cpu" if parsed.smoke else parsed.device
    torch.set_float32_matmul_precision("high")
    lease = Lease(parsed.archive, parsed.state, parsed.out, options, device)
    compiled = not (parsed.plain or parsed.smoke)
    if parsed.command == "check":
        lease.check(60.0 * (parsed.minutes or 0.25), parsed.workers)
    elif parsed.command == "noise":
        lease.noise(parsed.minutes or 3.5, compiled=compiled, workers=parsed.workers)
    else:
        lease.train(parsed.stop_after, compiled=compiled, workers=parsed.workers)


if __name__ == "__main__":
    main()
