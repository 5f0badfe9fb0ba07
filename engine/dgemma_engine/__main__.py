"""`dgemma-engine`: the shared engine from the command line.

Exit status: 0 done, 1 it could not be done, 2 what was typed cannot be used, 75 an engine runs
there already. Nothing here imports torch until the engine is loaded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys

import click

from .errors import DGemmaError, EngineUnavailable, RequestError
from .memory import QUANTIZATIONS
from .shared.client import STATUS_ALREADY_RUNNING, running_status
from .shared.places import HAS_UNIX_SOCKETS, FileLock, Place, place_of
from .shared.server import AlreadyRunning, Background, SharedServer
from .shared.server import serve as serve_clients
from .types import ManyClientEngine
from .worker import compile_later

_TAKE_OVER_SECONDS = 30.0

_MODEL = click.option(
    "--model",
    default="default",
    show_default=True,
    help="'default' for the small model in this package, or a checkpoint folder.",
)
_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."
)
_QUANTIZATION = click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="Hold the large matrices in so few bits; by default as they are stored.",
)
_DTYPE = click.option(
    "--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """One model for all windows of this user."""


@cli.command()
@_MODEL
@_DEVICE
@_DTYPE
@_QUANTIZATION
@click.option(
    "--idle-minutes",
    type=click.FloatRange(0),
    help="Without clients, after which it ends; 0 for never.  [default: 15; with --http, 0]",
)
@click.option(
    "--cache-mib",
    default=2048,
    show_default=True,
    type=click.IntRange(1),
    help="Memory for what is kept of the clients' last prompts.",
)
@click.option(
    "--tcp", is_flag=True, help="Loopback and a token in a private file, not a Unix socket."
)
@click.option("--http", metavar="HOST:PORT", help="Speak HTTP there too, on loopback.")
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Fill for so many clients at once; 1 for one by one.  [default: as the device gains]",
)
@click.option("--replace", is_flag=True, help="End the engine that runs there first, if any.")
@click.option("--no-token", is_flag=True, help="Let every program of this machine use --http.")
@click.option(
    "--context-chars",
    default=8000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Characters before a hole that --http reads at most; a quarter of it after.",
)
def serve(
    model: str,
    device: str,
    dtype: str,
    quantization: str | None,
    idle_minutes: float | None,
    cache_mib: int,
    tcp: bool,
    http: str | None,
    batch: int | None,
    replace: bool,
    no_token: bool,
    context_chars: int,
) -> None:
    """Hold one model, and fill for all who attach."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=os.environ.get("DGEMMA_LOG_LEVEL", "INFO"),
    )
    place = place_of(model, device, dtype, quantization)
    more: tuple[Background, ...] = ()
    if http is not None:
        more = (_http(http, no_token, context_chars, place),)
    elif no_token:
        raise click.UsageError("--no-token is for --http")
    if idle_minutes is None:
        idle_minutes = 0.0 if http is not None else 15.0

    if replace:
        more += (_take_over(model, device, dtype, quantization, place),)

    def load() -> ManyClientEngine:
        from . import load_engine

        engine = load_engine(model, device, dtype, quantization)
        compile_later(engine, model)
        engine.limit_caches(cache_mib << 20)
        return engine

    serve_clients(
        load,
        place,
        idle_seconds=idle_minutes * 60 or None,
        over_tcp=tcp or not HAS_UNIX_SOCKETS,
        batch=batch,
        more=more,
    )


@cli.command()
@_MODEL
@_DEVICE
@_DTYPE
@_QUANTIZATION
def status(model: str, device: str, dtype: str, quantization: str | None) -> None:
    """Tell whether an engine of this model runs, and who uses it."""
    found = running_status(model, device, dtype, quantization)
    click.echo("none runs" if found is None else json.dumps(found, indent=2))


@cli.command()
@_MODEL
@_DEVICE
@_DTYPE
@_QUANTIZATION
def stop(model: str, device: str, dtype: str, quantization: str | None) -> None:
    """End the engine of this model. Windows that use it start another one."""
    found = running_status(model, device, dtype, quantization)
    if found is None:
        click.echo("none runs")
        return
    os.kill(found["pid"], signal.SIGTERM)
    click.echo(f"process {found['pid']} was told to end")


def _take_over(
    model: str, device: str, dtype: str, quantization: str | None, place: Place
) -> Background:
    """End the engine that runs at a place; windows start no other one before this one listens."""
    starting = FileLock(place.starting)
    if not starting.acquire(_TAKE_OVER_SECONDS):
        raise EngineUnavailable(f"another process is starting an engine; see {place.log}")
    if (found := running_status(model, device, dtype, quantization)) is not None:
        os.kill(found["pid"], signal.SIGTERM)

    async def listens(server: SharedServer) -> None:
        starting.release()
        await asyncio.Event().wait()

    return listens


def _http(address: str, no_token: bool, context_chars: int, place: Place) -> Background:
    try:
        from .shared.http import HttpOptions, http_server, kept_token, loopback_listener
        from .shared.http_requests import ContextLimits
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise click.UsageError("--http needs packages: pip install 'dgemma-lsp[http]'") from error
    try:
        listener = loopback_listener(address)
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    limits = ContextLimits(context_chars, max(1, context_chars // 4))
    return http_server(
        listener, place, HttpOptions(None if no_token else kept_token(place), limits)
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its status."""
    code = _run(arguments)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a pass that takes long keeps a thread, and that the process


def _run(arguments: list[str] | None) -> int:
    try:
        cli.main(args=arguments, prog_name="dgemma-engine", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except AlreadyRunning as error:
        click.echo(f"dgemma-engine: {error}; --replace ends it", err=True)
        return STATUS_ALREADY_RUNNING
    except (DGemmaError, OSError) as error:
        click.echo(f"dgemma-engine: error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    main()
