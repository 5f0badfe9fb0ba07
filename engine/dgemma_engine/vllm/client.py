"""HTTP to a server: JSON and event streams, with time-outs, retries, and plain messages.

A request is withdrawn by cancelling the task that awaits it: the connection is closed, which a
server takes as a reason to stop. Knows no holes and no tokens; `failures.py` has the words.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ipaddress
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..errors import ConfigError, EngineUnavailable
from .failures import (
    Address,
    ServerUnreachable,
    explain_connection,
    explain_status,
    not_openai,
    server_words,
)

try:
    # httpx under its new keepers; the name without the 2 has had no release since 2024.
    import httpx2 as httpx
except ImportError as missing:
    raise EngineUnavailable(
        f"an engine on a server needs one more package ({missing}): pip install "
        "'dgemma-lsp[remote]'"
    ) from missing

logger = logging.getLogger(__name__)

_MOST_BYTES = 64 * 2**20  # of one answer; one with log-probabilities is some hundred kB
_MOST_ERROR_BYTES = 2**16
_MOST_SECONDS_BEHIND_DONE = 0.25
# A connection is kept for less long than uvicorn keeps it (5 s), or requests meet one that closes.
_KEPT_SECONDS = 4.0
_TRY_AGAIN = (429, 502, 503, 504)
_warned: set[str] = set()
# They tell every request, of which a fill has a dozen, and the headers of answers.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for, and how often it is asked again.

    Attributes:
        connect_seconds: for a connection.
        read_seconds: between two pieces of an answer.
        attempts: tries of one request; only what did not reach the server, or was put off by it
            (429, 502, 503, 504), is tried again.
        first_wait_seconds: longest wait before the second try; it doubles from try to try, and a
            random part of it is waited.
        longest_wait_seconds: of one wait. A server that asks for more is not asked again.
    """

    connect_seconds: float = 5.0
    read_seconds: float = 60.0
    attempts: int = 4
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 8.0


class Server:
    """One server, and the connections to it that are kept. To be used on one event loop.

    Args:
        url: "https://host", with a port and a path if need be, with or without "/v1" at its end.
        key: sent as a bearer token; None or "" for none.
        key_source: how messages name the place of the key.
        patience: see there.
    Raises:
        ConfigError: the URL or the key cannot be used. The key is not shown.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        key_source: str = "the key's environment variable",
        patience: Patience | None = None,
    ) -> None:
        parts = _checked(url)
        path = parts.path.rstrip("/").removesuffix("/v1")
        key = key or None
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(
                f"the key in {key_source} holds characters that no HTTP header can carry "
                "(a line break or a space?)"
            )
        self.address = Address(f"{parts.scheme}://{parts.netloc}{path}", key, key_source)
        self.patience = patience or Patience()
        if key is not None and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            _warn_once(self.address.url)
        times = httpx.Timeout(self.patience.read_seconds, connect=self.patience.connect_seconds)
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        limits = httpx.Limits(keepalive_expiry=_KEPT_SECONDS)
        self._client = httpx.AsyncClient(headers=headers, timeout=times, limits=limits)

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            DGemmaError: see `failures.py`.
        """
        return await self._object("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers a JSON object.

        Raises:
            DGemmaError: see `failures.py`.
        """
        return await self._object("POST", path, body)

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The JSON objects of an event stream; the one of an answer that is no stream.

        Raises:
            DGemmaError: see `failures.py`; also for an error that comes as an event.
        """
        num_bytes = 0
        async with self._open("POST", path, body) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                yield await self._parsed(response)
                return
            lines = response.aiter_lines()
            try:
                async for line in lines:
                    num_bytes += len(line)
                    if num_bytes > _MOST_BYTES:
                        raise self._too_much()
                    name, _, data = line.partition(":")
                    if name != "data":  # comments that keep the connection, empty lines
                        continue
                    if data.strip() == "[DONE]":
                        # A connection is used again only if its stream was read to the end.
                        await asyncio.wait_for(_drain(lines), _MOST_SECONDS_BEHIND_DONE)
                        return
                    yield self._event(data)
            except asyncio.TimeoutError:
                return
            except httpx.TransportError as error:
                raise self._broken(error) from error

    def _event(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise not_openai(self.address, "an event that is no JSON object")
        error = value if value.get("object") == "error" else value.get("error")
        if isinstance(error, dict):
            code = error.get("code")
            words = server_words(json.dumps({"error": error}).encode(), self.address)
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise explain_status(status, words, self.address)
        return value

    async def _object(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        async with self._open(method, path, body) as response:
            return await self._parsed(response)

    async def _parsed(self, response: httpx.Response) -> dict[str, Any]:
        data = await self._read(response, _MOST_BYTES)
        if len(data) > _MOST_BYTES:
            raise self._too_much()
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise not_openai(self.address, response.headers.get("content-type", ""))
        return value

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """A response with a status of success, its body not read yet."""
        attempt = 0
        while True:
            attempt += 1
            request = self._client.build_request(method, self.address.url + path, json=body)
            try:
                response = await self._client.send(request, stream=True)
            except httpx.TransportError as error:
                problem = self._broken(error)
                did_not_arrive = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                wait = self._wait(attempt, None)
                if not did_not_arrive or not isinstance(problem, ServerUnreachable) or wait is None:
                    raise problem from error
                logger.info("%s; asked again in %.1f s", problem, wait)
                await asyncio.sleep(wait)
                continue
            async with contextlib.aclosing(response):
                retry_after = response.headers.get("retry-after")
                wait = self._wait(attempt, retry_after)
                if response.is_success:
                    yield response
                    return
                if response.status_code in _TRY_AGAIN and wait is not None:
                    pause = wait
                    logger.info(
                        "%s put a request off (%d); asked again in %.1f s",
                        self.address.url,
                        response.status_code,
                        wait,
                    )
                else:
                    body_start = await self._read(response, _MOST_ERROR_BYTES)
                    raise explain_status(
                        response.status_code,
                        server_words(body_start, self.address),
                        self.address,
                        retry_after=retry_after,
                    )
            await asyncio.sleep(pause)

    async def _read(self, response: httpx.Response, most: int) -> bytes:
        """The body, or a little more than `most` of it."""
        data = bytearray()
        try:
            async for part in response.aiter_bytes():
                data += part
                if len(data) > most:
                    break
        except httpx.TransportError as error:
            raise self._broken(error) from error
        return bytes(data)

    def _wait(self, attempt: int, retry_after: str | None) -> float | None:
        """Seconds to wait before the next try; None if there is to be none."""
        patience = self.patience
        if attempt >= patience.attempts:
            return None
        limit = min(patience.first_wait_seconds * 2 ** (attempt - 1), patience.longest_wait_seconds)
        asked = _seconds(retry_after)
        if asked is None:
            return random.uniform(0.0, limit)
        # Not all at the same moment: those who were put off together come back apart.
        return None if asked > patience.longest_wait_seconds else asked + random.uniform(0, limit)

    def _broken(self, error: Exception) -> Exception:
        is_connect = isinstance(error, httpx.ConnectTimeout)
        seconds = self.patience.connect_seconds if is_connect else self.patience.read_seconds
        return explain_connection(error, self.address, seconds)

    def _too_much(self) -> EngineUnavailable:
        return EngineUnavailable(f"{self.address.url} answered with more than {_MOST_BYTES} bytes")


async def _drain(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


def _checked(url: str) -> SplitResult:
    """The URL's parts.

    Raises:
        ConfigError: it is not one of a server, or holds a secret.
    """
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError as error:
        raise ConfigError(f"the engine's URL cannot be read: {error}") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "the engine's URL may hold no user, password, query or fragment, since it is shown in "
            "logs; a key belongs into the environment"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port_is_wrong:
        raise ConfigError(
            f"the engine's URL must be like https://host or http://host:8000, got {url!r}"
        )
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _warn_once(url: str) -> None:
    if url not in _warned:
        _warned.add(url)
        logger.warning(
            "%s is not encrypted: the key and the code that is sent can be read on the way. "
            "Use https, or a tunnel to a port of this machine",
            url,
        )


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds from now; None if there is none, or nothing to read."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
