"""VllmEngine: an InfillEngine whose work is done by a team's server.

How a hole is asked for is found out when the server is first spoken to, best first:

    in-painting   vLLM 0.33 with DiffusionGemma, and its tokenizer here     inpainting.py
    suffix        servers that fill in the middle                           prompted.py
    prompt        DiffusionGemma elsewhere, and its tokenizer here
    chat          whatever chats

Requests of one engine follow each other; only the candidates of one fill run side by side.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ..edges import heal
from ..errors import ConfigError, EngineUnavailable, RequestError
from ..tokenizer import Tokenizer
from ..turns import TURN_START
from ..types import (
    CancellationToken,
    Decoder,
    EngineInfo,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    OnJointStep,
    OnStep,
    Timings,
)
from .client import Patience, Server
from .completions import until
from .failures import NotServed, ServerUnreachable, in_openai_shape
from .inpainting import InPainting
from .outcome import Level, Outcome
from .probe import (
    Checkpoint,
    Served,
    check_token_ids,
    find_model,
    served_canvas_length,
    takes_suffix,
)
from .prompted import ChatMessage, Prompt, Suffix

logger = logging.getLogger(__name__)

LEVELS: Final = ("in-painting", "suffix", "prompt", "chat")

# How often a running fill looks whether it was withdrawn.
_GLANCE = 0.005  # seconds
# A server that could not be reached is left alone for so long.
_REST = 3.0  # seconds
_BYTES_PER_TOKEN = 3.5  # of code, where there is no tokenizer to count with

Result = TypeVar("Result")


class VllmEngine:
    """Fills holes on a server. One fill at a time; a second caller waits.

    A server that cannot be reached when the engine is made is no error: the next fill tries again.

    Args:
        url: of an OpenAI-compatible server, as in `Server`.
        model: by its name there; "" or "default" for the only one, or for the one that is called
            like the folder.
        key: a bearer token, or None. Never logged, nor in any message.
        tokenizer: the folder of the checkpoint that is served, of which `tokenizer.json` and
            `config.json` are read; None goes without, and without in-painting.
        level: one of `LEVELS`, or "auto" for the best that the server can do.
        key_source: where the user keeps the key, for messages.
        patience: how long, and how often, the server is asked.
    Raises:
        ConfigError: the URL, the key or the level cannot be used.
        CheckpointError: the tokenizer cannot be read, or has other ids than the server's.
        EngineUnavailable: the server cannot do what is asked, lacks the model, or wants a key.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        key: str | None = None,
        *,
        tokenizer: Path | None = None,
        level: str = "auto",
        key_source: str = "the key's environment variable",
        patience: Patience | None = None,
    ) -> None:
        if level != "auto" and level not in LEVELS:
            raise ConfigError(f"level must be auto or one of {', '.join(LEVELS)}, got {level!r}")
        self._wanted_model = "" if model == "default" else model
        self._wanted_level = level
        self._folder = "" if tokenizer is None else tokenizer.name
        self._checkpoint = None if tokenizer is None else Checkpoint.load(tokenizer)
        self._server = Server(url, key, key_source=key_source, patience=patience)
        self._level: Level | None = None
        self._served: Served | None = None
        self._problem: ServerUnreachable | None = None
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        try:
            self._run(self._connected(), None)
        except ServerUnreachable as error:
            logger.warning("%s; it is tried again with the next fill", error)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        parts = urlsplit(self._server.address.url)
        return EngineInfo(
            model=self._served.model if self._served is not None else self._wanted_model,
            parameters=0,
            device=parts.netloc,
            dtype="its own format",
            strategy=self._level.name if self._level is not None else "not connected",
        )

    def count_tokens(self, request: InfillRequest, text: str) -> int:
        """See `InfillEngine.count_tokens`; an estimate where there is no tokenizer."""
        if self._checkpoint is None:
            return max(1, round(len(text.encode()) / _BYTES_PER_TOKEN))
        tokenizer = self._checkpoint.tokenizer
        _, healed = heal(tokenizer, tokenizer.encode(request.prefix))
        return len(tokenizer.encode(healed.decode("utf-8", errors="ignore") + text))

    def render(self, request: InfillRequest) -> str:
        """See `InfillEngine.render`."""
        with self._lock:
            level = self._run(self._connected(), None)
        return f"{level.name} on {self._server.address.url}\n{level.render(request)}"

    def encode(self, request: InfillRequest, cancel: CancellationToken | None = None) -> int:
        """0: the server keeps the prefixes it was asked about, and is asked nothing else."""
        return 0

    def fill(
        self,
        request: InfillRequest,
        on_step: OnStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> InfillResult:
        """See `InfillEngine.fill`.

        Raises:
            ServerUnreachable: it cannot be had at the moment.
            EngineUnavailable: it cannot be had as things are.
        """
        if cancel is not None:
            cancel.raise_if_cancelled()
        with self._lock:
            start = time.monotonic()
            outcome = self._run(self._fill(request, on_step), cancel)
            elapsed_ms = (time.monotonic() - start) * 1000
        return _result(outcome, elapsed_ms)

    def fill_together(
        self,
        request: JointRequest,
        on_step: OnJointStep | None = None,
        cancel: CancellationToken | None = None,
    ) -> JointResult:
        """Nothing this engine can do.

        Raises:
            RequestError: always; `info.fills_together` says so beforehand.
        """
        raise RequestError("a server fills holes one by one only")

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if not self._loop.is_closed():
                for task in asyncio.all_tasks(self._loop):  # of a fill that was interrupted
                    task.cancel()
                self._loop.run_until_complete(self._server.close())
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()

    async def _fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        level = await self._connected_before(request.deadline)
        try:
            return await level.fill(request, on_step)
        except NotServed:  # another model than before: what it can do has to be found out anew
            self._level = None
            level = await self._connected_before(request.deadline)
            return await level.fill(request, on_step)

    async def _connected_before(self, deadline: float | None) -> Level:
        (level,) = await until(deadline, [self._connected()])
        if level is None:
            raise ServerUnreachable(f"{self._server.address.url} did not answer in time")
        return level

    async def _connected(self) -> Level:
        """The way to ask, found out if it is not known yet."""
        if self._level is None:
            if self._problem is not None and time.monotonic() < self._rest_until:
                raise ServerUnreachable(str(self._problem))
            try:
                with in_openai_shape(self._server.address):
                    wanted = self._wanted_model
                    self._served = await find_model(self._server, wanted, self._folder)
                    self._level = await self._choose(self._served)
            except ServerUnreachable as error:
                self._problem, self._rest_until = error, time.monotonic() + _REST
                raise
        return self._level

    async def _choose(self, served: Served) -> Level:
        names = LEVELS if self._wanted_level == "auto" else (self._wanted_level,)
        reasons: list[str] = []
        for name in names:
            level = await self._try(name, served)
            if not isinstance(level, str):
                passed = f"; not by {'; nor by '.join(reasons)}" if reasons else ""
                logger.info(
                    "%s serves %s: holes are filled by %s%s",
                    self._server.address.url,
                    served.model,
                    name,
                    passed,
                )
                return level
            reasons.append(f"{name}: {level}")
        raise EngineUnavailable(
            f"{self._server.address.url} cannot be asked by {'; nor by '.join(reasons)}"
        )

    async def _try(self, name: str, served: Served) -> Level | str:
        """A way to ask, or why the server cannot be asked so."""
        server, checkpoint = self._server, self._checkpoint
        decoder = Decoder.DIFFUSION if served.is_diffusion_gemma else Decoder.LEFT_TO_RIGHT
        if name == "chat":
            return ChatMessage(server, served.model, decoder=decoder)
        if name == "suffix":
            is_taken, has_chances = await takes_suffix(server, served.model)
            if not is_taken:
                return "it takes no suffix"
            return Suffix(server, served.model, has_log_probabilities=has_chances)
        if checkpoint is None:
            return "there is no tokenizer here; set the folder of the checkpoint that is served"
        if name == "in-painting":
            if checkpoint.canvas_length is None:
                return "the checkpoint's config.json names no canvas_length"
            length = await served_canvas_length(server, served.model, checkpoint.canvas_length)
            if isinstance(length, str):
                return length
            if (unknown := await self._unknown_ids(served, checkpoint.tokenizer)) is not None:
                return unknown
            return InPainting(
                server,
                served.model,
                checkpoint.tokenizer,
                canvas_length=length,
                vocab_size=checkpoint.vocab_size,
                max_model_len=served.room(checkpoint),
            )
        if checkpoint.tokenizer.token_id(TURN_START) is None:
            return "the tokenizer has no turns"
        if (unknown := await self._unknown_ids(served, checkpoint.tokenizer)) is not None:
            return unknown
        if checkpoint.canvas_length is not None:
            decoder = Decoder.DIFFUSION
        room = served.room(checkpoint)
        return Prompt(
            server, served.model, checkpoint.tokenizer, decoder=decoder, max_model_len=room
        )

    async def _unknown_ids(self, served: Served, tokenizer: Tokenizer) -> str | None:
        return await check_token_ids(self._server, served.model, tokenizer)

    def _run(self, work: Coroutine[Any, Any, Result], cancel: CancellationToken | None) -> Result:
        if self._loop.is_closed():
            work.close()
            raise EngineUnavailable("the engine was closed")
        return self._loop.run_until_complete(_unless_withdrawn(work, cancel))


async def _unless_withdrawn(
    work: Coroutine[Any, Any, Result], cancel: CancellationToken | None
) -> Result:
    """The result of some work; withdrawn, with its connections closed, when it is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=None if cancel is None else _GLANCE)
            if cancel is not None and not task.done():
                cancel.raise_if_cancelled()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _result(outcome: Outcome, elapsed_ms: float) -> InfillResult:
    # Of a server that tells no probabilities nothing is held back.
    ends = outcome.ends or (len(outcome.text),)
    chances = outcome.prefix_confidences or (1.0,)
    return InfillResult(
        text=outcome.text,
        token_ids=outcome.token_ids,
        token_confidences=outcome.confidences,
        token_ends=ends,
        prefix_confidences=chances,
        confidence=chances[-1],
        mean_entropy=outcome.mean_entropy,
        decoder=outcome.decoder,
        # A server does not say how many passes it made: these are the rounds of requests.
        num_passes=outcome.num_rounds,
        num_cached_tokens=0,
        num_context_tokens=outcome.num_context_tokens,
        timings=Timings(encode_ms=0.0, denoise_ms=elapsed_ms, total_ms=elapsed_ms),
        stop_reason=outcome.stop_reason,
    )
