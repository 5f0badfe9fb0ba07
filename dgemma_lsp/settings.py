"""What a user can set: one dataclass, and the reading of it from what an editor sends.

In an editor's configuration the names are camelCase ("maxTokens"). A value of the wrong kind, or
out of range, keeps the value that was there, and the caller is told why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dgemma_engine.types import Decoder

SECTION = "dgemma"  # of workspace/configuration


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one server.

    Attributes:
        model: "default" for the small model in the package, else a checkpoint folder.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        max_tokens: longest fill, 1 .. 4096.
        deadline_ms: time for a suggestion while typing, after which the draft at hand is taken;
            0 for none. A fill that was asked for has no deadline.
        min_confidence: percent; a suggestion while typing is shown as far as the model is so sure
            of it. Null takes what was fitted for the model: half of what is shown is then right.
        decoder: "auto" for what the model fills such holes best with, else "diffusion" or
            "left_to_right".
        seed: of the model's noise; the same text and seed give the same fill.
        prefix_chars: characters read before the hole at most.
        suffix_chars: characters read after the hole at most.
        disabled_languages: language ids in which the server is silent.
    """

    model: str = "default"
    device: str = "auto"
    max_tokens: int = 64
    deadline_ms: int = 3000
    min_confidence: int | None = None
    decoder: str = "auto"
    seed: int = 0
    prefix_chars: int = 8000
    suffix_chars: int = 2000
    disabled_languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            problem = _problem(item.name, getattr(self, item.name))
            if problem:
                raise ValueError(f"{_camel(item.name)} {problem}")


# Least and greatest value of every number.
_LIMITS = {
    "max_tokens": (1, 4096),
    "deadline_ms": (0, 600_000),
    "min_confidence": (0, 100),
    "seed": (0, 2**63 - 1),
    "prefix_chars": (0, 1_000_000),
    "suffix_chars": (0, 1_000_000),
}


def read_settings(raw: object, base: Settings) -> tuple[Settings, list[str]]:
    """Settings from an editor's configuration object, over those in `base`.

    Args:
        raw: decoded JSON; None and an empty object change nothing. A null value means "not set".
    Returns:
        the settings, and a sentence for every value or key that could not be used.
    """
    if raw is None:
        return base, []
    if not isinstance(raw, Mapping):
        return base, [f"settings must be an object, got {type(raw).__name__}; defaults are kept"]
    names = {_camel(item.name): item.name for item in fields(Settings)}
    problems: list[str] = []
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in names:
            problems.append(f"unknown setting {key!r}; known are {', '.join(names)}")
        elif value is not None:
            value = tuple(value) if isinstance(value, list) else value
            if problem := _problem(names[key], value):
                kept = getattr(base, names[key])
                problems.append(f"setting {key!r} {problem}; {_shown(kept)} is kept")
            else:
                changes[names[key]] = value
    return replace(base, **changes), problems


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with a value, as the end of a sentence; None if nothing is."""
    if name == "min_confidence" and value is None:
        return None
    if name in _LIMITS:
        least, greatest = _LIMITS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
            return f"must be a whole number from {least} to {greatest}, got {_shown(value)}"
    elif name == "decoder":
        choices = [decoder.value for decoder in Decoder]
        if value not in choices:
            return f"must be one of {', '.join(choices)}, got {_shown(value)}"
    elif name == "disabled_languages":
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            return f"must be a list of language ids, got {_shown(value)}"
    elif not isinstance(value, str) or not value:
        return f"must be a text, got {_shown(value)}"
    return None


def _shown(value: object) -> str:
    shown = repr(list(value) if isinstance(value, tuple) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)
