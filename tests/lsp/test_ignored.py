"""Which files are never read: judged by git itself, and by a list of names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dgemma_lsp.ignored import holds_secrets, is_ignored_by_git, matches

FILES = (
    *("a.py", "build/a.py", "build/keep/a.py", "src/a.py", "src/a.log", "src/keep.log"),
    *(
        "src/deep/a.tmp",
        "src/deep/b.py",
        "local/a.py",
        "notes.txt",
        "src/notes.txt",
        "x/build/a.py",
    ),
    *("weird name.log", "é.log", "excluded.py"),
)
PATTERNS = {
    ".gitignore": "build/\n*.log\n!src/keep.log\n/notes.txt\n# text\nlocal/*\n!build/keep/a.py\n",
    "src/.gitignore": "*.tmp\n",
    "src/deep/.gitignore": "!a.tmp\n",
}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")
def test_git_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every file of a small repository, and of the same one without .git."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    root = tmp_path / "repo"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in PATTERNS.items():
        (root / name).write_text(text)
    assert not any(is_ignored_by_git((root / name).as_uri()) for name in FILES)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".git/info").mkdir(exist_ok=True)
    (root / ".git/info/exclude").write_text("excluded.py\n")
    for name in FILES:
        asked = subprocess.run(["git", "-C", str(root), "check-ignore", "-q", name], check=False)
        assert is_ignored_by_git((root / name).as_uri()) == (asked.returncode == 0), name


def test_a_changed_gitignore_counts(tmp_path: Path) -> None:
    """Patterns are read again when their file has changed."""
    (tmp_path / ".git").mkdir()
    uri = (tmp_path / "a.py").as_uri()
    assert not is_ignored_by_git(uri)
    (tmp_path / ".gitignore").write_text("a.py\n")
    assert is_ignored_by_git(uri)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".env", True),
        (".env.production", True),
        (".env.example", False),
        ("deploy/prod.env", True),
        ("ID_RSA", True),
        ("id_rsa.pub", False),
        ("certs/server.key", True),
        (".aws/config", True),
        ("secrets.yaml", True),
        ("src/environment.py", False),
        ("keyboard.py", False),
        ("tokens.py", False),
    ],
)
def test_names_of_secrets(name: str, expected: bool) -> None:
    """In any folder, and in documents that are no files."""
    assert holds_secrets(f"file:///home/me/{name}") is expected
    assert holds_secrets(f"vscode-remote://host/home/me/{name}") is expected


def test_patterns_of_the_user() -> None:
    """As in .gitignore, against the whole path."""
    globs = ("vendor/", "*.generated.py")
    assert matches("file:///p/vendor/a.py", globs)
    assert matches("file:///p/a.generated.py", globs)
    assert not matches("file:///p/a.py", globs)
    assert not matches("untitled:vendor/a.py", globs)
