"""Editors for the tests of this folder; each test is skipped, with the reason, where one is not."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import debian

if TYPE_CHECKING:
    from .neovim import Neovim

StartNeovim = Callable[..., "Neovim"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is broken fails twice; a busy editor that loses a key fails a test once, and says so."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def fetched(name: str) -> Path:
    """The editor's program, else a skip."""
    try:
        return debian.find(name)
    except debian.EditorMissing as error:
        pytest.skip(f"no {name}: {error}")


def _starter(name: str, tmp_path: Path) -> Iterator[StartNeovim]:
    pytest.importorskip("pyte", reason="there is no pyte (pip install 'dgemma-lsp[e2e]')")
    from .neovim import Neovim

    program = fetched(name)
    started: list[Neovim] = []
    numbers = itertools.count()

    def start(text: str, **options: Any) -> Neovim:
        home = tmp_path / f"home{next(numbers)}"
        home.mkdir()
        neovim = Neovim(program, home, text, **options)
        started.append(neovim)
        return neovim

    yield start
    for neovim in started:
        print(neovim.terminal.text())  # which pytest shows if the test failed
        neovim.close()


@pytest.fixture
def neovim_12(tmp_path: Path) -> Iterator[StartNeovim]:
    """Starts a Neovim 0.12."""
    yield from _starter("nvim-0.12", tmp_path)


@pytest.fixture
def neovim_10(tmp_path: Path) -> Iterator[StartNeovim]:
    """Starts a Neovim 0.10."""
    yield from _starter("nvim-0.10", tmp_path)


@pytest.fixture(params=["nvim-0.12", "nvim-0.10"])
def neovim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartNeovim]:
    """Starts a Neovim, of each version in turn."""
    yield from _starter(request.param, tmp_path)


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where pictures go: the folder that DGEMMA_SHOTS names, or the test's own."""
    folder = Path(os.environ.get("DGEMMA_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
