"""HTTP on loopback, for other tools: OpenAI's completions and chat, llama.cpp's infill.

Every request needs a token and comes from this machine under one of its own names; a page in a
browser can satisfy neither. `http_requests.py` reads what is asked, `http_answers.py` has the
forms of the answers; here is who may ask. A client that goes away takes its request along.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Cancelled, DGemmaError, EngineUnavailable, RequestError
from ..types import (
    CancellationToken,
    DraftStep,
    EngineInfo,
    InfillResult,
    ManyClientEngine,
)
from .desk import Busy, Job
from .http_answers import (
    Json,
    error_json,
    event,
    finished,
    llama_answer,
    safe_start,
    usage,
    wanted,
)
from .http_requests import (
    Asked,
    AskedChat,
    ContextLimits,
    parse_body,
    read_chat,
    read_completion,
    read_infill,
)
from .metrics import CONTENT_TYPE, metrics_text
from .places import Place, write_private
from .server import Background, SharedServer

logger = logging.getLogger(__name__)

_MOST_BYTES = 8 << 20  # of a body
_BODY_SECONDS = 30.0
_MOST_REQUESTS = 128  # at once; beyond, 503
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How HTTP is served; `token` is None for every program of this machine."""

    token: str | None
    limits: ContextLimits = field(default_factory=ContextLimits)


def loopback_listener(address: str) -> socket.socket:
    """A bound socket for "HOST:PORT".

    Raises:
        RequestError: it is no such address, or not of this machine alone.
        OSError: it is taken.
    """
    host, _, port = address.rpartition(":")
    if host not in _LOOPBACK or not port.isdecimal() or int(port) > 65_535:
        raise RequestError(
            f"--http takes an address of this machine alone, 127.0.0.1:PORT, got {address!r}"
        )
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return socket.create_server((name, int(port)), family=family)


def kept_token(place: Place) -> str:
    """The user's token, the same for every start, made at the first one."""
    path = place.http_token
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text(encoding="ascii").strip():
            return text
    write_private(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="ascii").strip()


def http_server(listener: socket.socket, place: Place, options: HttpOptions) -> Background:
    """What serves HTTP on a bound socket as long as the engine runs."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(server: SharedServer) -> None:
        config = uvicorn.Config(
            build_app(server, options),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            http="h11",
            ws="none",
            limit_concurrency=_MOST_REQUESTS,
            timeout_graceful_shutdown=1,
        )
        write_private(place.http, url)
        where = f"token in {place.http_token}" if options.token else "without a token"
        logger.info("HTTP at %s, %s", url, where)
        await _Uvicorn(config).serve(sockets=[listener])

    return run


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to the process's own server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_app(server: SharedServer, options: HttpOptions) -> ASGIApp:
    """The application, guarded."""
    tools = _Tools(server, options.limits)
    routes = [
        Route("/health", tools.health),
        Route("/metrics", tools.metrics),
        Route("/v1/models", tools.models),
        Route("/v1/completions", tools.completions, methods=["POST"]),
        Route("/v1/chat/completions", tools.chat, methods=["POST"]),
        Route("/infill", tools.infill, methods=["POST"]),
    ]
    handlers: Any = {
        DGemmaError: _on_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
    }
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), options.token)


class _Guard:
    """Lets in who names this machine and knows the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        response = self._refusal(scope)
        await (response or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _host_name(hosts[0]) not in _LOOPBACK:
            return _error(421, "this server answers to names of its own machine only")
        if any(name == b"origin" for name, _ in headers):
            return _error(403, "pages in a browser may not use this server")
        if self._token is None or scope["path"] == "/health":
            return None
        given = [value for name, value in headers if name == b"authorization"]
        expected = f"Bearer {self._token}".encode()
        if len(given) != 1 or not hmac.compare_digest(given[0], expected):
            response = _error(401, "the header Authorization: Bearer TOKEN is missing or wrong")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return None


class _Tools:
    """The handlers."""

    def __init__(self, server: SharedServer, limits: ContextLimits) -> None:
        self._server = server
        self._limits = limits

    async def health(self, request: Request) -> Response:
        if not self._server.desk.ready.done():
            return JSONResponse({"status": "loading model"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics_text(self._server), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        model = {"id": self._info().model, "object": "model", "created": 0, "owned_by": "local"}
        return JSONResponse({"object": "list", "data": [model]})

    async def completions(self, request: Request) -> Response:
        asked = read_completion(await _body(request), self._limits)
        result = await self._fill(request, asked)
        text, reason = finished(result, asked.stops, asked.request.max_tokens)
        head = self._head("cmpl", "text_completion")

        def choice(text: str, reason: str | None) -> Json:
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
            return {**head, "choices": [choice]}

        if not asked.is_streamed:
            return JSONResponse({**choice(text, reason), "usage": usage(result)})
        events = [choice(text, None), choice("", reason)]
        if asked.wants_usage:
            events.append({**head, "choices": [], "usage": usage(result)})
        return _events([*map(event, events), _DONE])

    async def infill(self, request: Request) -> Response:
        asked = read_infill(await _body(request), self._limits)
        if asked.is_empty:
            return JSONResponse({"content": "", "stop": True})
        result = await self._fill(request, asked)
        answer = llama_answer(self._info(), asked, result)
        if not asked.is_streamed:
            return JSONResponse(wanted(answer, asked.fields))
        first = {"index": 0, "content": answer["content"], "stop": False}
        return _events([event(first), event({**answer, "content": ""})])

    async def chat(self, request: Request) -> Response:
        asked = read_chat(await _body(request))
        head = self._head("chatcmpl", "chat.completion")
        if asked.is_streamed:
            return await self._stream_chat(request, asked, head)
        result = await self._outcome(request, self._submit_chat(request, asked, None))
        text, reason = finished(result, asked.stops, asked.request.max_tokens)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return JSONResponse({**head, "choices": [choice], "usage": usage(result)})

    async def _stream_chat(self, request: Request, asked: AskedChat, head: Json) -> Response:
        """Each canvas is sent when it is done: the text before a step 0 does not change."""
        head = {**head, "object": "chat.completion.chunk"}
        settled: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        last: list[DraftStep] = []

        def show(step: DraftStep) -> None:
            if step.step == 0 and last:
                loop.call_soon_threadsafe(settled.put_nowait, last[0].text)
            last[:] = [step]

        job = self._submit_chat(request, asked, show)
        # The status can be told until the first event is sent.
        first: asyncio.Future[str] = asyncio.ensure_future(settled.get())
        try:
            await self._first_of(request, job, first)
        finally:
            first.cancel()
            if not first.done() and not job.future.done():
                self._server.desk.withdraw(job, "the client is gone")
        known = first.result() if first.done() and not first.cancelled() else ""
        if job.future.done():
            job.future.result()

        def chunk(delta: Json, reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return event({**head, "choices": [choice]})

        async def events() -> AsyncIterator[str]:
            sent = ""
            try:
                yield chunk({"role": "assistant", "content": ""})
                async for text in _settled_texts(known, settled, job):
                    part = safe_start(text, asked.stops)
                    if part.startswith(sent) and len(part) > len(sent):
                        yield chunk({"content": part[len(sent) :]})
                        sent = part
                result: InfillResult = job.future.result()
                text, reason = finished(result, asked.stops, asked.request.max_tokens)
                if text[len(sent) :]:
                    yield chunk({"content": text[len(sent) :]})
                yield chunk({}, reason)
                if asked.wants_usage:
                    yield event({**head, "choices": [], "usage": usage(result)})
                yield _DONE
            except DGemmaError as error:  # too late for a status
                yield event({"error": error_json(500, str(error))})
            finally:
                if not job.future.done():
                    self._server.desk.withdraw(job, "the client is gone")

        return _events(events())

    def _info(self) -> EngineInfo:
        """Of the model.

        Raises:
            EngineUnavailable: it is not loaded.
        """
        self._server.last_use = time.monotonic()
        if not self._server.desk.ready.done():
            raise EngineUnavailable("the model is being loaded; try again in a moment")
        return self._server.desk.ready.result()

    def _head(self, prefix: str, kind: str) -> Json:
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self._info().model,
        }

    async def _fill(self, request: Request, asked: Asked) -> InfillResult:
        self._info()
        job = self._server.desk.submit_fill(_client(request), asked.request)
        return await self._outcome(request, job)

    def _submit_chat(
        self, request: Request, asked: AskedChat, show: Callable[[DraftStep], None] | None
    ) -> Job:
        self._info()
        client = _client(request)

        def work(engine: ManyClientEngine, token: CancellationToken) -> InfillResult:
            return engine.chat(asked.request, show, token, client=client)

        return self._server.desk.submit(client, work)

    async def _outcome(self, request: Request, job: Job) -> InfillResult:
        """What a job came to; it is withdrawn if its client goes away.

        Raises:
            ClientDisconnect: it did.
            DGemmaError: as the engine raises.
        """
        try:
            await self._first_of(request, job)
        finally:
            if not job.future.done():
                self._server.desk.withdraw(job, "the client is gone")
        result: InfillResult = job.future.result()
        return result

    async def _first_of(self, request: Request, job: Job, *others: asyncio.Future[Any]) -> None:
        """Wait for the job or one of the others.

        Raises:
            ClientDisconnect: before any of them was there.
        """
        gone = asyncio.ensure_future(_disconnected(request))
        awaited: set[asyncio.Future[Any]] = {job.future, gone, *others}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not job.future.done():
                raise ClientDisconnect
        finally:
            gone.cancel()


async def _settled_texts(known: str, settled: asyncio.Queue[str], job: Job) -> AsyncIterator[str]:
    """The reply as far as it is certain, each time more of it is, until the job is done."""
    if known:
        yield known
    while not job.future.done():
        more = asyncio.ensure_future(settled.get())
        awaited: set[asyncio.Future[Any]] = {more, job.future}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            more.cancel()
        if more.done() and not more.cancelled():
            yield more.result()


async def _body(request: Request) -> Json:
    """The JSON object that was sent.

    Raises:
        HTTPException: 408, 413 or 415.
        RequestError: it is no object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be application/json")
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            data.extend(part)
            if len(data) > _MOST_BYTES:
                raise HTTPException(413, f"the body is longer than {_MOST_BYTES} bytes")

    try:
        await asyncio.wait_for(read(), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not come in {_BODY_SECONDS:.0f} s") from None
    return parse_body(bytes(data))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client(request: Request) -> str:
    """Whose turn it is, and whose prompt is kept: tools have no other name."""
    return f"http {request.headers.get('user-agent', '')[:80]}"


def _host_name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _events(events: list[str] | AsyncIterator[str]) -> Response:
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": error_json(status, message)}, status)


async def _on_error(request: Request, error: DGemmaError) -> Response:
    if isinstance(error, RequestError):
        return _error(400, str(error))
    if isinstance(error, Busy):
        status = 429
    elif isinstance(error, (EngineUnavailable, Cancelled)):
        status = 503
    else:
        return _error(500, str(error))
    response = _error(status, str(error))
    response.headers["Retry-After"] = "1"
    return response


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail)


async def _on_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it
