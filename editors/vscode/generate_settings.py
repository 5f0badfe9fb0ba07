"""Writes the server's settings into package.json, from the dataclass in dgemma_lsp/settings.py.

    python editors/vscode/generate_settings.py

Names, defaults and kinds are the fields', descriptions those of the docstring. A test fails when
package.json differs from what this writes.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from dgemma_lsp.settings import Settings

MANIFEST = Path(__file__).parent / "package.json"

# These name what is loaded on this machine: not for a workspace to say unasked.
MACHINE = {"model", "device"}

_KINDS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def properties() -> dict[str, Any]:
    """The `properties` of the group of settings that are the server's."""
    descriptions = _descriptions()
    found = {}
    for field in fields(Settings):
        name = re.sub(r"_(\w)", lambda match: match[1].upper(), field.name)
        default = field.default_factory() if field.default is MISSING else field.default
        found[f"dgemma.{name}"] = {
            **_kind(str(field.type)),
            "default": list(default) if isinstance(default, tuple) else default,
            "scope": "machine-overridable" if field.name in MACHINE else "window",
            "description": descriptions[field.name],
        }
    return found


def manifest_text() -> str:
    """package.json as it should be."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    manifest["contributes"]["configuration"][0]["properties"] = properties()
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _kind(annotation: str) -> dict[str, Any]:
    if annotation.startswith("tuple[str"):
        return {"type": "array", "items": {"type": "string"}}
    kinds = [_KINDS.get(part, part.lower()) for part in annotation.split(" | ")]
    kinds = ["null" if kind == "none" else kind for kind in kinds]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}


def _descriptions() -> dict[str, str]:
    """Field -> the sentences that the docstring has for it."""
    listed = (inspect.getdoc(Settings) or "").split("Attributes:\n")[1]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return {
        name: re.sub(r"\s+", " ", text)[0].upper() + re.sub(r"\s+", " ", text)[1:]
        for name, text in entries
    }


if __name__ == "__main__":
    MANIFEST.write_text(manifest_text(), encoding="utf-8")
