"""How long fills take on this machine: diffusion beside left to right, the same weights, one run.

    python engine/benchmarks/cpu_latency.py [--model FOLDER | --size 33m] [--csv results.csv]
    python engine/benchmarks/cpu_latency.py --compiled      # and both by compiled code

Both are told the length, so that they do the same work; they take turns, so that what disturbs one
disturbs the other. The prefix is encoded already, as while typing, but where it says cold. Asserts
nothing about time.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

import dgemma_engine
from dgemma_engine import Decoder, HoleKind, InfillEngine, InfillRequest
from dgemma_engine.compiled import CompiledPass, CompiledStep, compile_in_background, why_not
from dgemma_engine.config import ModelConfig
from dgemma_engine.infill import (
    CHECKPOINTS_FOLDER,
    DEFAULT_CHECKPOINT,
    DiffusionEngine,
    build_engine,
    checkpoint_folder,
)
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.stored_model import our_name_to_stored

Compiled = tuple[CompiledStep | None, CompiledPass | None]
LENGTHS = (4, 8, 16, 24, 48, 64)
_SOURCE = Path(dgemma_engine.__file__).parent / "config.py"
_CUT = "        if self.max_denoising_steps < 1:\n"


def request(length: int, decoder: Decoder, seed: int, *, cold: str = "") -> InfillRequest:
    """A hole of so many tokens in one of the engine's own files; `cold` makes the prefix new."""
    prefix, _, suffix = _SOURCE.read_text("utf-8").partition(_CUT)
    return InfillRequest(
        cold + prefix + _CUT,
        suffix,
        HoleKind.BLOCK,
        language_id="python",
        max_tokens=length,
        num_tokens=length,
        decoder=decoder,
        seed=seed,
    )


def measure(
    engine: DiffusionEngine, repeats: int, compiled: Compiled | None
) -> list[dict[str, object]]:
    """One row for each length and form of decoding; milliseconds."""
    plain: Compiled = (None, None)
    forms = {
        "diffusion": (Decoder.DIFFUSION, plain),
        "left to right": (Decoder.LEFT_TO_RIGHT, plain),
    }
    if compiled is not None:
        forms["diffusion, compiled"] = (Decoder.DIFFUSION, compiled)
        forms["left to right, compiled"] = (Decoder.LEFT_TO_RIGHT, compiled)
    rows = []
    for length in LENGTHS:
        times: dict[str, list[float]] = {form: [] for form in forms}
        passes = {}
        for repeat in range(repeats + 1):
            for form, (decoder, passes_taken) in forms.items():
                engine.model.compiled_step, engine.model.compiled_pass = passes_taken
                result = engine.fill(request(length, decoder, seed=repeat))
                passes[form] = result.num_passes
                if repeat:  # the first one warms the prefix and torch up
                    times[form].append(result.timings.total_ms)
        for form, own in times.items():
            rows.append(
                {
                    "tokens": length,
                    "decoder": form,
                    "passes": passes[form],
                    "median_ms": round(statistics.median(own), 1),
                    "p95_ms": round(sorted(own)[max(0, round(0.95 * len(own)) - 1)], 1),
                }
            )
    return rows


def compiled_forms(engine: DiffusionEngine, model: str) -> Compiled:
    """As the server's engine gets them; it keeps its plain passes.

    Raises:
        SystemExit: they cannot be compiled here; the log says why.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    thread = compile_in_background(engine.model, checkpoint_folder(model), wait_seconds=0.0)
    if thread is not None:
        thread.join()
    compiled = engine.model.compiled_step, engine.model.compiled_pass
    engine.model.compiled_step = engine.model.compiled_pass = None
    if None in compiled:
        sys.exit(f"not all is compiled: {why_not(engine.model) or 'see above'}")
    return compiled


def cold_ms(engine: InfillEngine, repeats: int) -> float:
    """Median of a fill of 8 tokens whose prefix was never seen."""
    times = []
    for repeat in range(repeats):
        asked = request(8, Decoder.DIFFUSION, seed=repeat, cold=f"# {repeat}\n" * 9)
        # Another text in between: nothing of the last prefix is left.
        engine.fill(InfillRequest(f"x = {repeat}", "\n", num_tokens=1, max_tokens=1))
        times.append(engine.fill(asked).timings.total_ms)
    return round(statistics.median(times), 1)


def start_seconds(model: str) -> float:
    """From nothing to the first fill, in a new process."""
    program = (
        "from dgemma_engine import InfillRequest, load_engine\n"
        f"load_engine({model!r}, device='cpu').fill(InfillRequest('x = ', '\\n'))"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True)
    return round(time.monotonic() - started, 2)


@contextmanager
def random_checkpoint(size: str) -> Iterator[Path]:
    """A folder with random weights of one of the trainer's sizes, and the shipped tokenizer."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from training.initialise import build_config, initialise

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = build_config(size, 12288)
        model = DiffusionGemma(ModelConfig.from_json(config))
        initialise(model, torch.Generator().manual_seed(0))
        tensors = {our_name_to_stored(n): t.bfloat16() for n, t in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file in ("tokenizer.json", "generation_config.json", "infill_config.json"):
            shutil.copy(CHECKPOINTS_FOLDER / DEFAULT_CHECKPOINT / file, folder / file)
        yield folder


def report(model: str, repeats: int, path: Path | None, *, is_compiled: bool) -> None:
    engine = build_engine(model, device="cpu")
    info = engine.info
    rows = measure(engine, repeats, compiled_forms(engine, model) if is_compiled else None)
    print(
        f"{info.model}: {info.parameters / 1e6:.1f} M parameters, {info.dtype}, "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n"
    )
    print("| tokens | decoder | passes | ms, median (p95) | times left to right |")
    print("|---|---|---|---|---|")
    for row in rows:
        other = str(row["decoder"]).replace("diffusion", "left to right")
        beside = next(r for r in rows if (r["tokens"], r["decoder"]) == (row["tokens"], other))
        ratio = float(str(row["median_ms"])) / float(str(beside["median_ms"]))
        times = f"{row['median_ms']} ({row['p95_ms']})"
        print(f"| {row['tokens']} | {row['decoder']} | {row['passes']} | {times} | {ratio:.2f} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\ncold prefix, 8 tokens: {cold_ms(engine, repeats)} ms")
    print(f"from nothing to the first fill: {start_seconds(model)} s")
    print(f"memory at most: {memory:.0f} MiB")
    if path is not None:
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            fields = ["model", "dtype", "threads", "torch", "machine", *rows[0]]
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            if is_new:
                writer.writeheader()
            where = {
                "model": info.model,
                "dtype": info.dtype,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            writer.writerows(where | row for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="default", help="'default' or a checkpoint folder")
    parser.add_argument("--size", help="random weights of a size of the trainer's instead")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compiled", action="store_true", help="time compiled code as well")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    if options.size is None:
        report(options.model, options.repeats, options.csv, is_compiled=options.compiled)
        return
    with random_checkpoint(options.size) as folder:
        report(str(folder), options.repeats, options.csv, is_compiled=options.compiled)


if __name__ == "__main__":
    main()
