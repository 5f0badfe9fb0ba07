"""The far end of an `EngineProcess`: one engine, asked over stdin, answering over stdout.

    python -m dgemma_engine.worker MODEL DEVICE DTYPE QUANTIZATION

A frame is four bytes of length and a pickle; both ends are the same program by the same user. What
libraries print goes to stderr. The process ends when its stdin does: an editor that was killed
leaves no model behind. `process.py` is the near end.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from . import load_engine
from .errors import DGemmaError, EngineUnavailable
from .types import (
    CancellationToken,
    DraftStep,
    EngineInfo,
    InfillEngine,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
)

logger = logging.getLogger(__name__)

LoadEngine = Callable[[str, str, str, str | None], InfillEngine]
NO_QUANTIZATION = "none"  # on the command line, in the place of None


# What the near end sends.


@dataclass(frozen=True, slots=True)
class Fill:
    """Fill a hole, or several. `seconds` are left of its time, None for as long as it takes."""

    number: int
    request: InfillRequest | JointRequest
    seconds: float | None
    wants_steps: bool


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode a prompt ahead."""

    number: int
    request: InfillRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """Call another method of the engine with these arguments."""

    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Cancel the fill, or what is encoded, of this number."""

    number: int


# What the far end sends.


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of a fill; of several holes, each one's draft."""

    number: int
    step: DraftStep | tuple[DraftStep, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to: its value, or the error it raised. Number 0 is the loading."""

    number: int
    value: Any = None
    error: DGemmaError | None = None


def write_frame(stream: IO[bytes], message: object) -> None:
    """Write one message and flush."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any | None:
    """The next message; None at the end of the stream, and where it breaks off in a frame."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack(">I", header)
    data = stream.read(length)
    return pickle.loads(data) if len(data) == length else None


def serve(load: LoadEngine, model: str, device: str, dtype: str, quantization: str) -> None:
    """Load an engine and answer until stdin ends; does not return then, but ends the process.

    Args:
        load: as `dgemma_engine.load_engine`, with the other four.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the near end, which closes stdin
    desk = _Desk(*_take_over_stdio())
    try:
        named = None if quantization == NO_QUANTIZATION else quantization
        engine = load(model, device, dtype, named)
    except DGemmaError as error:
        desk.send(Outcome(0, error=error))
    except Exception as error:
        logger.exception("the engine could not be built")
        desk.send(Outcome(0, error=EngineUnavailable(_unforeseen("loading", error))))
    else:
        desk.send(Ready(engine.info))
        desk.serve(engine)


class _Desk:
    """Takes messages on a thread of its own, so that a fill can be withdrawn while it runs."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._calls: list[Fill | Encode | Ask] = []
        self._withdrawn: set[int] = set()
        self._running: tuple[int, CancellationToken] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def send(self, message: object) -> None:
        write_frame(self._stdout, message)

    def serve(self, engine: InfillEngine) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls)
                call, token = self._calls.pop(0), CancellationToken()
                self._running = call.number, token
                if call.number in self._withdrawn:
                    token.cancel()
                self._withdrawn.clear()  # one call at a time: the others are answered already
            self.send(self._answer(engine, call, token))

    def _listen(self) -> None:
        while (message := read_frame(self._stdin)) is not None:
            with self._changed:
                if not isinstance(message, Withdraw):
                    self._calls.append(message)
                    self._changed.notify()
                elif self._running is not None and self._running[0] == message.number:
                    self._running[1].cancel()
                else:
                    self._withdrawn.add(message.number)
        logging.shutdown()
        os._exit(0)  # a pass may be running that takes long

    def _answer(
        self, engine: InfillEngine, call: Fill | Encode | Ask, token: CancellationToken
    ) -> Outcome:
        try:
            if isinstance(call, Fill):
                return Outcome(call.number, self._fill(engine, call, token))
            if isinstance(call, Encode):
                return Outcome(call.number, engine.encode(call.request, token))
            return Outcome(call.number, getattr(engine, call.method)(*call.arguments))
        except DGemmaError as error:
            return Outcome(call.number, error=error)
        except MemoryError:
            return Outcome(call.number, error=EngineUnavailable("the engine is out of memory"))
        except Exception as error:
            logger.error("a fill failed: %s", type(error).__name__)
            logger.debug("the trace", exc_info=True)
            return Outcome(call.number, error=DGemmaError(_unforeseen("the fill", error)))

    def _fill(
        self, engine: InfillEngine, call: Fill, token: CancellationToken
    ) -> InfillResult | JointResult:
        request = call.request
        if call.seconds is not None:
            request = dataclasses.replace(request, deadline=time.monotonic() + call.seconds)

        def show(step: DraftStep | tuple[DraftStep, ...]) -> None:
            self.send(Step(call.number, step))

        on_step = show if call.wants_steps else None
        if isinstance(request, JointRequest):
            return engine.fill_together(request, on_step, token)
        return engine.fill(request, on_step, token)


def _unforeseen(what: str, error: Exception) -> str:
    # The message of an unforeseen error may quote the user's code.
    return f"{what} failed ({type(error).__name__}); the server's log has more"


def _take_over_stdio() -> tuple[IO[bytes], IO[bytes]]:
    """Our pipes on descriptors of our own; 0 becomes empty and 1 stderr, for all who print."""
    stdin = os.fdopen(os.dup(0), "rb")
    stdout = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return stdin, stdout


def _load(model: str, device: str, dtype: str, quantization: str | None) -> InfillEngine:
    engine = load_engine(model, device, dtype, quantization)
    compile_later(engine, model)
    return engine


def compile_later(engine: InfillEngine, model: str) -> None:
    """For an engine whose process stays: what is compiled for it will pay.

    Args:
        engine: nothing is done for a scripted one.
        model: that it was loaded from, as `load_engine` takes it.
    """
    if hasattr(engine, "model"):
        from .compiled import compile_in_background
        from .infill import checkpoint_folder

        compile_in_background(engine.model, checkpoint_folder(model))


def main() -> None:
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=os.environ.get("DGEMMA_LOG_LEVEL", "INFO"),
    )
    serve(_load, *sys.argv[1:])


if __name__ == "__main__":
    # What is pickled has to be of the imported module's classes, not of __main__'s.
    from dgemma_engine.worker import main as run

    run()
