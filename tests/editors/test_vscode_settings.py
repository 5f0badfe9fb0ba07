"""The extension's manifest and the server's dataclass say the same."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import dgemma_lsp
from dgemma_lsp.settings import Settings, read_settings

EXTENSION = Path(__file__).parent.parent.parent / "editors/vscode"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    file = EXTENSION / "generate_settings.py"
    spec = importlib.util.spec_from_file_location("generate_settings", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_of_the_manifest_are_those_of_the_server(generator: ModuleType) -> None:
    """After a change of the dataclass: python editors/vscode/generate_settings.py."""
    expected = generator.manifest_text()
    assert expected == (EXTENSION / "package.json").read_text(encoding="utf-8")


def test_the_defaults_of_the_manifest_are_settings_the_server_takes(generator: ModuleType) -> None:
    """What the editor shows as default is what holds when nothing is sent."""
    shown = {
        key.removeprefix("dgemma."): described["default"]
        for key, described in generator.properties().items()
    }
    assert (Settings(), []) == read_settings(shown, Settings())


def test_the_extension_has_the_version_of_the_server() -> None:
    """The wheel inside the extension and the one it would fetch are the same."""
    manifest = json.loads((EXTENSION / "package.json").read_text(encoding="utf-8"))
    assert dgemma_lsp.__version__ == manifest["version"]


def test_no_source_of_the_extension_opens_a_connection() -> None:
    """No telemetry: nothing that talks to a network is imported, but pip, after consent."""
    forbidden = re.compile(r"""\bfetch\(|node:https?|node:net|node:dgram|TelemetryLogger""")
    for file in sorted((EXTENSION / "src").glob("*.ts")):
        assert not forbidden.search(file.read_text(encoding="utf-8")), file.name
