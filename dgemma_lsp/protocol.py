"""What this server says beside LSP: two notifications, for clients that opted in.

A client opts in with `capabilities.experimental.dgemma = {"status": true, "canvas": true}`. Whoever
does not misses nothing but the show. editors/PROTOCOL.md describes both for the authors of clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsprotocol import converters, types

from dgemma_engine.types import DraftStep

STATUS = "dgemma/status"
CANVAS = "dgemma/canvas"

_converter = converters.get_converter()


@dataclass(frozen=True, slots=True)
class OptIns:
    """Which of the notifications a client wants, and whether it wants completion items."""

    status: bool = False
    canvas: bool = False
    completion: bool = False

    @classmethod
    def of(cls, client: types.ClientCapabilities) -> OptIns:
        """Read from `experimental.dgemma`; whatever is not true counts as no."""
        experimental = as_json(client.experimental)
        wanted = experimental.get("dgemma") if isinstance(experimental, Mapping) else None
        if not isinstance(wanted, Mapping):
            return cls()
        return cls(**{name: wanted.get(name) is True for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class StatusParams:
    """Of `dgemma/status`, sent whenever it changes.

    Attributes:
        state: "loading", "ready", "busy", "off" or "error".
        message: one sentence; with "error" it ends in what to do.
        model: name of the checkpoint that is loaded, or None.
        device: "cpu", "cuda:0", ..., or None.
        last_latency_ms: from the last request that was answered with a suggestion to its answer.
        last_engine_ms: of it, the engine's part; None where the engine was not asked.
        shown: suggestions and fills that were offered.
        silent: how often nothing was offered, by reason.
    """

    state: str
    message: str
    model: str | None
    device: str | None
    last_latency_ms: float | None
    last_engine_ms: float | None
    shown: int
    silent: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "message": self.message,
            "model": self.model,
            "device": self.device,
            "lastLatencyMs": self.last_latency_ms,
            "lastEngineMs": self.last_engine_ms,
            "shown": self.shown,
            "silent": dict(self.silent),
        }


@dataclass(frozen=True, slots=True)
class CanvasParams:
    """Of `dgemma/canvas`: a draft after one denoising step.

    Attributes:
        uri, version: of the document the hole is in.
        number: of the fill; counts up.
        range: what the draft would replace.
        step: the draft; None when the fill has ended with nothing to offer.
        done: the last of this fill; always sent, so that the show can be cleared away.
    """

    uri: str
    version: int | None
    number: int
    range: types.Range
    step: DraftStep | None
    done: bool

    def to_json(self) -> dict[str, Any]:
        step = self.step
        tokens = step.tokens if step is not None else ()
        return {
            "uri": self.uri,
            "version": self.version,
            "id": self.number,
            "range": _converter.unstructure(self.range),
            "step": step.step if step is not None else 0,
            "maxSteps": step.max_steps if step is not None else 0,
            "text": step.text if step is not None else "",
            "tokens": [
                {
                    "text": token.text,
                    "confidence": round(token.confidence, 4),
                    "accepted": token.is_accepted,
                }
                for token in tokens
            ],
            "done": self.done,
        }


def as_json(value: object) -> object:
    """Plain dictionaries of what pygls made objects of."""
    if hasattr(value, "_asdict"):
        return {key: as_json(item) for key, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return value
