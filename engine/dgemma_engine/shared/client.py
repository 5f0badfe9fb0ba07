"""The near end of a shared engine: an `InfillEngine` that attaches to it, and starts it if need be.

`server.py` is the far end. An engine that ends is reported as one in a process of this server's own
is: `EngineDied`, and whoever asks builds another `SharedEngine`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import itertools
import json
import logging
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import EngineUnavailable
from ..process import EngineDied, describe_status
from ..types import (
    CancellationToken,
    DraftStep,
    EngineInfo,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnJointStep,
    OnStep,
)
from ..waiting import Waiting
from . import wire
from .places import FileLock, Place, absolute_model, is_own, peer_uid, place_of
from .wire import frame, from_json, to_json

logger = logging.getLogger(__name__)

# From the start of a process until it listens; the model is loaded after that.
_START_SECONDS = 60.0
# An engine may end, being idle, in the moment when somebody attaches.
_MOST_TRIES = 3
# What the process ends with if another one holds its place; see `command.py`.
STATUS_ALREADY_RUNNING = 75

_Reply = dict[str, Any]


class SharedEngine:
    """An `InfillEngine` that all windows of a user share; several threads may call it.

    Args:
        model: as for `dgemma_engine.load_engine`, like `device`, `dtype` and `quantization`.
        on_death: called once, on a thread of its own, when the engine ends unasked.
        label: what this client is called in the engine's log and by `dgemma-lsp doctor`.
        command: what starts the process, before its options; None never starts one.
        idle_minutes: for an engine that is started: without clients, after which it ends.
    Raises:
        EngineDied: it ended while it loaded.
        DGemmaError: as `load_engine`; or its socket is not to be trusted.
    """

    def __init__(
        self,
        model: str = "default",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        *,
        on_death: Callable[[EngineDied], None] | None = None,
        label: str = "client",
        command: Sequence[str] | None = (sys.executable, "-m", "dgemma_engine"),
        idle_minutes: float = 15.0,
    ) -> None:
        self.place = place_of(model, device, dtype, quantization)
        self._on_death = on_death
        self.label = label
        self._is_closed = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[_Reply | None]] = {}
        self._changing = threading.Lock()  # of `_waiting` and `_is_lost`
        self._writing = threading.Lock()
        self._is_lost = False
        options = ("serve", "--model", absolute_model(model), "--device", device)
        more = ["--dtype", dtype, "--idle-minutes", str(idle_minutes)]
        if quantization is not None:
            more += ["--quantization", quantization]
        full = None if command is None else [*command, *options, *more]
        for attempt in range(1, _MOST_TRIES + 1):
            self._socket = _connect_or_start(self.place, full)
            try:
                self.pid, self._info = self._attach()
                break
            except (OSError, EOFError) as error:
                self._socket.close()
                if attempt == _MOST_TRIES:
                    raise self._death() from error
            except BaseException:
                self._socket.close()
                raise
        self._listener = threading.Thread(target=self._listen, name="dgemma-shared", daemon=True)
        self._listener.start()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        """See `InfillEngine.count_tokens`."""
        message = {"type": "count_tokens", "request": _bare(request), "text": text}
        return from_json(int, self._ask(message), "count")

    def render(self, request: InfillRequest) -> str:
        """See `InfillEngine.render`."""
        return from_json(str, self._ask({"type": "render", "request": _bare(request)}), "text")

    def status(self) -> dict[str, Any]:
        """What the engine says of itself: pid, clients, how many requests wait."""
        status: dict[str, Any] = self._ask({"type": "status"})
        return status

    def encode(self, request: InfillRequest, cancel: CancellationToken | None = None) -> int:
        """See `InfillEngine.encode`; 0 if the engine has anything else to do.

        Raises:
            Cancelled: also when anybody else asks for something.
            EngineDied: as `fill`.
        """
        message = {"type": "encode", "request": _bare(request)}
        return from_json(int, self._ask(message, cancel=cancel), "value")

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
        *,
        document: str = "",
    ) -> InfillResult:
        """See `InfillEngine.fill`.

        Args:
            document: a later fill of this client with the same one takes this one's place.
        Raises:
            Cancelled: also if a later fill took its place, or the engine was busy with others until
                the deadline was over.
            EngineDied: the engine ended; `was_working` if it had begun with this fill.
        """

        def show(step: object) -> None:
            if on_step is not None:
                on_step(from_json(DraftStep, step, "step"))

        message = {**_fill_message("fill", request, on_step), "document": document}
        return from_json(InfillResult, self._ask(message, show, cancel), "result")

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> JointResult:
        """See `InfillEngine.fill_together`.

        Raises:
            Cancelled, EngineDied: as `fill`.
        """

        def show(steps: object) -> None:
            if on_step is not None:
                drafts = steps if isinstance(steps, list) else []
                on_step(tuple(from_json(DraftStep, step, "step") for step in drafts))

        message = _fill_message("fill_together", request, on_step)
        return from_json(JointResult, self._ask(message, show, cancel), "result")

    def close(self) -> None:
        """Detach; the engine ends by itself when nobody is left."""
        self._is_closed = True
        _shut(self._socket)
        if threading.current_thread() is not self._listener:
            self._listener.join(1.0)

    def _ask(
        self,
        message: dict[str, Any],
        on_step: Callable[[object], None] = lambda step: None,
        cancel: CancellationToken | None = None,
    ) -> Any:
        number = next(self._numbers)
        replies: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
        data = frame({**message, "id": number})
        with self._changing:
            if self._is_lost:
                raise self._death()
            self._waiting[number] = replies
        try:
            self._send(data)
            return self._answer(number, replies, on_step, cancel)
        finally:
            with self._changing:
                self._waiting.pop(number, None)

    def _answer(
        self,
        number: int,
        replies: queue.SimpleQueue[_Reply | None],
        on_step: Callable[[object], None],
        cancel: CancellationToken | None,
    ) -> Any:
        has_begun = False
        withdrawal = frame({"type": "cancel", "id": number})
        waiting = Waiting(cancel, lambda: self._send(withdrawal), lambda: _shut(self._socket))
        while True:
            reply = waiting.next(replies)
            if reply is None:
                raise self._death(was_working=has_begun)
            kind = reply.get("type")
            if kind == "began":
                has_begun = True
            elif kind == "step":
                on_step(reply.get("step"))
            elif kind == "error":
                raise wire.error_from_json(reply.get("error"))
            else:
                return reply.get("value")

    def _send(self, data: bytes) -> None:
        try:
            with self._writing:
                self._socket.sendall(data)
        except OSError as error:
            raise self._death() from error

    def _attach(self) -> tuple[int, EngineInfo]:
        """Introduce this client, and wait until the model is loaded.

        Raises:
            OSError: the connection is lost; EOFError: closed at the other end.
        """
        if not is_own(peer_uid(self._socket)):
            raise EngineUnavailable(f"{self.place.socket} is served by another user")
        token = _token(self.place)
        challenge = _receive(self._socket)
        if challenge.get("protocol") != wire.PROTOCOL:
            raise EngineUnavailable(_refusal(challenge))
        nonce = secrets.token_hex(16)
        hello = {
            "type": "hello",
            "protocol": wire.PROTOCOL,
            "proof": wire.proof(token, "client", str(challenge.get("nonce"))),
            "nonce": nonce,
            "label": self.label,
            "pid": os.getpid(),
        }
        self._socket.sendall(frame(hello))
        welcome = _receive(self._socket)
        theirs = str(welcome.get("proof"))
        if not hmac.compare_digest(theirs.encode(), wire.proof(token, "server", nonce).encode()):
            raise EngineUnavailable(_refusal(welcome))
        pid = from_json(int, welcome.get("pid"), "pid")
        self._socket.settimeout(None)  # a checkpoint may take minutes
        ready = _receive(self._socket)
        if ready.get("type") != "ready":
            raise wire.error_from_json(ready.get("error"))
        return pid, from_json(EngineInfo, ready.get("info"), "info")

    def _listen(self) -> None:
        while True:
            try:
                message = _receive(self._socket)
            except (OSError, EOFError, wire.WireError):
                break
            with self._changing:
                replies = self._waiting.get(message.get("id", 0))
            if replies is not None:
                replies.put(message)
        with self._changing:
            self._is_lost = True
            waiting = tuple(self._waiting.values())
        for replies in waiting:
            replies.put(None)
        self._socket.close()
        if not self._is_closed and self._on_death is not None:
            self._on_death(self._death())

    def _death(self, *, was_working: bool = False) -> EngineDied:
        text = "the engine was closed"
        if not self._is_closed:
            text = f"the shared engine ended; its log is {self.place.log}"
        death = EngineDied(text)
        death.was_working = was_working
        return death


def running_status(
    model: str = "default",
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
) -> dict[str, Any] | None:
    """What the shared engine of a model says of itself; None if none runs.

    Raises:
        DGemmaError: its folder or its socket is not to be trusted.
    """
    place = place_of(model, device, dtype, quantization)
    if (connection := _connect(place)) is None:
        return None
    connection.close()
    engine = SharedEngine(
        model, device, dtype, quantization, label="a look at the status", command=None
    )
    try:
        return engine.status()
    finally:
        engine.close()


def _fill_message(
    kind: str, request: InfillRequest | JointRequest, on_step: object
) -> dict[str, Any]:
    seconds = None
    if request.deadline is not None:
        seconds = max(0.0, request.deadline - time.monotonic())
    return {
        "type": kind,
        "request": _bare(request),
        "seconds": seconds,
        "steps": on_step is not None,
    }


def _bare(request: InfillRequest | JointRequest) -> Any:
    return to_json(dataclasses.replace(request, deadline=None))


def _refusal(message: _Reply) -> str:
    if message.get("type") == "refused":
        return f"the shared engine refused: {message.get('message')}"
    return (
        "what answers there is not a shared engine of this version; end it, or restart the editors "
        "that use it"
    )


def _receive(connection: socket.socket) -> _Reply:
    """The next message.

    Raises:
        EOFError: there is none.
        OSError: the connection is lost.
        WireError: it is malformed.
    """
    return wire.parse(_read(connection, wire.frame_length(_read(connection, 4))))


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(length - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _token(place: Place) -> bytes:
    """What the place's engine asks for; empty where its socket alone is enough."""
    try:
        return str(_tcp_address(place)["token"]).encode()
    except FileNotFoundError:
        return b""


def _tcp_address(place: Place) -> dict[str, Any]:
    address = json.loads(place.address.read_text(encoding="utf-8"))
    assert isinstance(address, dict)
    return address


def _connect(place: Place) -> socket.socket | None:
    """A connection to who listens at a place; None if nobody does."""
    try:
        if place.address.exists():
            if _is_deserted(place):  # its port may be somebody else's by now
                return None
            port = int(_tcp_address(place)["port"])
            return socket.create_connection(("127.0.0.1", port), timeout=_START_SECONDS)
        if not hasattr(socket, "AF_UNIX"):
            return None
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_START_SECONDS)
        try:
            connection.connect(str(place.socket))
        except BaseException:
            connection.close()
            raise
        return connection
    except (OSError, ValueError, KeyError):
        return None


def _is_deserted(place: Place) -> bool:
    """Whether no engine holds a place."""
    with FileLock(place.held) as lock:
        return lock.acquire()


def _connect_or_start(place: Place, command: list[str] | None) -> socket.socket:
    """A connection to the engine at a place, which is started if none runs.

    Raises:
        EngineDied: it ended before it listened.
        EngineUnavailable: none runs and none may be started, or it does not listen.
    """
    if (connection := _connect(place)) is not None:
        return connection
    if command is None:
        raise EngineUnavailable("no shared engine runs for this model and device")
    with FileLock(place.starting) as starting:
        # Whoever else starts one holds this; theirs will do.
        if not starting.acquire(_START_SECONDS):
            raise EngineUnavailable(
                f"another process has been starting the shared engine for {_START_SECONDS:.0f} s; "
                f"see {place.log}"
            )
        if (connection := _connect(place)) is not None:
            return connection
        process = _start(place, command)
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if (connection := _connect(place)) is not None:
                return connection
            status = process.poll()
            if status is not None and status != STATUS_ALREADY_RUNNING:
                raise EngineDied(
                    f"the shared engine {describe_status(status)} when it was started; "
                    f"{_last_words(place.log)}"
                )
            time.sleep(0.02)
    raise EngineUnavailable(
        f"the shared engine does not listen after {_START_SECONDS:.0f} s; see {place.log}"
    )


def _start(place: Place, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one and every terminal."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        detached = {"creationflags": flags}
    with place.open_log() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.folder,
            env=environment,
            **detached,
        )
    logger.info("started a shared engine, process %d, log %s", process.pid, place.log)
    # So that it leaves no zombie, should it end before this process does.
    threading.Thread(target=process.wait, name="dgemma-reaper", daemon=True).start()
    return process


def _last_words(log: Path) -> str:
    """The last line of a log, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} (log: {log})"
