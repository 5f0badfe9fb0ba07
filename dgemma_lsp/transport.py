"""Bytes in, bytes out: stdio, tcp, websockets, one client and then the end.

Framing is read here and not by pygls, which knows `Content-Length` in one spelling only, reads
stdin on the pool of its handlers and leaves stdout open to every print. `rpc.py` takes the
messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

    from .rpc import ExactProtocol

logger = logging.getLogger(__name__)

_READ_SIZE = 65536  # bytes; what a pipe holds on Linux
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Writer(Protocol):
    """What the protocol writes answers to."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


async def converse(
    protocol: ExactProtocol,
    messages: AsyncIterator[bytes],
    writer: Writer,
    *,
    include_headers: bool = True,
) -> int:
    """Serve one client until it sends `exit` or goes away.

    Returns:
        the exit status LSP asks for: 1 after an `exit` without `shutdown`, else 0.
    """
    protocol.set_writer(writer, include_headers)
    async for body in messages:
        try:
            protocol.receive(body)
        except Exception:
            logger.exception("a message was dropped")
        if protocol.exit_code is not None:
            break
        # A handler's first step sees the document as it was at its place in the stream.
        await asyncio.sleep(0)
    await protocol.cancel_requests()
    return protocol.exit_code or 0


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The bodies of a stream of framed messages, until it ends."""
    while (length := await _read_headers(reader)) is not None:
        try:
            yield await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return


async def _read_headers(reader: asyncio.StreamReader) -> int | None:
    """The next message's length; None at the end of the stream."""
    length = None
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            logger.warning("skipped a header line that is too long")
            continue
        except ConnectionError:
            return None
        if not line:
            return None
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
        elif not line.strip() and length is not None:
            return length


def _run(serving: Coroutine[Any, Any, int]) -> int:
    """Run to the end; Ctrl-C cancels it between two steps.

    Python 3.10 would raise KeyboardInterrupt in the middle of whatever runs, and may lose it there.

    Raises:
        KeyboardInterrupt: after everything was cancelled.
    """

    async def interruptible() -> int:
        task = asyncio.current_task()
        assert task is not None
        with contextlib.suppress(NotImplementedError):  # Windows raises it in the ordinary way
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await serving

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def run_stdio(protocol: ExactProtocol) -> int:
    """Serve over stdin and stdout; whatever else prints to stdout lands on stderr."""
    stdin_fd, stdout_fd = _take_over_stdio()
    with os.fdopen(stdout_fd, "wb") as stdout:
        return _run(_serve_stdio(protocol, stdin_fd, _StreamWriter(stdout)))


async def _serve_stdio(protocol: ExactProtocol, stdin_fd: int, writer: _StreamWriter) -> int:
    reader = asyncio.StreamReader()
    # A daemon that reads the bare descriptor: at exit it may still wait for a byte, and must
    # neither keep the process nor hold the lock of a buffered stdin.
    threading.Thread(
        target=_pump,
        args=(stdin_fd, reader, asyncio.get_running_loop()),
        name="dgemma-stdin",
        daemon=True,
    ).start()
    return await converse(protocol, read_messages(reader), writer)


def _pump(fd: int, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            chunk = os.read(fd, _READ_SIZE)
        except OSError:
            chunk = b""
        try:
            if not chunk:
                loop.call_soon_threadsafe(reader.feed_eof)
                return
            loop.call_soon_threadsafe(reader.feed_data, chunk)
        except RuntimeError:
            return  # the loop is closed: nobody reads any more


def _take_over_stdio() -> tuple[int, int]:
    """Move the client's pipes to descriptors of our own.

    After that descriptor 0 is empty and 1 is stderr, for C libraries and child processes as well as
    for `print`.
    """
    sys.stdout.flush()
    stdin_fd, stdout_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(stdin_fd, os.O_BINARY)
        msvcrt.setmode(stdout_fd, os.O_BINARY)
    return stdin_fd, stdout_fd


class _StreamWriter:
    """Writes to a file at once; a client that is gone is no error here, its stdin ends too."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()
        except (BrokenPipeError, ConnectionError):
            logger.info("the client does not read any more")

    def close(self) -> None:
        self._stream.close()


def run_tcp(protocol: ExactProtocol, host: str, port: int) -> int:
    """Serve the first client that connects to a socket; port 0 takes a free one and logs it."""
    return _run(_serve_tcp(protocol, host, port))


async def _serve_tcp(protocol: ExactProtocol, host: str, port: int) -> int:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    taken = False

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        if taken:
            writer.close()
            return
        taken = True
        try:
            code = await converse(protocol, read_messages(reader), writer)
            writer.close()
        except Exception as error:
            if not ended.done():
                ended.set_exception(error)
        else:
            ended.set_result(code)

    server = await asyncio.start_server(connected, host, port)
    logger.info("listening on %s", _addresses(server.sockets))
    try:
        return await ended
    finally:
        server.close()


def run_ws(protocol: ExactProtocol, host: str, port: int) -> int:
    """Serve the first client of a websocket; needs the `websockets` package.

    A web page may connect only if it was itself loaded from this machine.
    """
    return _run(_serve_ws(protocol, host, port))


async def _serve_ws(protocol: ExactProtocol, host: str, port: int) -> int:
    from websockets.asyncio.server import serve as serve_websocket
    from websockets.exceptions import ConnectionClosed

    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    taken = False

    async def received(socket: ServerConnection) -> AsyncIterator[bytes]:
        try:
            while True:
                yield await socket.recv(decode=False)
        except ConnectionClosed:
            return

    async def connected(socket: ServerConnection) -> None:
        nonlocal taken
        if taken:
            await socket.close(1013, "one client at a time")
            return
        taken = True
        writer = _QueuedWriter()
        sender = asyncio.create_task(writer.send_all(socket))
        try:
            code = await converse(protocol, received(socket), writer, include_headers=False)
            writer.close()
            await sender
        except Exception as error:
            if not ended.done():
                ended.set_exception(error)
        else:
            ended.set_result(code)

    async with serve_websocket(
        connected, host, port, process_request=_refuse_foreign_pages, max_size=None
    ) as server:
        logger.info("listening on %s", _addresses(list(server.sockets)))
        return await ended


def _refuse_foreign_pages(socket: ServerConnection, request: Request) -> Response | None:
    origins = request.headers.get_all("Origin")
    if all(urlsplit(origin).hostname in _LOOPBACK for origin in origins):
        return None
    return socket.respond(403, "pages of other hosts may not use this server\n")


class _QueuedWriter:
    """Keeps the order of messages where sending has to be awaited."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def write(self, data: bytes) -> None:
        self._queue.put_nowait(data)

    def close(self) -> None:
        self._queue.put_nowait(None)

    async def send_all(self, socket: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        while (data := await self._queue.get()) is not None:
            try:
                await socket.send(data.decode(), text=True)
            except ConnectionClosed:
                return


def _addresses(sockets: Any) -> str:
    return ", ".join("{}:{}".format(*socket.getsockname()[:2]) for socket in sockets)
