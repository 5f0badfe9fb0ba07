"""Packages by their registries' own clients, and the source files in them.

A package of the manifest names its client: pip (wheels), npm (`npm pack`), apt (a binary package of
Debian that holds sources) or apt-source (the upstream archive). Every file is checked by sha256.
Which of the source files are used is decided in `corpus.py`.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# By a file name's ending; the names are those of `special_tokens.LANGUAGES`.
_LANGUAGES = {
    ".py": "python",
    ".js": "javascript",
    ".mjs": "javascript",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".go": "go",
    ".rs": "rust",
    ".c": "c",
    ".h": "c",
}
_NO_SOURCE = (".d.ts", ".min.js")

_DEBIAN = "deb-src http://deb.debian.org/debian bookworm main\n"

SourceFile = tuple[str, bytes]  # path in the package, content


def language_of(path: str) -> str | None:
    """The language of a source file; None for anything else."""
    if path.endswith(_NO_SOURCE):
        return None
    return _LANGUAGES.get(Path(path).suffix)


def download(manifest: dict[str, Any], folder: Path) -> None:
    """Fetch every package that is not there yet.

    Raises:
        SystemExit: a file's sha256 is not the pinned one.
        CalledProcessError: a client fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in manifest["packages"] if not (folder / p["file"]).exists()]
    wheels = [p for p in missing if _client(p) == "pip"]
    if wheels:
        _download_wheels(wheels, manifest["pip_options"], folder)
    for package in missing:
        if package not in wheels:
            _download_other(package, folder)
    for package in manifest["packages"]:
        found = hashlib.sha256((folder / package["file"]).read_bytes()).hexdigest()
        if found != package["sha256"]:
            raise SystemExit(f"{package['file']}: sha256 is {found}, pinned {package['sha256']}")


def _client(package: dict[str, Any]) -> str:
    return str(package.get("client", "pip"))


def _download_wheels(packages: list[dict[str, Any]], pip_options: list[str], folder: Path) -> None:
    """For one fixed platform, so that hashes agree."""
    requirements = folder / "requirements.txt"
    requirements.write_text(
        "".join(f"{p['name']}=={p['version']} --hash=sha256:{p['sha256']}\n" for p in packages)
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, *pip_options, "-r", str(requirements)], check=True)


def _download_other(package: dict[str, Any], folder: Path) -> None:
    name, version = package["name"], package["version"]
    commands = {
        "npm": [["npm", "pack", "--silent", f"{name}@{version}"]],
        "apt": [["apt-get", "download", "-qq", f"{name}={version}"]],
    }
    if _client(package) == "apt-source":
        lists = folder / "apt"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        sources = folder / "sources.list"  # not among the lists: apt deletes what it does not know
        sources.write_text(_DEBIAN)
        apt = ["apt-get", "-qq", "-o", f"Dir::Etc::SourceList={sources}"]
        apt += ["-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={lists}"]
        source = [*apt, "source", "--download-only", f"{name}={version}"]
        commands["apt-source"] = [[*apt, "update"], source]
    for command in commands[_client(package)]:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def standard_library_files() -> Iterator[SourceFile]:
    """The running interpreter's."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_bytes()


def package_files(package: dict[str, Any], folder: Path) -> Iterator[SourceFile]:
    """The source files of a package, sorted, of all languages known here.

    `folders` of the package, where it has any, says in which folders they lie.
    """
    folders = tuple(f"{name}/" for name in package.get("folders", ()))
    for path, content in _members(folder / package["file"]):
        if language_of(path) is not None and (not folders or path.startswith(folders)):
            yield path, content


def _members(archive: Path) -> Iterator[SourceFile]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wheel.namelist()):
                if language_of(name) == "python":
                    yield name, wheel.read(name)
        return
    data = archive.read_bytes()
    if archive.suffix == ".deb":
        unpacked = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True
        )
        data = unpacked.stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and language_of(member.name) is not None:
                # Without the archive's own first folder: package/, name-1.0/, ./
                yield member.name.split("/", 1)[1], file.read()
