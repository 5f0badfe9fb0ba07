"""The process that holds the model: who may attach, what they may say, and when it ends.

One event loop reads and writes; `desk.py` gives turns to the one engine. A client that breaks the
protocol loses its connection, and nothing else does. `client.py` is the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import DGemmaError, EngineUnavailable
from ..types import DraftStep, InfillRequest, JointRequest, ManyClientEngine
from . import wire
from .desk import Desk, Job, LoadEngine, check_in_time
from .places import HAS_UNIX_SOCKETS, FileLock, Place, is_own, peer_uid, write_private
from .wire import WireError, frame, from_json, to_json

logger = logging.getLogger(__name__)

# Who says nothing after connecting is let go.
_HELLO_SECONDS = 10.0
# An engine that is about to end holds its lock so long at most.
_LOCK_SECONDS = 5.0
_MOST_CLIENTS = 256
# Drafts are not sent to a client that has so much left to read; one with more is let go.
_SLOW_BYTES, _STUCK_BYTES = 1 << 20, 64 << 20
_MOST_SECONDS = 86_400.0  # of a deadline
# More is asked for by mistake; the settings allow as many tokens, and fewer steps.
_MOST_TOKENS = 4096
_MOST_HOLES = 256
_MOST_STEPS = 1024

_Request = TypeVar("_Request", InfillRequest, JointRequest)
Background = Callable[["SharedServer"], Awaitable[None]]


class AlreadyRunning(EngineUnavailable):
    """Another process holds the place of this engine."""


@dataclass(eq=False)
class _Client:
    """A connection: its name in the queue, what it says of itself, its jobs by their number."""

    name: str
    writer: asyncio.StreamWriter
    label: str = "?"
    pid: int | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; a client that does not read loses its connection."""
        if self.writer.is_closing():
            return
        self.writer.write(frame(message))
        if self.writer.transport.get_write_buffer_size() > _STUCK_BYTES:
            logger.warning("client %s does not read; it is let go", self.label)
            self.writer.transport.abort()

    @property
    def is_slow(self) -> bool:
        return self.writer.transport.get_write_buffer_size() > _SLOW_BYTES


class SharedServer:
    """Serves clients until it is idle for too long, or told to stop.

    Args:
        load: builds the engine, on a thread of its own.
        idle_seconds: without clients, after which it ends; None for never.
        batch: see `Desk`.

    Attributes:
        desk: the queue before the engine.
        last_use: `time.monotonic()` of the last sign of a client.
    """

    def __init__(
        self, load: LoadEngine, *, idle_seconds: float | None, batch: int | None = None
    ) -> None:
        self.desk = Desk(load, batch)
        self._idle_seconds = idle_seconds
        self._clients: set[_Client] = set()
        self._numbers = itertools.count(1)
        self._stopped = asyncio.Event()
        self._listening: asyncio.Server | None = None
        self._token: bytes | None = None
        self.last_use = time.monotonic()

    def stop(self) -> None:
        """End as soon as what is being said is said."""
        self._stopped.set()

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    async def run(self, listener: socket.socket, token: bytes | None, *more: Background) -> None:
        """Serve until the end.

        Args:
            listener: bound; listens from now on.
            token: what clients have to know, None where the listener is a private Unix socket.
            more: what else runs as long as the engine does.
        Raises:
            DGemmaError: the engine cannot be loaded; the clients were told too.
        """
        self._token = token
        if listener.family == getattr(socket, "AF_UNIX", None):
            self._listening = await asyncio.start_unix_server(self._converse, sock=listener)
        else:
            self._listening = await asyncio.start_server(self._converse, sock=listener)
        beside = [asyncio.ensure_future(start(self)) for start in more]
        stopped = asyncio.ensure_future(self._stopped.wait())
        tasks: list[asyncio.Future[Any]] = [*beside, stopped]
        if self._idle_seconds is not None:
            tasks.append(asyncio.ensure_future(self._until_idle(self._idle_seconds)))
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            for number in (signal.SIGTERM, signal.SIGINT):  # not on Windows, not on a thread
                loop.add_signal_handler(number, self.stop)
        try:
            loaded: set[asyncio.Future[Any]] = {self.desk.ready, stopped}
            await asyncio.wait(loaded, return_when=asyncio.FIRST_COMPLETED)
            if not self.desk.ready.done():
                return
            if (failure := self.desk.ready.exception()) is not None:
                await asyncio.sleep(0.1)  # the clients are told by their own tasks
                raise failure
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._listening.close()
            for task in tasks:
                task.cancel()
            for client in tuple(self._clients):
                client.writer.transport.abort()
            self.desk.close()

    def status(self) -> dict[str, Any]:
        """For `dgemma-lsp doctor` and people."""
        return {
            "pid": os.getpid(),
            "clients": [{"label": one.label, "pid": one.pid} for one in self._clients],
            "busy": self.desk.is_busy,
            "waiting": self.desk.num_waiting,
            "filled": self.desk.counts.outcomes["filled"],
        }

    async def _until_idle(self, seconds: float) -> None:
        while True:
            if self._clients or self.desk.is_busy or not self.desk.ready.done():
                self.last_use = time.monotonic()
            left = self.last_use + seconds - time.monotonic()
            if left <= 0:
                logger.info("nobody used the engine for %.0f s; it ends", seconds)
                return
            await asyncio.sleep(min(left, 1.0))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(f"client {next(self._numbers)}", writer)
        self._clients.add(client)
        try:
            await self._admit(client, reader)
            while True:
                self._take(client, await _read(reader))
        except WireError as error:
            logger.warning("client %s is let go: %s", client.label, error)
            with contextlib.suppress(OSError, RuntimeError):
                client.send({"type": "refused", **wire.error_to_json(error)})
                await asyncio.wait_for(writer.drain(), 1.0)
        except (OSError, EOFError, asyncio.TimeoutError):
            logger.debug("client %s left", client.label)
        except DGemmaError:
            logger.info("client %s was told that the engine cannot be loaded", client.label)
        except Exception as error:
            logger.error("client %s is let go: %s", client.label, type(error).__name__)
            logger.debug("the trace", exc_info=True)
        finally:
            self._clients.discard(client)
            self.last_use = time.monotonic()
            self.desk.leave(client.name)
            for task in tuple(client.tasks):
                task.cancel()
            writer.close()

    async def _admit(self, client: _Client, reader: asyncio.StreamReader) -> None:
        """Until the client knows that the engine is loaded.

        Raises:
            WireError: it may not attach.
            DGemmaError: the engine cannot be loaded.
        """
        connection = client.writer.get_extra_info("socket")
        if not is_own(peer_uid(connection)):
            raise WireError("the shared engine serves its own user only")
        if len(self._clients) > _MOST_CLIENTS:
            raise WireError(f"the shared engine has {_MOST_CLIENTS} clients already")
        nonce = secrets.token_hex(16)
        client.send({"type": "challenge", "nonce": nonce, "protocol": wire.PROTOCOL})
        hello = await asyncio.wait_for(_read(reader), _HELLO_SECONDS)
        if hello.get("type") != "hello" or hello.get("protocol") != wire.PROTOCOL:
            raise WireError(f"the first message must be a hello of protocol {wire.PROTOCOL}")
        answer = from_json(str, hello.get("proof"), "hello.proof")
        theirs = from_json(str, hello.get("nonce"), "hello.nonce")
        token = self._token or b""
        if not hmac.compare_digest(answer.encode(), wire.proof(token, "client", nonce).encode()):
            raise WireError("the token is wrong")
        client.label = from_json(str, hello.get("label", "?"), "hello.label")[:80]
        client.pid = from_json(int, hello.get("pid", 0), "hello.pid")
        client.send(
            {
                "type": "welcome",
                "proof": wire.proof(token, "server", theirs),
                "pid": os.getpid(),
                "loading": not self.desk.ready.done(),
            }
        )
        try:
            info = await asyncio.shield(self.desk.ready)
        except DGemmaError as error:
            if self._listening is not None:
                self._listening.close()  # whoever is told and tries again starts another one
            client.send({"type": "failed", "error": wire.error_to_json(error)})
            await client.writer.drain()
            raise
        client.send({"type": "ready", "info": to_json(info)})
        logger.info("client %s attached, %d in all", client.label, len(self._clients))

    def _take(self, client: _Client, message: dict[str, Any]) -> None:
        """Do what a message asks for.

        Raises:
            WireError: nobody can say to what an answer would belong.
        """
        number = from_json(int, message.get("id"), "id")
        kind = message.get("type")
        if kind == "cancel":
            if (job := client.jobs.get(number)) is not None:
                self.desk.withdraw(job, "the request was withdrawn")
            return
        if kind == "status":
            client.send({"type": "result", "id": number, "value": self.status()})
            return
        if number in client.jobs:
            raise WireError("id is that of a request which is not answered yet")
        try:
            job = self._submit(client, number, kind, message)
        except DGemmaError as error:
            client.send({"type": "error", "id": number, "error": wire.error_to_json(error)})
            return
        client.jobs[number] = job
        task = asyncio.ensure_future(self._answer(client, number, job))
        client.tasks.add(task)
        task.add_done_callback(client.tasks.discard)

    def _submit(self, client: _Client, number: int, kind: object, message: dict[str, Any]) -> Job:
        if kind == "fill":
            request = _read_request(InfillRequest, message)
            return self._submit_fill(client, number, request, message)
        if kind == "fill_together":
            several = _read_request(JointRequest, message)
            if len(several.kinds) > _MOST_HOLES:
                raise WireError(f"request must have at most {_MOST_HOLES} holes")
            return self._submit_fill(client, number, several, message)
        if kind not in ("encode", "count_tokens", "render"):
            raise WireError(
                "type must be fill, fill_together, encode, count_tokens, render, status or cancel"
            )
        request = _read_request(InfillRequest, message)
        if kind == "encode":
            return self.desk.submit_idle(
                client.name,
                lambda engine, token: engine.encode(request, token, client=client.name),
                otherwise=0,
            )
        if kind == "render":
            return self.desk.submit(client.name, lambda engine, _: engine.render(request))
        text = from_json(str, message.get("text"), "text")
        return self.desk.submit(client.name, lambda engine, _: engine.count_tokens(request, text))

    def _submit_fill(
        self,
        client: _Client,
        number: int,
        request: InfillRequest | JointRequest,
        message: dict[str, Any],
    ) -> Job:
        seconds = message.get("seconds")
        deadline = None
        if seconds is not None:
            seconds = from_json(float, seconds, "seconds")
            deadline = time.monotonic() + min(max(0.0, seconds), _MOST_SECONDS)
        timed = wire.with_deadline(request, deadline)
        document = from_json(str, message.get("document", ""), "document")
        wants_steps = from_json(bool, message.get("steps", False), "steps")
        loop = asyncio.get_running_loop()

        def later(function: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(function, *arguments)

        def begin() -> None:
            later(client.send, {"type": "began", "id": number})

        def show(step: DraftStep | tuple[DraftStep, ...]) -> None:
            later(_send_step, client, number, job, step)

        on_step = show if wants_steps else None
        if isinstance(timed, InfillRequest):
            job = self.desk.submit_fill(
                client.name, timed, on_step, document=document, on_begin=begin
            )
            return job

        def work(engine: ManyClientEngine, token: Any) -> Any:
            check_in_time(timed.deadline)
            return engine.fill_together(timed, on_step, token, client=client.name)

        job = self.desk.submit(client.name, work, document=document, on_begin=begin)
        return job

    async def _answer(self, client: _Client, number: int, job: Job) -> None:
        try:
            value = to_json(await job.future)
            message = {"type": "result", "id": number, "value": value}
            frame(message)
        except DGemmaError as error:
            message = {"type": "error", "id": number, "error": wire.error_to_json(error)}
        finally:
            del client.jobs[number]
        client.send(message)


def _read_request(kind: type[_Request], message: dict[str, Any]) -> _Request:
    request = from_json(kind, message.get("request"), "request")
    if request.max_tokens > _MOST_TOKENS:
        raise WireError(f"request.max_tokens must be at most {_MOST_TOKENS}")
    if request.max_steps is not None and request.max_steps > _MOST_STEPS:
        raise WireError(f"request.max_steps must be at most {_MOST_STEPS}")
    return request


def _send_step(
    client: _Client, number: int, job: Job, step: DraftStep | tuple[DraftStep, ...]
) -> None:
    if not client.is_slow and not job.future.done():
        client.send({"type": "step", "id": number, "step": to_json(step)})


async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message.

    Raises:
        EOFError: there is none.
        WireError: it is malformed.
    """
    length = wire.frame_length(await reader.readexactly(4))
    return wire.parse(await reader.readexactly(length))


def serve(
    load: LoadEngine,
    place: Place,
    *,
    idle_seconds: float | None,
    over_tcp: bool = not HAS_UNIX_SOCKETS,
    batch: int | None = None,
    more: tuple[Background, ...] = (),
) -> None:
    """Hold a place and serve there until the end.

    Args:
        load: builds the engine.
        place: its files.
        idle_seconds: see `SharedServer`.
        over_tcp: listen on loopback, with a token in a private file, and not on a Unix socket.
        batch: see `Desk`.
        more: what runs beside, as the HTTP server.
    Raises:
        AlreadyRunning: another process holds it.
        DGemmaError: the engine cannot be loaded.
    """
    lock = FileLock(place.held)
    if not lock.acquire(_LOCK_SECONDS):
        raise AlreadyRunning(f"an engine runs there already ({place.held} is locked)")
    token: bytes | None = None
    for left in (place.socket, place.address, place.http):  # of an engine that was killed
        left.unlink(missing_ok=True)
    if over_tcp:
        listener = socket.create_server(("127.0.0.1", 0))
        text = secrets.token_hex(32)
        token = text.encode()
        address = {"port": listener.getsockname()[1], "token": text}
        write_private(place.address, json.dumps(address))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place.socket))  # nobody can connect before it listens
        place.socket.chmod(0o600)

    async def run() -> None:
        server = SharedServer(load, idle_seconds=idle_seconds, batch=batch)
        await server.run(listener, token, *more)

    logger.info("the shared engine %s serves as process %d", place.name, os.getpid())
    try:
        asyncio.run(run())
    finally:
        for left in (place.socket, place.address, place.http):
            left.unlink(missing_ok=True)
        listener.close()
        logging.shutdown()
        sys.stderr.flush()
        lock.release()
