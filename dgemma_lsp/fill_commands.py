"""`dgemma-lsp fill`, `context` and `demo`: a hole in a file, filled and shown on a terminal."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import dgemma_engine
from dgemma_engine import Decoder, DraftStep, InfillEngine, InfillRequest, InfillResult

from .attempts import Attempt, attempts_at, make_attempts_at_once
from .context import ContextBudget, build_request
from .document import DocumentSnapshot
from .hole import Hole, select_hole, selection_hole
from .ignored import holds_secrets
from .model_commands import engine_options
from .nearby import texts_near
from .postprocess import Rejection
from .related import RelatedText
from .render import FILL_STYLE, CanvasView, in_place, summary
from .settings import Settings, project_folder, read_project
from .source_file import InputError, Location, SourceFile

# The demo is to be watched: each pass stays on the screen at least so long, in seconds.
_DEMO_PASS_SECONDS = 0.15
_HOLE_START, _HOLE_END = "«", "»"


@click.command()
@click.argument("location")
@engine_options
@click.option("--write", is_flag=True, help="Write the fill into the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--watch", is_flag=True, help="Show the canvas after every pass.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
@click.option("--steps", type=click.IntRange(1), help="Denoising steps of an attempt at most.")
@click.option(
    "--decoder",
    default="auto",
    show_default=True,
    type=click.Choice([decoder.value for decoder in Decoder]),
    help="How; auto takes what the model fills such holes best with.",
)
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1))
def fill(
    location: str,
    model: str,
    device: str,
    dtype: str,
    quantization: str | None,
    write: bool,
    as_json: bool,
    watch: bool,
    seed: int,
    steps: int | None,
    decoder: str,
    max_tokens: int,
) -> None:
    """Fill a hole in a file.

    LOCATION is FILE:LINE:COL for a cursor, or FILE:L1:C1-L2:C2 for a span that is replaced. Lines
    and columns count from 1.
    """
    file, snapshot, hole = _find_hole(Location.parse(location))
    request = build_request(snapshot, hole, ContextBudget(), max_tokens=max_tokens, seed=seed)
    request = dataclasses.replace(
        request,
        max_steps=steps,
        decoder=Decoder(decoder),
        nearby=texts_near(file.path.resolve(), snapshot, hole, Settings()),
    )
    engine = dgemma_engine.load_engine(model, device, dtype, quantization)
    console = Console(stderr=as_json, highlight=False, markup=False)
    outcome, result = _offer(engine, snapshot, hole, request, console=console, watch=watch)
    has_fill = isinstance(outcome, str)
    if write and isinstance(outcome, str):
        prefix, suffix = _around(snapshot, hole)
        file.write(prefix + outcome.replace("\n", snapshot.eol) + suffix)
    if as_json:
        answer = _result_json(file.path, snapshot, hole, result, outcome)
        click.echo(json.dumps({**answer, "wrote": write and has_fill}))
        return
    _show_in_place(console, snapshot, hole, outcome)
    console.print(summary(result), style="cyan")
    if write:
        done = f"written to {file.path}" if has_fill else f"{file.path} is unchanged"
        console.print(done, style="cyan")


@click.command()
@click.argument("location")
@engine_options
def context(location: str, model: str, device: str, dtype: str, quantization: str | None) -> None:
    """Print exactly what the model would see of a file.

    LOCATION is as for `fill`. In an editor other open files may be read too; the command
    dgemma.context tells there.
    """
    file, snapshot, hole = _find_hole(Location.parse(location))
    if holds_secrets(snapshot.uri):
        raise InputError(f"{file.path}: files of this name usually hold secrets, and are not read")
    folder = file.path.resolve().parent
    settings, problems = read_project(project_folder(folder), Settings())
    for problem in problems:
        click.echo(f"dgemma-lsp: warning: {problem}", err=True)
    related = RelatedText().find(snapshot, hole, settings, ())
    budget = ContextBudget(settings.prefix_chars, settings.suffix_chars)
    request = build_request(snapshot, hole, budget, related=related, max_tokens=settings.max_tokens)
    nearby = texts_near(file.path.resolve(), snapshot, hole, settings)
    request = dataclasses.replace(request, nearby=nearby)
    click.echo(f"hole: {hole.role.value} ({hole.kind.value})")
    click.echo(dgemma_engine.load_engine(model, device, dtype, quantization).render(request))


@click.command()
@engine_options
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
def demo(model: str, device: str, dtype: str, quantization: str | None, seed: int) -> None:
    """Fill the holes of a sample file, show the canvas as it settles and what an editor offers."""
    console = Console(highlight=False, markup=False)
    source = resources.files("dgemma_lsp").joinpath("demo/inventory.py.txt").read_text("utf-8")
    console.print("loading the model ...", style="cyan")
    start = time.monotonic()
    engine = dgemma_engine.load_engine(model, device, dtype, quantization)
    info = engine.info
    console.print(
        f"{info.model}: {info.parameters / 1e6:.1f} M parameters on {info.device} in {info.dtype}, "
        f"loaded in {time.monotonic() - start:.1f} s",
        style="cyan",
    )
    pass_seconds = _DEMO_PASS_SECONDS if console.is_terminal else 0.0
    is_default = model == "default"
    num_same = drafted_same = 0
    times: list[float] = []
    while _HOLE_START in source:
        prefix, rest = source.split(_HOLE_START, maxsplit=1)
        author, suffix = rest.split(_HOLE_END, maxsplit=1)
        # Later holes keep their author's text: one hole is filled at a time.
        file = SourceFile(Path("inventory.py"), prefix + _without_marks(suffix))
        snapshot = file.snapshot()
        hole = select_hole(snapshot, len(prefix))
        request = build_request(snapshot, hole, ContextBudget(), seed=seed)
        console.rule(f"hole {len(times) + 1}")
        offer = partial(_offer, engine, snapshot, hole, console=console, pass_seconds=pass_seconds)
        if is_default:  # it writes from left to right: there is no canvas to watch
            drafted, result = offer(
                dataclasses.replace(request, decoder=Decoder.DIFFUSION), watch=True
            )
            drafted_same += drafted == author
            told = repr(drafted) if isinstance(drafted, str) else "nothing"
            passes = f"{result.num_passes} passes, {result.timings.total_ms:.0f} ms"
            console.print(Text(f"by diffusion, {passes}: {told}", style="cyan"))
        outcome, result = offer(request, watch=not is_default)
        _show_in_place(console, snapshot, hole, outcome)
        console.print(f"as offered: {summary(result)}", style="cyan")
        console.print(Text(f"the author had written: {author}", style="bright_black"))
        num_same += outcome == author
        times.append(result.timings.total_ms)
        source = prefix + author + suffix
    console.rule()
    by_diffusion = f" (by diffusion {drafted_same})" if is_default else ""
    console.print(
        f"{len(times)} holes filled, {num_same} as their author had{by_diffusion}, "
        f"median {statistics.median(times):.0f} ms a hole",
        style="bold",
    )
    if is_default:
        console.print(
            "The model in this package is small and its fills are often wrong; the README says how "
            "often.",
            style="cyan",
        )


def _find_hole(location: Location) -> tuple[SourceFile, DocumentSnapshot, Hole]:
    file = SourceFile.read(location.path)
    start, end = file.span(location)
    snapshot = file.snapshot()
    if start == end:
        return file, snapshot, select_hole(snapshot, start, cover_marker=True)
    return file, snapshot, selection_hole(snapshot, start, end)


def _around(snapshot: DocumentSnapshot, hole: Hole) -> tuple[str, str]:
    """The file before and after a hole's text."""
    return snapshot.text[: hole.start] + hole.before, hole.after + snapshot.text[hole.end :]


def _offer(
    engine: InfillEngine,
    snapshot: DocumentSnapshot,
    hole: Hole,
    request: InfillRequest,
    *,
    console: Console,
    watch: bool,
    pass_seconds: float = 0.0,
) -> tuple[str | Rejection, InfillResult]:
    """What there is to offer for a hole, as an editor would that asked for it; see `_run`."""
    around = _around(snapshot, hole)

    def run(attempt: Attempt) -> InfillResult:
        shows = watch and attempt.is_shown
        return _run(
            engine, attempt.request, console, *around, watch=shows, pass_seconds=pass_seconds
        )

    attempts = attempts_at(snapshot, hole, request, Settings().repairs)
    offer, result = make_attempts_at_once(attempts, run)
    return (offer if isinstance(offer, Rejection) else offer[0]), result


def _show_in_place(
    console: Console, snapshot: DocumentSnapshot, hole: Hole, outcome: str | Rejection
) -> None:
    if isinstance(outcome, Rejection):
        console.print(f"nothing to offer here: {outcome.detail}", style="yellow")
        return
    prefix, suffix = _around(snapshot, hole)
    console.print(in_place(prefix, Text(outcome, style=FILL_STYLE), suffix))


def _run(
    engine: InfillEngine,
    request: InfillRequest,
    console: Console,
    prefix: str,
    suffix: str,
    *,
    watch: bool,
    pass_seconds: float = 0.0,
) -> InfillResult:
    """Fill, showing every pass if asked to, each for `pass_seconds` at least.

    What is shown takes time that is not the fill's, and not in its timings.
    """
    if not watch:
        return engine.fill(request)
    shown_ms = 0.0
    with CanvasView(console, prefix, suffix) as view:

        def show(step: DraftStep) -> None:
            nonlocal shown_ms
            start = time.monotonic()
            view.show(step)
            time.sleep(pass_seconds)
            shown_ms += (time.monotonic() - start) * 1000

        result = engine.fill(request, on_step=show)
    timings = result.timings
    timings = dataclasses.replace(
        timings,
        denoise_ms=timings.denoise_ms - shown_ms,
        total_ms=timings.total_ms - shown_ms,
    )
    return dataclasses.replace(result, timings=timings)


def _result_json(
    path: Path,
    snapshot: DocumentSnapshot,
    hole: Hole,
    result: InfillResult,
    outcome: str | Rejection,
) -> dict[str, Any]:
    lines = snapshot.lines

    def place(offset: int) -> dict[str, int]:
        line = lines.line_at(offset)
        return {"line": line + 1, "column": offset - lines.bounds(line)[0] + 1}

    return {
        "path": str(path),
        "start": place(hole.start),
        "end": place(hole.end),
        "kind": hole.kind.value,
        "role": hole.role.value,
        "before": hole.before,
        "after": hole.after,
        "text": outcome if isinstance(outcome, str) else None,
        "rejection": None if isinstance(outcome, str) else outcome.reason.value,
        "token_confidences": [round(value, 4) for value in result.token_confidences],
        "mean_entropy": round(result.mean_entropy, 4),
        "confidence": round(result.confidence, 4),
        "decoder": result.decoder.value,
        "passes": result.num_passes,
        "stop_reason": result.stop_reason.value,
        "encode_ms": round(result.timings.encode_ms, 2),
        "denoise_ms": round(result.timings.denoise_ms, 2),
        "total_ms": round(result.timings.total_ms, 2),
    }


def _without_marks(text: str) -> str:
    return text.replace(_HOLE_START, "").replace(_HOLE_END, "")
