"""`dgemma-lsp eval holes`, `humaneval` and `typing`. The first two, interrupted, report so far."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress

import dgemma_engine
from dgemma_engine import InfillEngine
from dgemma_engine.memory import QUANTIZATIONS

from ..features.quiet import why_quiet
from ..settings import Settings
from ..source_file import InputError
from . import coverage, humaneval, metrics, report
from .holes import BUCKETS, PROSE, EvalHole, read_files, sample_holes
from .methods import METHODS, WHILE_TYPING, Answer, Question, answer
from .sandbox import protections
from .typing import type_holes

_SHOWN = "auto"  # the product: whose confidence decides what is shown, and whose fills are examples

_common_options: tuple[Callable[..., Any], ...] = (
    click.option("--model", default="default", show_default=True, help="Checkpoint folder."),
    click.option("--device", default="auto", show_default=True),
    click.option("--dtype", default="auto", show_default=True),
    click.option("--quantization", default=None, type=click.Choice(QUANTIZATIONS)),
    click.option(
        "--method",
        "methods",
        multiple=True,
        type=click.Choice(METHODS),
        help="Only this one; may be given several times.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
    click.option(
        "--json", "json_path", type=click.Path(path_type=Path), help="Write everything measured."
    ),
    click.option(
        "--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write the tables."
    ),
)


def _with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_common_options):
        command = option(command)
    return command


@click.group("eval")
def eval_group() -> None:
    """Measure how good a model's fills are."""


@eval_group.command("holes")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_with_common_options
@click.option(
    "--count", default=100, show_default=True, type=click.IntRange(1), help="Holes per bucket."
)
@click.option(
    "--bucket", "buckets", multiple=True, type=click.Choice(tuple(BUCKETS)), help="Only this one."
)
@click.option(
    "--examples", default=10, show_default=True, type=click.IntRange(0), help="Fills to show."
)
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path), help="Draw precision over coverage."
)
def eval_holes(
    paths: tuple[Path, ...],
    model: str,
    device: str,
    dtype: str,
    quantization: str | None,
    methods: tuple[str, ...],
    seed: int,
    json_path: Path | None,
    markdown_path: Path | None,
    count: int,
    buckets: tuple[str, ...],
    examples: int,
    plot_path: Path | None,
) -> None:
    """Cut holes out of Python files and fill them again.

    PATHS are files and folders of Python source that the model was not trained on: your own, say.
    """
    metrics.require_rapidfuzz()
    files = read_files(paths)
    engine = dgemma_engine.load_engine(model, device, dtype, quantization)
    chosen = methods or METHODS
    results = _header(engine, seed, [str(path) for path in paths])
    results |= {"buckets": {}, "coverage": None, "examples": []}
    shown: list[tuple[EvalHole, Answer]] = []

    def measure(progress: Progress) -> None:
        sampled = {name: sample_holes(files, name, count, seed) for name in buckets or BUCKETS}
        work = progress.add_task("holes", total=len(chosen) * sum(map(len, sampled.values())))
        for name, holes in sampled.items():
            questions = [
                Question(hole.request(seed), hole.snapshot, hole.hole, hole.middle)
                for hole in holes
            ]
            for method in chosen if holes else ():
                answers = []
                for question in questions:
                    answers.append(answer(method, engine, question))
                    progress.advance(work)
                row = metrics.summarise(holes, answers)
                results["buckets"].setdefault(name, {})[method] = row
                pairs = list(zip(holes, answers, strict=True))
                if method == _SHOWN and name != PROSE:
                    typed = [answer(WHILE_TYPING, engine, question) for question in questions]
                    shown.extend(zip(holes, typed, strict=True))
                if method == (_SHOWN if _SHOWN in chosen else chosen[0]):
                    results["examples"] += [_example(*pair) for pair in pairs[:examples]]

    _until_interrupted(measure)
    if shown:
        results["coverage"] = coverage.examine(*map(list, zip(*shown, strict=True)))
    tables = [report.hole_table(results["buckets"])]
    if results["coverage"] is not None:
        tables += [_coverage_text(results["coverage"]), report.coverage_table(results["coverage"])]
    if examples:
        per_bucket = -(-examples // max(1, len(results["buckets"])))
        picked = [
            example
            for name in results["buckets"]
            for example in [e for e in results["examples"] if e["bucket"] == name][:per_bucket]
        ]
        tables.append(report.example_table(picked[:examples]))
    _put_out(results, tables, json_path, markdown_path)
    if plot_path is not None and results["coverage"] is not None:
        try:
            coverage.plot(results["coverage"], plot_path)
        except ImportError as error:
            raise InputError("--plot needs a package: pip install 'dgemma-lsp[eval]'") from error


@eval_group.command("typing")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="default", show_default=True, help="Checkpoint folder.")
@click.option("--device", default="auto", show_default=True)
@click.option("--keys", default=1000, show_default=True, type=click.IntRange(2))
@click.option(
    "--interval",
    default=0.15,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Seconds between two keys; 0 waits for each answer.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures.")
def eval_typing(
    paths: tuple[Path, ...],
    model: str,
    device: str,
    keys: int,
    interval: float,
    seed: int,
    json_path: Path | None,
) -> None:
    """Type parts of Python files again, through a server of their own.

    PATHS are files and folders, as for `eval holes`. Tells how soon suggestions come, how many are
    right, what repeats or leaves open, and how much memory it takes.
    """
    files = read_files(paths)
    sampled = [
        sample_holes(files, name, 50, seed) for name in BUCKETS if name not in ("block", PROSE)
    ]
    # In comments and documentation the server is quiet; that is not what is to be measured.
    holes = [
        hole
        for group in zip(*sampled, strict=False)
        for hole in group
        if why_quiet(hole.snapshot, hole.hole, Settings()) is None
    ]
    if not holes:
        raise InputError("these files have nothing to type again; name more Python files")
    command = (sys.executable, "-m", "dgemma_lsp", "serve", "--log-level", "warning")
    options = ("--model", model, "--device", device)
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        work = progress.add_task("typing", total=keys)
        typing = asyncio.run(
            type_holes(
                holes,
                (*command, *options),
                interval=interval,
                most_keys=keys,
                on_key=lambda: progress.advance(work),
            )
        )
    summary = typing.summary()
    if json_path is not None:
        json_path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, value in summary.items():
        click.echo(f"{name:>28}  {value}")


@eval_group.command("humaneval")
@click.argument("path", type=click.Path(path_type=Path))
@_with_common_options
@click.option("--limit", type=click.IntRange(1), help="Only so many problems.")
@click.option(
    "--allow-code-execution",
    is_flag=True,
    help="Run what the model wrote, in a guarded process. Needed: the score is made of it.",
)
def eval_humaneval(
    path: Path,
    model: str,
    device: str,
    dtype: str,
    quantization: str | None,
    methods: tuple[str, ...],
    seed: int,
    json_path: Path | None,
    markdown_path: Path | None,
    limit: int | None,
    allow_code_execution: bool,
) -> None:
    """Fill the holes of a HumanEval-Infilling file and run its tests.

    PATH is a .jsonl or .jsonl.gz of the benchmark: single-line, multi-line or random-span.
    """
    problems = humaneval.read_problems(path)[:limit]
    if not allow_code_execution:
        raise InputError(
            "this runs programs that the model wrote. They are guarded by: "
            f"{protections()}. Say --allow-code-execution if that is good enough here"
        )
    engine = dgemma_engine.load_engine(model, device, dtype, quantization)
    results = _header(engine, seed, [str(path)])
    results |= {"guards": protections(), "files": {}}
    chosen = methods or METHODS

    def measure(progress: Progress) -> None:
        work = progress.add_task("problems", total=len(problems) * (1 + len(chosen)))
        valid = []
        for problem in problems:  # a benchmark whose own answers fail measures nothing
            valid.append(problem.is_solved_by(problem.canonical_solution))
            progress.advance(work)
        results["reference_solutions_pass"] = metrics.Share.of(valid).percent
        for method in chosen:
            answers, solved = [], []
            for problem in problems:
                question = Question(
                    problem.request(seed),
                    problem.snapshot,
                    problem.hole,
                    problem.canonical_solution,
                )
                own = answer(method, engine, question)
                answers.append(own)
                solved.append(problem.is_solved_by(own.text))
                progress.advance(work)
            row = humaneval.summarise(problems, answers, solved)
            results["files"].setdefault(path.name, {})[method] = row

    _until_interrupted(measure)
    tables = [report.humaneval_table(results["files"])]
    tables.append(
        f"The benchmark's own solutions pass: {results.get('reference_solutions_pass', 0)} %.\n"
    )
    _put_out(results, tables, json_path, markdown_path)


def _header(engine: InfillEngine, seed: int, paths: list[str]) -> dict[str, Any]:
    info = engine.info
    return {
        "model": info.model,
        "parameters": info.parameters,
        "device": info.device,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "strategy": info.strategy,
        "paths": paths,
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("dgemma-lsp", "torch")},
    }


def _until_interrupted(measure: Callable[[Progress], None]) -> None:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        try:
            measure(progress)
        except KeyboardInterrupt:
            click.echo("interrupted: what follows is what was done", err=True)


def _put_out(
    results: dict[str, Any], tables: list[str], json_path: Path | None, markdown_path: Path | None
) -> None:
    text = "\n".join(tables)
    try:
        if json_path is not None:
            json_path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if markdown_path is not None:
            markdown_path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}") from error
    console = Console()
    if sys.stdout.isatty():
        console.print(Markdown(text))
    else:
        click.echo(text, nl=False)


def _coverage_text(found: dict[str, Any]) -> str:
    threshold = found["threshold"]
    if threshold is None:
        return "No threshold makes half of the suggestions right.\n"
    return (
        f"Shown while typing above a confidence of {threshold:.2f}, fitted on "
        f"{found['fitted_on']} of the holes so that half are right; on the others:\n"
    )


def _example(hole: EvalHole, own: Answer) -> dict[str, str]:
    return {
        "bucket": hole.bucket,
        "source": hole.source,
        "before": hole.before[-80:],
        "fill": own.text,
        "was": hole.middle,
        "after": hole.after[:60],
    }
