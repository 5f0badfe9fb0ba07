"""`dgemma-lsp models`, `quantize` and `bench`: what is done to models rather than with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import click
from rich.console import Console
from rich.progress import Progress

import dgemma_engine
from dgemma_engine.memory import QUANTIZATIONS

from .benchmark import bench_heading, bench_table
from .models import download_lines, folder_table, known_table, machine_lines

_TABLE_WIDTH = 160


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """--model, --device, --dtype and --quantization, the same wherever an engine is loaded."""
    for option in (
        click.option(
            "--quantization",
            default=None,
            type=click.Choice(QUANTIZATIONS),
            help="Hold the large matrices in so few bits; by default as they are stored.",
        ),
        click.option(
            "--dtype",
            default="auto",
            show_default=True,
            help="auto, float32, bfloat16 or float16.",
        ),
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."
        ),
        click.option(
            "--model",
            default="default",
            show_default=True,
            help="'default' for the small model in this package, or a checkpoint folder.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@engine_options
@click.option(
    "--seconds", default=120.0, show_default=True, type=click.FloatRange(0), help="At most, about."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def bench(
    model: str,
    device: str,
    dtype: str,
    quantization: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Time the passes, fills and prefills of a model on this machine.

    The floor is the time that reading its weights takes at the bandwidth of a copy, measured now:
    with nothing else in the way no pass could be faster.
    """
    console = Console(stderr=as_json, highlight=False, markup=False)
    timed = dgemma_engine.load_bench(model, device, dtype, quantization, seconds)
    console.print(bench_heading(timed), style="cyan", soft_wrap=True)
    rows = []
    with console.status("timing ..."):
        for row in timed.rows():
            rows.append(row)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        _wide(console).print(bench_table(rows))
    for what in timed.left_out:
        console.print(f"left out: {what}", style="yellow")


@click.command()
@click.argument("folders", nargs=-1)
def models(folders: tuple[str, ...]) -> None:
    """Tell which models there are, what they take, what this machine can run, and how to get one.

    FOLDERS are checkpoints of yours that are described instead. Nothing is downloaded, and no
    connection is opened.
    """
    console = Console(highlight=False, markup=False)
    memory = dgemma_engine.memory_of_this_machine()
    for line in machine_lines(memory):
        console.print(line, style="cyan", soft_wrap=True)
    console.print()
    _wide(console).print(folder_table(folders, memory) if folders else known_table(memory))
    console.print(
        "\ncontext: the longest prefix, in tokens, that fits with nothing else in memory; on a CPU "
        "a large model fills a hole in many seconds",
        soft_wrap=True,
    )
    if not folders:
        console.print("\nto download one of them:")
        for text in download_lines():
            console.print(text, soft_wrap=True)


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--format",
    "quantization",
    required=True,
    type=click.Choice(QUANTIZATIONS),
    help="int4 and nvfp4 hold the experts in 4 bits, the other matrices in 8.",
)
@click.option("--device", default="auto", show_default=True, help="Where matrices are quantised.")
@click.option(
    "--max-shard-gb",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of a file, in GB; so much memory is needed.",
)
def quantize(source: str, target: str, quantization: str, device: str, max_shard_gb: float) -> None:
    """Write the checkpoint IN in fewer bits, as the new folder OUT.

    The large matrices are quantised; norms, router and embedding stay as they are. What is
    quantised already stays so. OUT is loaded like any checkpoint: --model OUT.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        work = progress.add_task(quantization)

        def show(done: int, total: int) -> None:
            progress.update(work, completed=done, total=total)

        most = max(1, int(max_shard_gb * 1e9))
        dgemma_engine.quantize_checkpoint(source, target, quantization, device, most, show)
    click.echo(f"{target} is written; use it with --model {target}")


def _wide(console: Console) -> Console:
    """For tables: a terminal that is narrow cuts them, a pipe has no width at all."""
    return Console(highlight=False, markup=False, width=max(console.width, _TABLE_WIDTH))
