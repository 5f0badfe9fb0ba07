"""What a user can set: one dataclass, and the reading of it from an editor or a project.

Each field carries its description and its limits; the schemas of the editors' settings and the
table of the documentation are made from them by `schema`. In configurations the names are camelCase
("maxTokens"). A value of the wrong kind, or out of range, keeps the value that was there, and the
caller is told why.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dgemma_engine.memory import QUANTIZATIONS
from dgemma_engine.types import Decoder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENGINES = ("process", "shared", "vllm")  # `engines.py` builds them
SECTION = "dgemma"  # of workspace/configuration
TABLE = "dgemma-lsp"  # of a project's pyproject.toml, below [tool]
# A folder that was cloned may not choose what is loaded here, nor speak for the whole editor.
_NOT_OF_A_PROJECT = frozenset(
    {
        "model",
        "device",
        "quantization",
        "enabled",
        "engine",
        "engine_url",
        "engine_key_variable",
    }
)


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def _whole(default: int | None, least: int, greatest: int, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "limits": (least, greatest)})


def _choice(default: str, choices: tuple[str, ...], doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "choices": choices})


def _list(default: tuple[str, ...], of: str, doc: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"doc": doc, "of": of, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def _text(default: str, doc: str) -> Any:
    """May be empty only if its default is."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def _switch(default: bool, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"doc": doc, "switch": True})


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one server; `schema()` describes them.

    Raises:
        ValueError: at construction, if a value is out of range; the message shows it.
    """

    enabled: bool = _switch(True, "Whether the server suggests and fills at all.")
    model: str = _text(
        "default",
        "`default` for the small model in the package, else a checkpoint folder. With `vllm`: the "
        "model's name there, or a folder with its `tokenizer.json` and `config.json`.",
    )
    device: str = _text("auto", "`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    engine: str = _choice(
        "process",
        ENGINES,
        "Where the model runs: `process` for a process of this server alone, `shared` for one that "
        "all windows of this user share, `vllm` for a server that is there already (`engineUrl`).",
    )
    engine_url: str = _text(
        "", "Address of that server, `http://host:8000/v1`. Code is sent there as you type."
    )
    engine_key_variable: str = _text(
        "DGEMMA_ENGINE_KEY",
        "Name of the environment variable with the key for that server. The key itself is never a "
        "setting.",
    )
    quantization: str = _choice(
        "none",
        ("none", *QUANTIZATIONS),
        "In what the large matrices of a model are held, to save memory; `none` for as its "
        "checkpoint has them. Slower on a CPU.",
    )
    engine_level: str = _choice(
        "auto",
        ("auto", "in-painting", "suffix", "prompt", "chat"),
        "How that server is asked for a hole; `auto` finds out the best way that it knows. See "
        "engine/DEPLOYMENT.md.",
    )
    trigger: str = _choice(
        "automatic",
        ("automatic", "invoked"),
        "When inline completions come: while typing, or only when they are asked for.",
    )
    disabled_languages: tuple[str, ...] = _list(
        (), "language ids", "Languages (LSP ids) in which nothing is suggested or filled."
    )
    disabled_in: tuple[str, ...] = _list(
        ("comments", "strings"),
        "`comments` or `strings`",
        "Where nothing is suggested while typing; what is asked for is filled anywhere.",
        ("comments", "strings"),
    )
    max_tokens: int = _whole(64, 1, 4096, "Longest fill, in tokens.")
    passes: int | None = _whole(
        None, 1, 256, "Denoising passes at most; null for the model's own number."
    )
    decoder: str = _choice(
        "auto",
        tuple(decoder.value for decoder in Decoder),
        "How: `auto` takes what the model fills such holes best with.",
    )
    deadline_ms: int = _whole(
        3000,
        0,
        600_000,
        "Milliseconds for a suggestion while typing; then the best draft so far is judged. 0 for "
        "no limit. What was asked for has none.",
    )
    min_confidence: int | None = _whole(
        None,
        0,
        100,
        "Percent. While typing, a suggestion goes only as far as the model is so sure of it; null "
        "takes what was fitted for the model.",
    )
    alternatives: int = _whole(
        3, 1, 8, "How many suggestions an inline completion that was asked for offers at most."
    )
    repairs: int = _whole(
        2, 0, 4, "How often the part of a fill that does not parse is filled anew before giving up."
    )
    rewrite_strength: int = _whole(
        50, 1, 100, "Percent of a selection's tokens that a rewrite may change at the start."
    )
    seed: int = _whole(
        0, 0, 2**53 - 1, "Of the model's noise; the same text and seed give the same fill."
    )
    completion: str = _choice(
        "off",
        ("off", "on"),
        "Whether the completion menu has an entry that fills, for editors without inline "
        "completions. Read once, from `initializationOptions`.",
    )
    prefix_chars: int = _whole(8000, 0, 1_000_000, "Characters read before the hole at most.")
    suffix_chars: int = _whole(2000, 0, 1_000_000, "Characters read after the hole at most.")
    context_sources: tuple[str, ...] = _list(
        ("imports", "open_files", "project"),
        "`imports`, `open_files` or `project`",
        "What is read beside the text around the hole: this file's imports and the signatures it "
        "names, and definitions in other files that are open, or were edited and closed lately. "
        "The shipped model also recalls how code went on in open files, and with `project` in the "
        "files around this one.",
        ("imports", "open_files", "project"),
    )
    context_chars: int = _whole(
        2000, 0, 100_000, "Characters of imports and definitions read at most."
    )
    ignore_globs: tuple[str, ...] = _list(
        (),
        "patterns as in .gitignore",
        "Files that are never read for context, and in which nothing is filled; beside what git "
        "ignores, and files that usually hold secrets.",
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            problem = _problem(item, getattr(self, item.name))
            if problem:
                raise ValueError(f"{_camel(item.name)} {problem}")


def engine_choice(settings: Settings) -> tuple[str, ...]:
    """What the engine is built from: another one is needed when this changes."""
    return (
        settings.model,
        settings.device,
        settings.quantization,
        settings.engine,
        settings.engine_url,
        settings.engine_key_variable,
        settings.engine_level,
    )


def schema() -> dict[str, dict[str, Any]]:
    """JSON schema of every setting, by its name in a configuration."""
    return {_camel(item.name): _schema(item) for item in fields(Settings)}


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
    known = {_camel(item.name): item for item in fields(Settings)}
    problems: list[str] = []
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            problems.append(f"unknown setting {key!r}; {_meant(key, known)}")
        elif value is not None:
            value = tuple(value) if isinstance(value, list) else value
            item = known[key]
            if problem := _problem(item, value):
                kept = getattr(base, item.name)
                problems.append(f"setting {key!r} {problem}; {_shown(kept)} is kept")
            else:
                changes[item.name] = value
    return replace(base, **changes), problems


def project_folder(folder: Path) -> Path:
    """The nearest folder upwards with a pyproject.toml; `folder` itself if there is none."""
    return next(
        (place for place in (folder, *folder.parents) if (place / "pyproject.toml").exists()),
        folder,
    )


def read_project(folder: Path, base: Settings) -> tuple[Settings, list[str]]:
    """Settings from the table [tool.dgemma-lsp] of a folder's pyproject.toml, over those in `base`.

    Returns:
        the settings, and a sentence for every value, key or file that could not be used.
    """
    path = folder / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return base, []
    except (OSError, ValueError) as error:
        return base, [f"{path} cannot be read: {error}"]
    tool = document.get("tool")
    table = tool.get(TABLE) if isinstance(tool, dict) else None
    problems: list[str] = []
    if isinstance(table, dict):
        not_its_own = {_camel(name) for name in _NOT_OF_A_PROJECT}
        refused = sorted(not_its_own & set(table))
        problems = [f"a project may not set {name!r}; set it in the editor" for name in refused]
        table = {key: value for key, value in table.items() if key not in not_its_own}
    settings, more = read_settings(table, base)
    return settings, [f"{path}: {problem}" for problem in problems + more]


def settings_page() -> str:
    """editors/SETTINGS.md: every setting, where it can be set, and what comes over what."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, entry in schema().items():
        choices = entry.get("enum") or entry.get("items", {}).get("enum")
        limits = f" {entry['minimum']} to {entry['maximum']}." if "minimum" in entry else ""
        one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        doc = entry["description"] + (limits or one_of)
        lines.append(f"| `{name}` | `{json.dumps(entry['default'])}` | {doc} |")
    return f"{_PAGE}\n{chr(10).join(lines)}\n"


_PAGE = f"""\
# Settings

<!-- Made by: python -m dgemma_lsp.settings > editors/SETTINGS.md -->

Each of these comes over the ones before it:

1. `--model`, `--device`, `--quantization`, `--engine` and `--engine-url` of `dgemma-lsp serve`;
2. the table `[tool.{TABLE}]` of the `pyproject.toml` in the folder that is open. A folder that
   was cloned has no say in {", ".join(f"`{_camel(name)}`" for name in sorted(_NOT_OF_A_PROJECT))};
3. `initializationOptions`;
4. the section `{SECTION}` of the editor's configuration, asked for with `workspace/configuration`
   or sent with `workspace/didChangeConfiguration`.

A value that cannot be used costs one warning in the log, and what was there before stays. Null
means "not set".
"""


def _schema(item: dataclasses.Field[Any]) -> dict[str, Any]:
    metadata = item.metadata
    default = list(item.default) if isinstance(item.default, tuple) else item.default
    made: dict[str, Any] = {"description": metadata["doc"], "default": default}
    if "limits" in metadata:
        least, greatest = metadata["limits"]
        is_optional = item.default is None
        kind: Any = ["integer", "null"] if is_optional else "integer"
        return {"type": kind, **made, "minimum": least, "maximum": greatest}
    if "switch" in metadata:
        return {"type": "boolean", **made}
    if "of" in metadata:
        items: dict[str, Any] = {"type": "string"}
        if metadata["choices"]:
            items["enum"] = list(metadata["choices"])
        return {"type": "array", "items": items, **made}
    if "choices" in metadata:
        return {"type": "string", "enum": list(metadata["choices"]), **made}
    return {"type": "string", **made}


def _problem(item: dataclasses.Field[Any], value: Any) -> str | None:
    """What is wrong with a value, as the end of a sentence; None if nothing is."""
    metadata = item.metadata
    if "limits" in metadata:
        least, greatest = metadata["limits"]
        if value is None and item.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
            return f"must be a whole number from {least} to {greatest}, got {_shown(value)}"
    elif "switch" in metadata:
        if not isinstance(value, bool):
            return f"must be true or false, got {_shown(value)}"
    elif "of" in metadata:
        choices = metadata["choices"]
        if (
            not isinstance(value, tuple)
            or not all(isinstance(part, str) for part in value)
            or (choices and not set(value) <= set(choices))
        ):
            return f"must be a list of {metadata['of'].replace('`', '')}, got {_shown(value)}"
    elif "choices" in metadata:
        if value not in metadata["choices"]:
            return f"must be one of {', '.join(metadata['choices'])}, got {_shown(value)}"
    elif not isinstance(value, str) or (item.default and not value):
        return f"must be a text, got {_shown(value)}"
    return None


def _meant(key: object, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _shown(value: object) -> str:
    shown = repr(list(value) if isinstance(value, tuple) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


if __name__ == "__main__":
    print(settings_page(), end="")
