"""An engine in a process of its own, behind the same protocol.

The kernel may kill a process for its memory, a driver may abort it; who asked lives on, is told
why, and can start another. `worker.py` is the far end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .errors import EngineUnavailable
from .types import (
    CancellationToken,
    EngineInfo,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnJointStep,
    OnStep,
)
from .waiting import Waiting
from .worker import (
    NO_QUANTIZATION,
    Ask,
    Encode,
    Fill,
    Outcome,
    Ready,
    Step,
    Withdraw,
    read_frame,
    write_frame,
)


class EngineDied(EngineUnavailable):
    """The engine's process ended; the message says how.

    Attributes:
        was_working: it had begun with what was asked; else that can be asked of another one.
    """

    was_working = True


class EngineProcess:
    """An `InfillEngine` whose work is done in another process.

    Args:
        model: as for `dgemma_engine.load_engine`, like `device`, `dtype` and `quantization`.
        on_death: called once, on a thread of its own, when the process ends unasked.
        command: of the far end, before its four arguments.
    Raises:
        EngineDied: it ended while it loaded.
        DGemmaError: as `load_engine`.
    """

    def __init__(
        self,
        model: str = "default",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        *,
        on_death: Callable[[EngineDied], None] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "dgemma_engine.worker"),
    ) -> None:
        self._on_death = on_death
        self._is_closed = False
        self._info: EngineInfo | None = None
        self._numbers = itertools.count(1)
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._one_call = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [*command, model, device, dtype, quantization or NO_QUANTIZATION],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        threading.Thread(target=self._listen, name="dgemma-process", daemon=True).start()
        try:
            message = self._next(0, self._waiting(0))
        except BaseException:
            self.close()
            raise
        assert isinstance(message, Ready)
        self._info = message.info

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None
        return self._info

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        """See `InfillEngine.count_tokens`."""
        number: int = self._ask("count_tokens", request, text)
        return number

    def render(self, request: InfillRequest) -> str:
        """See `InfillEngine.render`."""
        text: str = self._ask("render", request)
        return text

    def encode(self, request: InfillRequest, cancel: CancellationToken | None = None) -> int:
        """See `InfillEngine.encode`.

        Raises:
            EngineDied: as `fill`.
        """
        with self._one_call:
            number = next(self._numbers)
            self._send(Encode(number, dataclasses.replace(request, deadline=None)))
            num_tokens: int = self._next(number, self._waiting(number, cancel)).value
        return num_tokens

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> InfillResult:
        """See `InfillEngine.fill`.

        Raises:
            EngineDied: the process ended, before or in the middle of the fill.
        """
        result: InfillResult = self._fill(request, on_step, cancel)
        return result

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> JointResult:
        """See `InfillEngine.fill_together`.

        Raises:
            EngineDied: as `fill`.
        """
        result: JointResult = self._fill(request, on_step, cancel)
        return result

    def _fill(
        self,
        request: InfillRequest | JointRequest,
        on_step: Callable[[Any], None] | None,
        cancel: CancellationToken | None,
    ) -> Any:
        seconds = None
        if request.deadline is not None:  # clocks of two processes need not agree
            seconds = max(0.0, request.deadline - time.monotonic())
        with self._one_call:
            number = next(self._numbers)
            bare = dataclasses.replace(request, deadline=None)
            self._send(Fill(number, bare, seconds, on_step is not None))
            waiting = self._waiting(number, cancel)
            while True:
                message = self._next(number, waiting)
                if isinstance(message, Step):
                    if on_step is not None:
                        on_step(message.step)
                    continue
                return message.value

    def close(self) -> None:
        """End the process, whatever it does."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, method: str, *arguments: Any) -> Any:
        with self._one_call:
            number = next(self._numbers)
            self._send(Ask(number, method, arguments))
            return self._next(number, self._waiting(number)).value

    def _send(self, message: Fill | Encode | Ask | Withdraw) -> None:
        assert self._process.stdin is not None
        try:
            with self._writing:
                write_frame(self._process.stdin, message)
        except (OSError, ValueError) as error:  # a broken pipe, or closed here
            death = self._death()
            death.was_working = False
            raise death from error

    def _waiting(self, number: int, cancel: CancellationToken | None = None) -> Waiting:
        return Waiting(cancel, lambda: self._send(Withdraw(number)), self._process.kill)

    def _next(self, number: int, waiting: Waiting) -> Any:
        """The next message of a call."""
        while True:
            message = waiting.next(self._incoming)
            if message is None:
                self._incoming.put(None)  # for whoever asks next
                raise self._death()
            if isinstance(message, Outcome):
                if message.number != number:
                    continue
                if message.error is not None:
                    raise message.error
            return message

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                message = read_frame(stdout)
            except (OSError, ValueError, EOFError):
                message = None
            self._incoming.put(message)
            if message is None:
                break
        stdout.close()
        self._process.wait()
        if not self._is_closed and self._info is not None and self._on_death is not None:
            self._on_death(self._death())

    def _death(self) -> EngineDied:
        if self._is_closed:
            return EngineDied("the engine was closed")
        try:
            status = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return EngineDied(f"the engine's process {describe_status(status)}")


def describe_status(status: int) -> str:
    """How a process ended, as the end of a sentence."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return "was killed (SIGKILL), as the system does when memory runs out"
    return f"was ended by {name}"
