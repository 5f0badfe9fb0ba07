"""Writes the server's settings into package.json, from the dataclass in dgemma_lsp/settings.py.

    python editors/vscode/generate_settings.py

A test fails when package.json differs from what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgemma_lsp.settings import SECTION, schema

MANIFEST = Path(__file__).parent / "package.json"

# These name what is loaded on this machine: not for a workspace to say unasked.
_MACHINE = {"model", "device", "quantization"}
# These name where code is sent, and with which key: not for a workspace to say at all.
_USER_ONLY = {"engine", "engineUrl", "engineKeyVariable"}


def properties() -> dict[str, Any]:
    """The `properties` of the group of settings that are the server's."""
    return {f"{SECTION}.{name}": _property(name, entry) for name, entry in schema().items()}


def manifest_text() -> str:
    """package.json as it should be."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    manifest["contributes"]["configuration"][0]["properties"] = properties()
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _property(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in entry.items() if key != "description"}
    scope = "machine-overridable" if name in _MACHINE else "window"
    scope = "machine" if name in _USER_ONLY else scope
    return {**rest, "scope": scope, "markdownDescription": entry["description"]}


if __name__ == "__main__":
    MANIFEST.write_text(manifest_text(), encoding="utf-8")
