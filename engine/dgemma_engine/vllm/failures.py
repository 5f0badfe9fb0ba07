"""What went wrong between us and a server, in words that say what to do.

    EngineUnavailable
    ├── ServerUnreachable   it may pass: no connection, too busy, broken off, an error of its own
    └── NotServed           the server has no such model, or no such path
    RequestError
    └── Refused             the server understood, and will not do it

A server may repeat what it was sent. Of its words only the start is shown, without the key and
without the part in which it quotes a request.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import ContextTooLong, DGemmaError, EngineUnavailable, RequestError

_MOST_WORDS = 300  # characters of a server's message that are shown
# Where pydantic's and FastAPI's messages begin to quote the request.
_QUOTED = re.compile(r"""['"]?input(_value)?['"]?\s*[:=]""")
_TOO_LONG = re.compile(r"context length|max_model_len|too many tokens|maximum.{0,20}tokens", re.I)


class ServerUnreachable(EngineUnavailable):
    """The server cannot be had at the moment; the same request may work later."""


class NotServed(EngineUnavailable):
    """The server has no such model, or no such path."""


class Refused(RequestError):
    """The server understood a request and refused it.

    Attributes:
        words: the server's own, shortened.
    """

    def __init__(self, message: str, words: str = "") -> None:
        super().__init__(message)
        self.words = words


@dataclass(frozen=True, slots=True)
class Address:
    """A server as messages name it, and the key that they must not show."""

    url: str
    key: str | None = field(repr=False)
    key_source: str  # where the user keeps the key, "the environment variable TEAM_KEY"

    def hide_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def server_words(body: bytes, address: Address) -> str:
    """What an error's body says, shortened; empty if it says nothing that we can read."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    for key in ("error", "detail", "message"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    if isinstance(value, dict):
        value = value.get("message", "")
    if not isinstance(value, str):
        return ""
    quoted = _QUOTED.search(value)
    words = " ".join((value[: quoted.start()] if quoted else value).split())
    words = address.hide_key(words)
    return words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + "..."


def explain_status(
    status: int, words: str, address: Address, *, retry_after: str | None = None
) -> DGemmaError:
    """The error for an HTTP status that is not a success.

    Args:
        status: as received.
        words: the server's own, see `server_words`.
        retry_after: the header of that name.
    """
    said = f": {words}" if words else ""
    url = address.url
    if status in (401, 403):
        if address.key is None:
            remedy = f"It wants a key: put one into {address.key_source}."
        else:
            remedy = f"Check the key in {address.key_source}, and what it may be used for."
        return EngineUnavailable(f"{url} did not let us in ({status}){said}. {remedy}")
    if status in (404, 405):
        return NotServed(f"{url} does not have it ({status}){said}")
    if status == 413 or (status in (400, 422) and _TOO_LONG.search(words)):
        return ContextTooLong(
            f"{url} says that the request is too long ({status}){said}. Lower prefixChars, "
            "suffixChars or contextChars, or have the server started with a larger --max-model-len."
        )
    if status == 429:
        when = f" It asks to wait {retry_after} s." if (retry_after or "").isdigit() else ""
        return ServerUnreachable(
            f"{url} has too many requests (429){said}.{when} More replicas or a higher limit help; "
            "see engine/DEPLOYMENT.md."
        )
    if status >= 500:
        return ServerUnreachable(
            f"{url} has trouble of its own ({status}){said}. Its log says more."
        )
    if 300 <= status < 400:
        return EngineUnavailable(
            f"{url} points elsewhere ({status}). Set the URL that it points to: a key is not "
            "carried along."
        )
    return Refused(f"{url} refused the request ({status}){said}", words)


def explain_connection(error: BaseException, address: Address, seconds: float) -> DGemmaError:
    """The error for a connection that did not come about, or broke."""
    url = address.url
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return EngineUnavailable(
                f"the certificate of {url} is not trusted: {cause.verify_message}. If it is signed "
                "by your own authority, add that to the system's, or name its file in SSL_CERT_FILE"
            )
        if isinstance(cause, ssl.SSLError):
            return EngineUnavailable(
                f"{url} does not speak TLS as it should ({cause.reason}); is it an http:// server?"
            )
        if isinstance(cause, socket.gaierror):
            return ServerUnreachable(f"there is no such host: {url} ({cause.strerror})")
        if isinstance(cause, ConnectionRefusedError):
            return ServerUnreachable(
                f"nobody listens at {url}; is the server running, and is the port right?"
            )
    name = type(error).__name__
    if "ConnectTimeout" in name:
        return ServerUnreachable(f"{url} did not take the connection within {seconds:g} s")
    if "Timeout" in name:
        return ServerUnreachable(f"{url} said nothing for {seconds:g} s")
    said = address.hide_key(str(error))
    return ServerUnreachable(f"the connection to {url} broke ({name}{f': {said}' if said else ''})")


def not_openai(address: Address, content_type: str) -> EngineUnavailable:
    """The error for a server that answers something else."""
    kind = content_type.split(";")[0] or "no content type"
    return EngineUnavailable(
        f"{address.url} answers, but not as an OpenAI-compatible server does ({kind}). The URL "
        "ends before /v1, as in http://host:8000"
    )


@contextlib.contextmanager
def in_openai_shape(address: Address) -> Iterator[None]:
    """What goes wrong while an answer is read means that it has another shape."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise EngineUnavailable(
            f"{address.url} answers in another shape than OpenAI's API ({type(error).__name__})"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
