"""The forms of the answers over HTTP: OpenAI's and llama.cpp's, from our own results.

It knows no HTTP; `http.py` sends them.
"""

from __future__ import annotations

import json
from typing import Any

from ..types import EngineInfo, InfillResult, StopReason
from .http_requests import Asked, cut_at_stop

Json = dict[str, Any]


def safe_start(text: str, stops: tuple[str, ...]) -> str:
    """What may be sent already: before a stop, and not what may yet become one."""
    cut = cut_at_stop(text, stops)
    longest = max(map(len, stops), default=1)
    return cut if cut != text else text[: len(text) - longest + 1]


def finished(result: InfillResult, stops: tuple[str, ...], max_tokens: int) -> tuple[str, str]:
    """The text that is answered, and OpenAI's word for why it ends there."""
    text = cut_at_stop(result.text, stops)
    is_cut = result.stop_reason in (StopReason.MAX_STEPS, StopReason.DEADLINE)
    is_full = is_cut and len(result.token_ids) >= max_tokens
    return text, "length" if is_full and text == result.text else "stop"


def usage(result: InfillResult) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    read, written = result.num_context_tokens, len(result.token_ids)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def llama_answer(info: EngineInfo, asked: Asked, result: InfillResult) -> Json:
    """llama.cpp's whole answer."""
    text, reason = finished(result, asked.stops, asked.request.max_tokens)
    stop = next((stop for stop in asked.stops if result.text.startswith(text + stop)), "")
    encoded = result.num_context_tokens - result.num_cached_tokens
    timings = _llama_timings("prompt", encoded, result.timings.encode_ms)
    timings |= _llama_timings("predicted", len(result.token_ids), result.timings.denoise_ms)
    return {
        "index": 0,
        "content": text,
        "model": info.model,
        "stop": True,
        "stop_type": "limit" if reason == "length" else "word" if stop else "eos",
        "stopping_word": stop,
        "tokens_predicted": len(result.token_ids),
        "tokens_evaluated": result.num_context_tokens,
        "tokens_cached": result.num_cached_tokens,
        "truncated": asked.was_truncated,
        "timings": timings,
    }


def _llama_timings(name: str, count: int, milliseconds: float) -> dict[str, float]:
    return {
        f"{name}_n": count,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / max(1, count),
        f"{name}_per_second": count * 1000 / max(milliseconds, 0.001),
    }


def wanted(answer: Json, fields: tuple[str, ...]) -> Json:
    """The fields that were named, as in "timings/prompt_ms", under these names; all if none was."""
    if not fields:
        return answer
    found: Json = {}
    for name in fields:
        value: Any = answer
        for key in name.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def event(data: Json) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def error_json(status: int, message: str) -> Json:
    """OpenAI's form of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": status}
