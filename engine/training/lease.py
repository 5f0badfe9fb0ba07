"""A whole training run on a GPU that is lent for half an hour, ten minutes a command.

    python -m training.lease carry    --corpus corpus --archive .lease/corpus.tar.xz  # at home
    python -m training.lease check    --archive ... --state /tmp/state --out $OUT     # on the GPU
    python -m training.lease noise    --archive ... --state /tmp/state --out $OUT
    python -m training.lease train    --archive ... --state /tmp/state --out $OUT     # and again
    python -m training.lease evaluate --archive ... --state /tmp/state --out $OUT
    python -m training.lease unpack   --files DIR --checkpoint FOLDER                 # at home

The GPU machine has torch, numpy, tokenizers and safetensors, no network and nothing of ours: the
archive brings the corpus, PYTHONPATH=engine:kernels the code. `check` finds the fastest form that
computes what the plain one does; later commands take it from `--state`. `train` resumes from there,
ends in time, and every few minutes puts the packed checkpoint into `--out`, in few files of at most
16 MiB. `--smoke` runs any of them in seconds, at a tiny size, on a CPU. README.md has the sequence
with its times.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from dgemma_engine import load_engine
from dgemma_engine.types import Decoder

from .corpus import read_documents
from .documents import TokenizedDocument, tokenize
from .fills import held_out_holes, score_fills
from .pack import pack
from .rows import RowSource
from .train import Options, Trainer, packed_run, run

_STARTED = time.monotonic()

_CORPUS_FILES = ("documents.jsonl", "tokenizer.json", "statistics.json")
_SMALL_FILES = "small_files.tar"
_REPORTS = ("check.json", "noise.json", "evaluate.json")
_LARGE_BYTES = 4 * 2**20  # a file above this travels by itself

# Ways to run the same computation, the plain one first.
FORMS: dict[str, dict[str, bool]] = {
    "plain": {},
    "compiled": {"compiled": True},
    "blocks": {"compiled": True, "in_blocks": True},
}
# How far a form's loss and gradient may be from the plain one's, both in bfloat16.
_LOSS_TOLERANCE, _LEAST_COSINE = 0.02, 0.98

# Rows of 1024 document and as many canvas tokens, in shapes that never change, so that the layers
# are compiled once for each phase. 64 rows a step should take half of an H200's memory (estimated;
# `check` measures it).
FULL = Options(
    size="33m",
    minutes=14.0,
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
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in _CORPUS_FILES:
            tar.add(corpus / name, name)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


class Lease:
    """What the commands on the GPU machine share: corpus, options, state."""

    def __init__(
        self,
        archive: Path,
        state: Path,
        out: Path,
        options: Options,
        device: str,
        workers: int = 0,
    ) -> None:
        self.state, self.out, self.options, self.device = state, out, options, device
        self.workers = workers
        self.corpus = state / "corpus"
        state.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        if not (self.corpus / _CORPUS_FILES[-1]).exists():
            with tarfile.open(archive) as tar:
                tar.extractall(self.corpus, filter="data")
        tokenizer = Tokenizer.from_file(str(self.corpus / "tokenizer.json"))
        documents = read_documents(self.corpus / "documents.jsonl")
        self._documents: dict[str, list[TokenizedDocument]] = {
            split: tokenize((d for d in documents if d.split == split), tokenizer)
            for split in ("train", "held_out")
        }
        self._sources = {split: RowSource(own, tokenizer) for split, own in self._documents.items()}
        self._vocab_size = tokenizer.get_vocab_size()
        print(f"ready after {time.monotonic() - _STARTED:.0f} s", flush=True)

    def trainer(self, options: Options, form: str) -> Trainer:
        return Trainer(
            options,
            self._vocab_size,
            self._sources["train"],
            self._sources["held_out"],
            self.device,
            workers=self.workers,
            **FORMS[form],
        )

    def fastest_form(self, default: str) -> str:
        """What `check` chose, if it has run."""
        path = self.state / "check.json"
        return str(json.loads(path.read_text())["choice"]) if path.exists() else default

    def check(self, seconds: float, until_minutes: float = math.inf) -> dict[str, Any]:
        """Tokens per second and memory of every form, and the fastest of those that are right.

        Args:
            seconds: that each is timed for.
            until_minutes: since this command began; no form is tried after that.
        """
        found: dict[str, Any] = {"torch": torch.__version__, "device": self.device}
        expected = self._probe("plain")
        rates: dict[str, int] = {}
        for form in FORMS:
            if time.monotonic() - _STARTED > 60.0 * until_minutes:
                found[form] = {"error": "no time left to try it"}
                continue
            try:
                agreement = _compare(expected, self._probe(form))
                found[form] = {**agreement, **self._throughput(form, seconds)}
                if agreement["agrees"]:
                    rates[form] = found[form]["tokens_per_second"]
            except Exception as error:  # the other forms are still worth knowing
                found[form] = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(form, json.dumps(found[form]), flush=True)
        found["choice"] = max(rates, key=lambda form: rates[form], default="plain")
        self._write(found, "check")
        return found

    def _probe(self, form: str) -> tuple[float, torch.Tensor]:
        """Loss and gradient of the first weights on one batch; of a step's size, since shapes are
        compiled one by one."""
        options = dataclasses.replace(
            self.options, minutes=1e9, steps=0, causal_share=0.0, noise="hybrid"
        )
        result = self.trainer(options, form).probe()
        self._free()
        return result

    def _throughput(self, form: str, seconds: float) -> dict[str, Any]:
        """Of documents and canvases together, which is most of a run."""
        options = dataclasses.replace(self.options, minutes=1e9, steps=0, causal_share=0.0)
        trainer = self.trainer(options, form)
        started = time.monotonic()
        for _ in range(4):  # the first steps compile, with self-conditioning and without
            trainer.train_step()
        began, first_step = time.monotonic(), trainer.progress.step
        while time.monotonic() - began < seconds or trainer.progress.step == first_step:
            losses = trainer.train_step()
            assert losses is not None
            float(losses.total.detach())  # waits for the device
        elapsed = time.monotonic() - began
        progress = trainer.progress
        steps = progress.step - first_step
        tokens = (progress.document_tokens + progress.canvas_tokens) / progress.step * steps
        result: dict[str, Any] = {
            "tokens_per_second": round(tokens / elapsed),
            "seconds_per_step": round(elapsed / steps, 4),
            "warm_up_seconds": round(began - started, 1),
        }
        del trainer, losses
        if self.device.startswith("cuda"):
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        self._free()
        return result

    def _free(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def noise(self, minutes: float, form: str) -> dict[str, Any]:
        """Uniform beside hybrid noise: held-out losses of two short runs from the same start.

        `t1` and `first` can be compared between them: text predicted from nothing but noise.
        Nothing is chosen: the engine's sampler draws uniform noise, so hybrid is an experiment yet.
        """
        found: dict[str, Any] = {}
        self._warm_up(form)
        steps = 0  # the first run takes its minutes, the second as many steps
        for kind in ("uniform", "hybrid"):
            options = dataclasses.replace(self.options, minutes=minutes, noise=kind, steps=steps)
            trainer = self.trainer(options, form)
            while trainer.train_step() is not None:
                pass
            steps = trainer.progress.step
            found[kind] = {"steps": trainer.progress.step, **trainer.evaluate()}
            print(kind, json.dumps(found[kind]), flush=True)
            del trainer
            self._free()
        found["gain of hybrid, t1"] = round(found["uniform"]["t1"] - found["hybrid"]["t1"], 4)
        self._write(found, "noise")
        return found

    def _warm_up(self, form: str) -> None:
        """Compile both phases, so that their first steps cost what others do."""
        if not FORMS[form]:
            return
        trainer = self.trainer(dataclasses.replace(self.options, steps=8, causal_share=0.5), form)
        while trainer.train_step() is not None:
            pass
        del trainer
        self._free()

    def train(self, until_minutes: float, form: str, init_from: Path | None = None) -> None:
        """Go on with the run; pack at every second checkpoint, and what there is at the end.

        Args:
            until_minutes: since this command began, all told but for the last packing.
            form: of `FORMS`.
            init_from: packed checkpoint that a new run starts from.
        """
        self._warm_up(form)
        trainer = self.trainer(self.options, form)
        folder = self.state / "run"
        folder.mkdir(exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            state = torch.load(
                folder / "checkpoint.pt", map_location=self.device, weights_only=True
            )
            trainer.load_state(state)
        elif init_from is not None:
            trainer.start_from(*packed_run(init_from, self.device))
        saved = 0

        def pack_now_and_then() -> None:
            nonlocal saved
            saved += 1
            if saved % 2 == 0:
                self.pack()

        left = until_minutes - (time.monotonic() - _STARTED) / 60.0
        run(trainer, folder, 2.0, True, stop_after_minutes=left, on_save=pack_now_and_then)
        self.pack()

    def pack(self) -> None:
        packed = self.state / "packed"
        is_gpu = self.device.startswith("cuda")
        hardware = f"one {torch.cuda.get_device_name()}" if is_gpu else "a CPU"
        pack(self.state / "run", self.corpus, packed, hardware=hardware)
        bundle(packed, self.out)

    def evaluate(self, num_each: int) -> dict[str, Any]:
        """Held-out losses, and fills of held-out spans by both decoders."""
        checkpoint = torch.load(self.state / "run" / "checkpoint.pt", weights_only=True)
        found: dict[str, Any] = {"losses": checkpoint["progress"]["held_out"][-1]}
        engine = load_engine(str(self.state / "packed"), self.device)
        holes = list(held_out_holes(self._documents["held_out"], num_each))
        for decoder in (Decoder.DIFFUSION, Decoder.LEFT_TO_RIGHT):
            found[decoder.value] = score_fills(engine, holes, decoder)
            print(decoder.value, json.dumps(found[decoder.value]), flush=True)
        self._write(found, "evaluate")
        return found

    def _write(self, found: dict[str, Any], name: str) -> None:
        text = json.dumps(found, indent=1) + "\n"
        for folder in (self.state, self.out):
            (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _compare(
    expected: tuple[float, torch.Tensor], actual: tuple[float, torch.Tensor]
) -> dict[str, Any]:
    loss_error = abs(actual[0] - expected[0])
    cosine = float(F.cosine_similarity(actual[1], expected[1], dim=0))
    return {
        "agrees": loss_error < _LOSS_TOLERANCE and cosine > _LEAST_COSINE,
        "loss_error": round(loss_error, 5),
        "gradient_cosine": round(cosine, 5),
    }


def bundle(folder: Path, out: Path) -> None:
    """Few files: the large ones by themselves, all others in one archive."""
    with tarfile.open(out / _SMALL_FILES, "w") as tar:
        for path in sorted(folder.iterdir()):
            if path.stat().st_size > _LARGE_BYTES:
                (out / path.name).write_bytes(path.read_bytes())
            else:
                tar.add(path, path.name)


def unpack(files: Path, checkpoint: Path) -> None:
    """The inverse of `bundle`, at home; reports of the other commands are left where they are."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    with tarfile.open(files / _SMALL_FILES) as tar:
        tar.extractall(checkpoint, filter="data")
    for path in files.iterdir():
        if path.name not in (_SMALL_FILES, *_REPORTS):
            (checkpoint / path.name).write_bytes(path.read_bytes())


def _build_parser() -> argparse.ArgumentParser:
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
    for name in ("check", "noise", "train", "evaluate"):
        command = commands.add_parser(name)
        command.add_argument("--archive", type=Path, required=True)
        command.add_argument("--state", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--device", default="cuda")
        command.add_argument("--workers", type=int, default=8)
        command.add_argument("--form", choices=FORMS, help="instead of the one that check chose")
        command.add_argument("--smoke", action="store_true", help="tiny, on a CPU, in seconds")
        command.add_argument("--size", help="of initialise.SIZES")
        command.add_argument("--minutes", type=float, help=_MINUTES_HELP[name])
        command.add_argument("--noise-kind", choices=("uniform", "hybrid"), default="uniform")
        command.add_argument(
            "--until", type=float, help="minutes since the command began: train stops, check skips"
        )
        command.add_argument("--init-from", type=Path, help="packed checkpoint to start train from")
        command.add_argument("--holes", type=int, default=60, help="of each kind, for evaluate")
    return parser


_MINUTES_HELP = {
    "check": "of timing each form",
    "noise": "of each run",
    "train": "of the whole schedule",
    "evaluate": "of nothing",
}


def main(arguments: list[str] | None = None) -> None:
    parsed = _build_parser().parse_args(arguments)
    if parsed.command == "carry":
        carry(parsed.corpus, parsed.archive)
        return
    if parsed.command == "unpack":
        unpack(parsed.files, parsed.checkpoint)
        return
    options = SMOKE if parsed.smoke else FULL
    if parsed.size:
        options = dataclasses.replace(options, size=parsed.size)
    torch.set_float32_matmul_precision("high")
    device = "cpu" if parsed.smoke else parsed.device
    lease = Lease(parsed.archive, parsed.state, parsed.out, options, device, parsed.workers)
    form = parsed.form or lease.fastest_form("plain" if parsed.smoke else "compiled")
    if parsed.command == "check":
        lease.check(60.0 * (parsed.minutes or 0.2), parsed.until or 4.0)
    elif parsed.command == "noise":
        lease.noise(parsed.minutes or 1.5, form)
    elif parsed.command == "train":
        lease.options = dataclasses.replace(
            options,
            noise=parsed.noise_kind,
            minutes=parsed.minutes or options.minutes,
        )
        lease.train(parsed.until or 9.2, form, parsed.init_from)
    else:
        lease.evaluate(parsed.holes)


if __name__ == "__main__":
    main()
