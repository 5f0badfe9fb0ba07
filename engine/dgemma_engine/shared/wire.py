"""What goes between the shared engine and its clients: frames of JSON, checked on arrival.

A frame is four bytes of length and a JSON object in UTF-8. Nothing that arrives can name code: a
value becomes one of our dataclasses field by field, or is refused with the place where it is wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import json
import struct
import types as plain_types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from .. import errors
from ..errors import DGemmaError, EngineUnavailable, RequestError
from ..types import InfillRequest, JointRequest

# Two clients' and servers' words for each other; they part at once if it differs.
PROTOCOL = 4
# The longest prefix and suffix that the settings allow, in characters of four bytes, and some room.
MAX_FRAME = 16 << 20  # bytes
# A number beyond this is no count, no seed and no time.
_MOST = 2**63

_HEADER = struct.Struct(">I")
_T = TypeVar("_T")
_Request = TypeVar("_Request", bound=InfillRequest | JointRequest)

_ERRORS: dict[str, type[DGemmaError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DGemmaError)
}


class WireError(RequestError):
    """What arrived is not what was agreed on; the message says where, and quotes no code."""


def frame(message: Mapping[str, Any]) -> bytes:
    """One message as it is sent.

    Raises:
        WireError: it is longer than `MAX_FRAME`, or holds what JSON or UTF-8 has no form for.
    """
    try:
        data = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise WireError(f"a message cannot be written ({type(error).__name__})") from error
    if len(data) > MAX_FRAME:
        raise WireError(f"a message of {len(data)} bytes is longer than {MAX_FRAME}; shorten it")
    return _HEADER.pack(len(data)) + data


def frame_length(header: bytes) -> int:
    """How many bytes follow the first four.

    Raises:
        WireError: more than `MAX_FRAME`.
    """
    length: int = _HEADER.unpack(header)[0]
    if length > MAX_FRAME:
        raise WireError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
    return length


def parse(data: bytes) -> dict[str, Any]:
    """The message in a frame.

    Raises:
        WireError: it is no JSON object.
    """
    try:
        message = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is not JSON ({type(error).__name__})") from error
    if not isinstance(message, dict):
        raise WireError(f"a message must be an object, got {type(message).__name__}")
    return message


def to_json(value: Any) -> Any:
    """A dataclass, or what one may hold, as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[_T], data: object, where: str) -> _T:
    """A value of this kind: a dataclass, an Enum, a plain type, a tuple or a union of them.

    Args:
        kind: what is expected.
        data: decoded JSON.
        where: its name, for the message.
    Raises:
        WireError: it is something else; unknown and missing fields are told too.
        RequestError: as the dataclass itself raises.
    """
    value: _T = _read(kind, data, where)
    return value


def with_deadline(request: _Request, deadline: float | None) -> _Request:
    """The request with a point in this process's time: clocks of two need not agree."""
    return dataclasses.replace(request, deadline=deadline)


def proof(token: bytes, who: str, nonce: str) -> str:
    """That its writer, "client" or "server", knows the token, without saying it."""
    return hmac.new(token, f"{who} {nonce}".encode(), hashlib.sha256).hexdigest()


def error_to_json(error: DGemmaError) -> dict[str, str]:
    """An error by the name of its kind, or of the nearest that both ends know."""
    kind = next(base for base in type(error).__mro__ if base.__name__ in _ERRORS)
    return {"kind": kind.__name__, "message": str(error)}


def error_from_json(data: object) -> DGemmaError:
    """The error that was sent."""
    if not isinstance(data, dict):
        return EngineUnavailable("the shared engine sent an error without a text")
    kind = _ERRORS.get(str(data.get("kind")), DGemmaError)
    return kind(str(data.get("message")))


def _read(kind: Any, data: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (plain_types.UnionType, typing.Union):
        (plain,) = [part for part in typing.get_args(kind) if part is not type(None)]
        return None if data is None else _read(plain, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _wrong(where, "a list", data)
        (item, _) = typing.get_args(kind)
        return tuple(_read(item, part, f"{where}[{at}]") for at, part in enumerate(data))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if issubclass(kind, Enum):
        known = {member.value: member for member in kind}
        if not isinstance(data, str) or data not in known:
            raise _wrong(where, f"one of {', '.join(known)}", data)
        return known[data]
    return _read_plain(kind, data, where)


def _read_dataclass(kind: Any, data: object, where: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(where, "an object", data)
    hints, known = _fields(kind)
    for name in data:
        if name not in known:
            raise WireError(f"{where} has an unknown field; known are {', '.join(known)}")
    for name, item in known.items():
        if name not in data and item.default is dataclasses.MISSING:
            raise WireError(f"{where}.{name} is missing")
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in data})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass, by name."""
    return typing.get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}


def _read_plain(kind: type, data: object, where: str) -> Any:
    if kind is bool or isinstance(data, bool):
        if kind is not bool or not isinstance(data, bool):
            raise _wrong(where, _NAMES[kind], data)
        return data
    if kind is str:
        if not isinstance(data, str):
            raise _wrong(where, _NAMES[str], data)
        try:
            data.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"{where} holds half of a surrogate pair") from error
        return data
    numbers = (int, float) if kind is float else (int,)
    if not isinstance(data, numbers) or not abs(data) <= _MOST:  # nor NaN
        raise _wrong(where, _NAMES[kind], data)
    return kind(data)


_NAMES: dict[type, str] = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a number",
}


def _wrong(where: str, expected: str, data: object) -> WireError:
    """Names the type of what came and not its value, which may be the user's code."""
    return WireError(f"{where} must be {expected}, got {type(data).__name__}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
