"""The map holds: imports run one way, and what is promised of the packages is so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Package folder -> modules that nothing in it may import, at any depth.
FORBIDDEN = {
    "kernels/dgemma_kernels": {
        "dgemma_engine",
        "dgemma_lsp",
        "pygls",
        "lsprotocol",
        "transformers",
    },
    "engine/dgemma_engine": {"dgemma_lsp", "pygls", "lsprotocol", "tree_sitter", "transformers"},
    "engine/training": {"dgemma_lsp", "pygls", "lsprotocol", "transformers"},
    "dgemma_lsp": {
        "torch",
        "triton",
        "dgemma_kernels",
        "safetensors",
        "tokenizers",
        "transformers",
    },
}

# These are imported before torch may be: by the server's start and by `import dgemma_lsp`.
WITHOUT_TORCH = ("types.py", "errors.py", "fake.py", "special_tokens.py")


def imports(path: Path) -> Iterator[str]:
    """The top-level names of all absolute imports of a file, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder: str) -> None:
    """kernels <- engine <- dgemma_lsp, and each knows only the libraries of its layer."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if name in FORBIDDEN[folder]
    }
    assert not found


def test_plain_modules_of_the_engine_need_the_standard_library_only() -> None:
    """What the server imports at its start brings no torch and no third package."""
    engine = ROOT / "engine/dgemma_engine"
    third_party = {"torch", "numpy", "tokenizers", "safetensors", "dgemma_kernels"}
    for name in WITHOUT_TORCH:
        assert not third_party & set(imports(engine / name)), name


def test_top_level_holds_what_the_map_names() -> None:
    """Nothing lies about at the top of the tree. make looks for its file nowhere else."""
    allowed = {
        *("pyproject.toml", "dgemma_lsp", "engine", "kernels", "editors", "tests", "README.md"),
        *("LICENSE", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile"),
        *("dist", "build"),  # what packaging leaves, ignored by git
    }
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found <= allowed


def test_every_module_of_the_map_exists() -> None:
    """ARCHITECTURE.md names no file that is gone."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = {
        word.strip("`,.;:()") for word in text.split() if word.strip("`,.;:()").endswith(".py")
    }
    assert named
    existing = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert {name.rsplit("/", 1)[-1] for name in named} <= existing


def test_version_is_stated_once() -> None:
    """The package and its metadata agree."""
    from dgemma_lsp import __version__

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.+)"$', text, re.MULTILINE) == [__version__]
