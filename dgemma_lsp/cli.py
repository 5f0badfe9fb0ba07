"""The command line: `serve` and `doctor`; `fill`, `context` and `demo` from `fill_commands.py`;
`models`, `quantize` and `bench` from `model_commands.py`; and `eval` from `evaluation/`.

Exit status: 0 done, 1 it could not be done (no torch, a broken checkpoint), 2 what was typed cannot
be used (no such file, a position past the end), 130 interrupted. An error is one line on stderr.
Nothing here imports torch until an engine is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import click
from rich.console import Console
from rich.text import Text

from dgemma_engine import DGemmaError

from . import __version__
from .engines import build_engine
from .evaluation.commands import eval_group
from .fill_commands import context, demo, fill
from .model_commands import bench, engine_options, models, quantize
from .settings import ENGINES, Settings
from .source_file import InputError


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
for command in (fill, context, demo, models, quantize, bench):
    cli.add_command(command)


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
