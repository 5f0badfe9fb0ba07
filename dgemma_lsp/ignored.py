"""Files that are nobody's business: secrets, and what git or the user leaves out.

A file that usually holds secrets is neither read for context nor filled; one that git ignores is
not read for another one's context. Knows paths and patterns; `related.py` and `server.py` ask it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pathspec import GitIgnoreSpec

SECRETS = GitIgnoreSpec.from_lines(
    [
        *(".env", ".env.*", "*.env", ".envrc", "!.env.example", "!.env.sample", "!.env.template"),
        *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.asc", "*.gpg"),
        *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "!*.pub", ".ssh/", ".gnupg/", ".aws/"),
        *(".netrc", "_netrc", ".pgpass", ".htpasswd", ".git-credentials", ".npmrc", ".pypirc"),
        *(".dockercfg", ".docker/config.json", ".kube/config", "kubeconfig", "*.tfstate"),
        *("*.tfvars", "credentials", "credentials.*", "secrets.*", "secret.*", "secrets/"),
        *("service-account*.json", "*.secret", "*.ovpn", "wp-config.php"),
    ]
)


def path_of(uri: str) -> Path | None:
    """The path of a `file:` URI, None for any other."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    return Path(url2pathname(unquote(parts.path)))


def holds_secrets(uri: str) -> bool:
    """Whether a document's name is one that usually holds secrets, wherever it is."""
    path = path_of(uri)
    name = path.as_posix() if path is not None else urlsplit(uri).path
    return SECRETS.match_file(name.lstrip("/").lower())


def matches(uri: str, globs: tuple[str, ...]) -> bool:
    """Whether a document matches one of the user's patterns, which are those of .gitignore."""
    path = path_of(uri)
    return path is not None and _compile(globs).match_file(path.as_posix().lstrip("/"))


def may_read(uri: str, globs: tuple[str, ...]) -> bool:
    """Whether a document may be read for another one's sake; `globs` are the user's patterns."""
    return not (holds_secrets(uri) or matches(uri, globs) or is_ignored_by_git(uri))


def is_ignored_by_git(uri: str) -> bool:
    """Whether git leaves a file out: the .gitignore of its folder and those above, and the excludes
    of its repository. A file outside any repository is not ignored.
    """
    path = path_of(uri)
    if path is None:
        return False
    root = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    if root is None:
        return False
    for name in _with_parents(path.relative_to(root)):
        decision: bool | None = None
        for source, folder in _sources(root, path.parent):
            if name == Path() or not (root / name).is_relative_to(folder):
                continue
            spec = _read(source, _stamp(source))
            inside = (root / name).relative_to(folder).as_posix()
            verdict = spec.check_file(inside + ("" if (root / name) == path else "/")).include
            decision = verdict if verdict is not None else decision
        if decision:
            return True  # a file cannot be taken back below a folder that is left out
    return False


def _with_parents(path: Path) -> Iterator[Path]:
    """The folders on the way to a path, the outermost first, and the path."""
    yield from reversed([path, *path.parents][:-1])


def _sources(root: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Files of patterns, those that count less first, and the folder that each is about."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    yield home / "git" / "ignore", root
    yield root / ".git" / "info" / "exclude", root
    inside = folder.relative_to(root)
    for part in [Path(), *_with_parents(inside)] if inside != Path() else [Path()]:
        yield root / part / ".gitignore", root / part


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1024)
def _read(path: Path, stamp: int) -> GitIgnoreSpec:
    """The patterns of a file as it was at `stamp`; none where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if stamp else []
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(lines)


@lru_cache(maxsize=16)
def _compile(globs: tuple[str, ...]) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(globs)
