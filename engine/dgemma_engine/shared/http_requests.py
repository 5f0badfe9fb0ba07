"""What other tools ask over HTTP, as our own requests: checked field by field.

Of OpenAI's and llama.cpp's fields those are read that mean something to a model which fills holes;
the others (temperature, top_p, samplers) are taken and have no effect. It knows no HTTP; `http.py`
answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import RequestError
from ..types import ChatRequest, HoleKind, InfillRequest, Role
from .wire import from_json

_MOST_TOKENS = 4096
_DEFAULT_TOKENS = 64
_DEFAULT_REPLY_TOKENS = 256
_MOST_STOPS = 16
_MOST_EXTRAS = 1024
_MOST_TURNS = 4096
_MOST_MILLISECONDS = 600_000
# Of what may be read before a hole, the share that text from other files may have.
_EXTRA_SHARE = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """Characters that are read before and after a hole at most; the rest is cut off at a line."""

    prefix_chars: int = 8000
    suffix_chars: int = 2000


@dataclass(frozen=True, slots=True)
class Asked:
    """A hole that a tool wants filled.

    Attributes:
        request: what the engine is asked.
        stops: texts before the first of which the fill is cut.
        is_streamed: the answer is to come as server-sent events.
        wants_usage: in the stream too.
        was_truncated: not all of the context is read.
        fields: of the answer that are wanted, all if there are none (llama.cpp).
        is_empty: nothing is wanted but that the context be read.
    """

    request: InfillRequest
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    wants_usage: bool = False
    was_truncated: bool = False
    fields: tuple[str, ...] = ()
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class AskedChat:
    """A reply that a tool wants; fields as of `Asked`."""

    request: ChatRequest
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    wants_usage: bool = False


def parse_body(data: bytes) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        RequestError: there is none.
    """
    try:
        body = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({type(error).__name__})") from error
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def read_completion(body: Mapping[str, Any], limits: ContextLimits) -> Asked:
    """OpenAI's completion: `prompt` before the hole, `suffix` after it.

    Beyond OpenAI's, `language` is the LSP identifier and `kind` one of line, block and selection.

    Raises:
        RequestError: a field is of the wrong type, out of range, or asks for what is not there.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    prefix = from_json(str, prompt, "prompt")
    _only_one(body)
    if _read(body, "echo", bool, False):
        raise RequestError("echo is not offered: the answer is what belongs after the prompt")
    return _asked(
        body,
        limits,
        prefix=prefix,
        suffix=_read(body, "suffix", str, ""),
        max_tokens=_whole(body, "max_tokens", _DEFAULT_TOKENS, 1, _MOST_TOKENS),
    )


def read_infill(body: Mapping[str, Any], limits: ContextLimits) -> Asked:
    """llama.cpp's infill: `input_prefix` and `prompt` before the hole, `input_suffix` after it.

    Texts in `input_extra` are read before them, the last ones first if not all have room. A
    negative `n_predict` means as many as are usual, and 0 none at all.

    Raises:
        RequestError: as for `read_completion`.
    """
    predict = _whole(body, "n_predict", -1, -(2**31), _MOST_TOKENS)
    limit = _whole(body, "t_max_predict_ms", 0, 0, _MOST_MILLISECONDS)
    raw_fields = body.get("response_fields") or []
    if not isinstance(raw_fields, list) or len(raw_fields) > 100:
        raise RequestError("response_fields must be a list of at most 100 texts")
    return _asked(
        body,
        limits,
        prefix=_read(body, "input_prefix", str, "") + _read(body, "prompt", str, ""),
        suffix=_read(body, "input_suffix", str, ""),
        extra=_extra(body.get("input_extra"), limits.prefix_chars // _EXTRA_SHARE),
        max_tokens=predict if predict > 0 else _DEFAULT_TOKENS,
        deadline=time.monotonic() + limit / 1000 if limit else None,
        fields=tuple(from_json(str, name, "response_fields") for name in raw_fields),
        is_empty=predict == 0,
    )


def read_chat(body: Mapping[str, Any]) -> AskedChat:
    """OpenAI's chat: `messages`, each of a role and a text or parts of text.

    Raises:
        RequestError: as for `read_completion`.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_TURNS:
        raise RequestError(f"messages must be a list of 1 to {_MOST_TURNS} messages")
    _only_one(body)
    if body.get("tools") or body.get("functions"):
        raise RequestError("tools are not offered; leave them out")
    newer = _whole(body, "max_completion_tokens", _DEFAULT_REPLY_TOKENS, 1, _MOST_TOKENS)
    return AskedChat(
        ChatRequest(
            tuple(_turn(message, index) for index, message in enumerate(messages)),
            max_tokens=_whole(body, "max_tokens", newer, 1, _MOST_TOKENS),
            seed=_seed(body),
        ),
        **_common(body),
    )


def cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first of these."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _asked(
    body: Mapping[str, Any],
    limits: ContextLimits,
    *,
    prefix: str,
    suffix: str,
    max_tokens: int,
    extra: str = "",
    deadline: float | None = None,
    fields: tuple[str, ...] = (),
    is_empty: bool = False,
) -> Asked:
    kind = _guess_kind(prefix, suffix)
    if body.get("kind") is not None:
        kind = from_json(HoleKind, body["kind"], "kind")
    before = _end_of(prefix, limits.prefix_chars)
    after = _start_of(suffix, limits.suffix_chars)
    request = InfillRequest(
        extra + before,
        after,
        kind=kind,
        language_id=_read(body, "language", str, "plaintext"),
        max_tokens=max_tokens,
        seed=_seed(body),
        deadline=deadline,
    )
    was_truncated = (before, after) != (prefix, suffix)
    return Asked(
        request, was_truncated=was_truncated, fields=fields, is_empty=is_empty, **_common(body)
    )


def _common(body: Mapping[str, Any]) -> dict[str, Any]:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object")
    return {
        "stops": _stops(body.get("stop")),
        "is_streamed": _read(body, "stream", bool, False),
        "wants_usage": _read(options, "include_usage", bool, False),
    }


def _read(body: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    value = body.get(name)
    return default if value is None else from_json(kind, value, name)


def _whole(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = _read(body, name, int, default)
    if not least <= value <= most:
        raise RequestError(f"{name} must be from {least} to {most}, got {value}")
    return value


def _seed(body: Mapping[str, Any]) -> int:
    return _read(body, "seed", int, 0) % 2**63  # both tools allow negative ones


def _only_one(body: Mapping[str, Any]) -> None:
    for name in ("n", "best_of"):
        if _read(body, name, int, 1) != 1:
            raise RequestError(f"{name} must be 1: there is one answer to a request")


def _stops(raw: object) -> tuple[str, ...]:
    if raw is None:
        return ()
    stops = [raw] if isinstance(raw, str) else raw
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS:
        raise RequestError(f"stop must be a text, or a list of at most {_MOST_STOPS}")
    read = tuple(from_json(str, stop, "stop") for stop in stops)
    return tuple(stop for stop in read if stop)


def _turn(message: object, index: int) -> tuple[Role, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise RequestError(f"{where} must be an object, got {type(message).__name__}")
    raw_role = message.get("role")
    role = from_json(Role, "system" if raw_role == "developer" else raw_role, f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        return role, "".join(_part(part, where) for part in content)
    return role, from_json(str, content, f"{where}.content")


def _part(part: object, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise RequestError(f"{where}.content may have parts of text only")
    return from_json(str, part.get("text"), f"{where}.content.text")


def _extra(raw: object, room: int) -> str:
    """Texts from other files, the last ones that have room, as they were given."""
    if raw is None:
        return ""
    if not isinstance(raw, list) or len(raw) > _MOST_EXTRAS:
        raise RequestError(f"input_extra must be a list of at most {_MOST_EXTRAS} objects")
    texts = []
    for index, item in enumerate(raw):
        if not isinstance(item, dict):
            raise RequestError(f"input_extra[{index}] must be an object")
        texts.append(from_json(str, item.get("text"), f"input_extra[{index}].text"))
    kept = ""
    for text in reversed(texts):
        whole = f"{text}\n" if not text.endswith("\n") else text
        if len(whole) + len(kept) > room:
            break
        kept = whole + kept
    return kept


def _guess_kind(prefix: str, suffix: str) -> HoleKind:
    """A line, unless the cursor stands on an empty one."""
    before, after = prefix.rpartition("\n")[2], suffix.partition("\n")[0]
    return HoleKind.BLOCK if not before.strip() and not after.strip() else HoleKind.LINE


def _end_of(text: str, chars: int) -> str:
    """The end of a text, from the start of a line if it is cut."""
    if len(text) <= chars:
        return text
    end = text[len(text) - chars :]
    _, line_break, rest = end.partition("\n")
    return rest if line_break and rest else end


def _start_of(text: str, chars: int) -> str:
    """The start of a text, to the end of a line if it is cut."""
    if len(text) <= chars:
        return text
    start = text[:chars]
    rest, line_break, _ = start.rpartition("\n")
    return rest + line_break if rest else start
