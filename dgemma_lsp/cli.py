"""The command line: `serve`, `fill`, `context`, `demo`, `doctor`; `models`, `quantize` and `bench`
from `model_commands.py`; and `eval` from `evaluation/`.

Exit status: 0 done, 1 it could not be done (no torch, a broken checkpoint), 2 what was typed cannot
be used (no such file, a position past the end), 130 interrupted. An error is one line on stderr.
Nothing here imports torch until an engine is needed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import dgemma_engine
from dgemma_engine import (
    Decoder,
    DGemmaError,
    DraftStep,
    InfillEngine,
    InfillRequest,
    InfillResult,
)

from . import __version__
from .attempts import Attempt, attempts_at, make_attempts_at_once
from .context import ContextBudget, build_request
from .engines import build_engine
from .evaluation.commands import eval_group
from .hole import Hole, select_hole, selection_hole
from .ignored import holds_secrets
from .model_commands import bench, engine_options, models, quantize
from .nearby import texts_near
from .postprocess import Rejection
from .related import RelatedText
from .render import FILL_STYLE, CanvasView, in_place, summary
from .settings import ENGINES, Settings, project_folder, read_project
from .source_file import InputError, Location, SourceFile

# The demo is to be watched: each pass stays on the screen at least so long, in seconds.
_DEMO_PASS_SECONDS = 0.15
_HOLE_START, _HOLE_END = "«", "»"


def _place_options(command: Callable[..., None]) -> Callable[..., None]:
    """--engine and --engine-url, where a language server runs."""
    command = click.option(
        "--engine-url", default="", help="Address of that server, http://host:8000/v1."
    )(command)
    return click.option(
        "--engine",
        default="process",
        show_default=True,
        type=click.Choice(ENGINES),
        help="Where the model runs: a process of this server, one that all windows share, or a "
        "vLLM server that is there already.",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgemma-lsp")
def cli() -> None:
    """Fill code in the middle with a text-diffusion model."""


@cli.command()
@engine_options
@_place_options
@click.option("--stdio", is_flag=True, help="Speak LSP on standard input and output (the default).")
@click.option("--tcp", is_flag=True, help="Listen for one client on a TCP port.")
@click.option("--ws", is_flag=True, help="Listen for one client on a WebSocket port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address for --tcp and --ws.")
@click.option(
    "--port",
    default=2087,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port for --tcp and --ws; 0 takes a free one.",
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much is logged; at info and above, no code of yours.",
)
@click.option("--log-file", help="Log to this file and not to standard error.")
@click.option("--trace", help="Write every message to this file, with the code that is in it.")
def serve(
    model: str,
    device: str,
    dtype: str,
    engine: str,
    engine_url: str,
    quantization: str | None,
    stdio: bool,
    tcp: bool,
    ws: bool,
    host: str,
    port: int,
    log_level: str,
    log_file: str | None,
    trace: str | None,
) -> None:
    """Run the language server."""
    if stdio + tcp + ws > 1:
        raise click.UsageError("choose one of --stdio, --tcp and --ws")
    from .server import configure_logging
    from .server import serve as serve_client

    try:
        configure_logging(log_level.upper(), log_file)
        trace_file = open(trace, "a", encoding="utf-8") if trace else None  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}") from error
    try:
        status = serve_client(
            partial(build_engine, dtype=dtype),
            Settings(
                model=model,
                device=device,
                quantization=quantization or "none",
                engine=engine,
                engine_url=engine_url,
            ),
            transport="tcp" if tcp else "ws" if ws else "stdio",
            host=host,
            port=port,
            trace=trace_file,
        )
    except ModuleNotFoundError as error:
        if error.name != "websockets":
            raise
        raise InputError("--ws needs a package: pip install 'dgemma-lsp[ws]'") from error
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    sys.exit(status)


@cli.command()
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
    file, hole = _find_hole(Location.parse(location))
    snapshot = file.snapshot()
    request = build_request(snapshot, hole, ContextBudget(), max_tokens=max_tokens, seed=seed)
    request = dataclasses.replace(
        request,
        max_steps=steps,
        decoder=Decoder(decoder),
        nearby=texts_near(file.path.resolve(), snapshot, hole, Settings()),
    )
    engine = dgemma_engine.load_engine(model, device, dtype, quantization)
    console = Console(stderr=as_json, highlight=False, markup=False)
    prefix, suffix = file.text[: hole.start] + hole.before, hole.after + file.text[hole.end :]

    def run(attempt: Attempt) -> InfillResult:
        shows = watch and attempt.is_shown
        return _run(engine, attempt.request, console, prefix, suffix, watch=shows)

    attempts = attempts_at(snapshot, hole, request, Settings().repairs)
    offer, result = make_attempts_at_once(attempts, run)
    outcome = offer if isinstance(offer, Rejection) else offer[0]
    has_fill = isinstance(outcome, str)
    if write and isinstance(outcome, str):
        file.write(prefix + outcome.replace("\n", snapshot.eol) + suffix)
    if as_json:
        answer = _result_json(file, hole, result, outcome)
        click.echo(json.dumps({**answer, "wrote": write and has_fill}))
        return
    if isinstance(outcome, str):
        console.print(in_place(prefix, Text(outcome, style=FILL_STYLE), suffix))
    else:
        console.print(f"nothing to offer here: {outcome.detail}", style="yellow")
    console.print(summary(result), style="cyan")
    if write:
        done = f"written to {file.path}" if has_fill else f"{file.path} is unchanged"
        console.print(done, style="cyan")


@cli.command()
@click.argument("location")
@engine_options
def context(location: str, model: str, device: str, dtype: str, quantization: str | None) -> None:
    """Print exactly what the model would see of a file.

    LOCATION is as for `fill`. In an editor other open files may be read too; the command
    dgemma.context tells there.
    """
    file, hole = _find_hole(Location.parse(location))
    snapshot = file.snapshot()
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


@cli.command()
@engine_options
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
def demo(model: str, device: str, dtype: str, quantization: str | None, seed: int) -> None:
    """Fill the holes of a sample file and show the canvas as it settles."""
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
    outcomes: list[tuple[str, InfillResult]] = []
    while _HOLE_START in source:
        prefix, rest = source.split(_HOLE_START, maxsplit=1)
        author, suffix = rest.split(_HOLE_END, maxsplit=1)
        # Later holes keep their author's text: one hole is filled at a time.
        request = InfillRequest(
            prefix,
            _without_marks(suffix),
            language_id="python",
            decoder=Decoder.DIFFUSION,  # there is no canvas to watch in any other
            seed=seed,
        )
        console.rule(f"hole {len(outcomes) + 1}")
        result = _run(
            engine,
            request,
            console,
            prefix,
            request.suffix,
            watch=True,
            pass_seconds=_DEMO_PASS_SECONDS if console.is_terminal else 0.0,
        )
        console.print(in_place(prefix, Text(result.text, style=FILL_STYLE), request.suffix))
        console.print(summary(result), style="cyan")
        console.print(Text(f"the author had written: {author}", style="bright_black"))
        outcomes.append((author, result))
        source = prefix + author + suffix
    same = sum(author == result.text for author, result in outcomes)
    times = sorted(result.timings.total_ms for _, result in outcomes)
    console.rule()
    console.print(
        f"{len(outcomes)} holes filled, {same} as their author had, "
        f"median {times[len(times) // 2]:.0f} ms a hole",
        style="bold",
    )
    if model == "default":
        console.print(
            "The model in this package is small and its fills are often wrong; the README says how "
            "often.",
            style="cyan",
        )


@cli.command()
@engine_options
@_place_options
def doctor(
    model: str, device: str, dtype: str, quantization: str | None, engine: str, engine_url: str
) -> None:
    """Tell what is installed, which device and model are used, and whether a fill works."""
    from .doctor import examine

    chosen = Settings(
        model=model,
        device=device,
        quantization=quantization or "none",
        engine=engine,
        engine_url=engine_url,
    )
    report = examine(chosen, dtype)
    console = Console(highlight=False, markup=False)
    for name, value in report.facts:
        console.print(Text.assemble((f"{name:>12}  ", "cyan"), value), soft_wrap=True)
    if report.problem is not None:
        problem = Text.assemble((f"{'problem':>12}  ", "bold red"), report.problem)
        console.print(problem, soft_wrap=True)
        raise SystemExit(1)
    console.print(Text("everything works", style="bold green"))


cli.add_command(eval_group)
for model_command in (models, quantize, bench):
    cli.add_command(model_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    try:
        cli.main(args=arguments, prog_name="dgemma-lsp", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except InputError as error:
        _fail(str(error), 2)
    except DGemmaError as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    click.echo(f"dgemma-lsp: error: {message}", err=True)
    sys.exit(status)


def _find_hole(location: Location) -> tuple[SourceFile, Hole]:
    file = SourceFile.read(location.path)
    start, end = file.span(location)
    if start == end:
        return file, select_hole(file.snapshot(), start, cover_marker=True)
    return file, selection_hole(file.snapshot(), start, end)


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
    """Fill, showing every pass if asked to, each for `pass_seconds` at least."""
    if not watch:
        return engine.fill(request)
    with CanvasView(console, prefix, suffix) as view:

        def show(step: DraftStep) -> None:
            view.show(step)
            time.sleep(pass_seconds)

        return engine.fill(request, on_step=show)


def _result_json(
    file: SourceFile, hole: Hole, result: InfillResult, outcome: str | Rejection
) -> dict[str, Any]:
    lines = file.snapshot().lines

    def place(offset: int) -> dict[str, int]:
        line = lines.line_at(offset)
        return {"line": line + 1, "column": offset - lines.bounds(line)[0] + 1}

    return {
        "path": str(file.path),
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
