"""Texts that a small model may recall from: the rest of the document, and its project's files.

It does not read them; `InfillRequest.nearby` hands them over, the nearest first. Files are read
from disk beside the event loop, looked for again when a document opens or is saved, and left out
where git ignores them or their names say that they hold secrets. `related.py` chooses what is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from .context import prefix_window, to_lf
from .document import DocumentSnapshot
from .hole import Hole
from .ignored import may_read, path_of
from .settings import Settings

logger = logging.getLogger(__name__)

# Of all texts together; tokenizing so much takes the shipped model a quarter of a second, once.
_MOST_CHARS = 400_000
_LONGEST_FILE = 200_000  # characters; longer ones are seldom written by hand
_MOST_LISTED = 4000  # files of a project that are looked at for their names
_MARKS_OF_PROJECTS = (".git", "pyproject.toml", "package.json", "Cargo.toml", "go.mod")
_SKIPPED = frozenset(("node_modules", "site-packages", "venv", "env", "build", "dist", "target"))


class NearbyTexts:
    """Finds them for holes; keeps what it read of a project's files."""

    def __init__(self) -> None:
        self._of_document: dict[str, list[tuple[str, str]]] = {}  # by URI: URIs and their texts
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._may_read: dict[tuple[str, tuple[str, ...]], bool] = {}  # until files are read again

    def find(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        others: Sequence[DocumentSnapshot] = (),
    ) -> tuple[str, ...]:
        """The texts for a hole, as far as they are read by now.

        Args:
            others: other documents that may be read, the one that was edited last at the end; in
                the place of their files.
        """
        texts = list(rest_of_document(snapshot, hole, settings))
        opened: set[str] = set()
        if "open_files" in settings.context_sources:
            same = [other for other in others if other.language_id == snapshot.language_id]
            for other in reversed(same):
                key = other.uri, settings.ignore_globs
                if key not in self._may_read:
                    self._may_read[key] = may_read(*key)
                if self._may_read[key]:
                    opened.add(other.uri)
                    texts.append(to_lf(other.text))
        if "project" in settings.context_sources:
            files = self._of_document.get(snapshot.uri, [])
            texts += [text for uri, text in files if uri not in opened]
        return within(texts)

    async def read_project(self, snapshot: DocumentSnapshot, settings: Settings) -> None:
        """Read the files near a document, on a thread; once at a time."""
        path = path_of(snapshot.uri)
        if path is None or "project" not in settings.context_sources:
            return
        running = self._reading.get(snapshot.uri)
        if running is None:
            running = asyncio.ensure_future(self._read(snapshot, path, settings))
            self._reading[snapshot.uri] = running
        await asyncio.wait([running])

    async def _read(self, snapshot: DocumentSnapshot, path: Path, settings: Settings) -> None:
        try:
            files = await asyncio.to_thread(read_files_near, path, snapshot.text, settings)
            self._of_document[snapshot.uri] = [(file.as_uri(), text) for file, text in files]
        except (OSError, ValueError) as error:
            logger.debug("the project's files were not read: %s", type(error).__name__)
        finally:
            del self._reading[snapshot.uri]
            self._may_read.clear()

    def forget(self, uri: str) -> None:
        """A document was closed."""
        self._of_document.pop(uri, None)


def texts_near(
    path: Path,
    snapshot: DocumentSnapshot,
    hole: Hole,
    settings: Settings,
    root: Path | None = None,
) -> tuple[str, ...]:
    """As `NearbyTexts.find`, for a file that no editor has open; see `read_files_near`."""
    files = read_files_near(path, snapshot.text, settings, root)
    return within((*rest_of_document(snapshot, hole, settings), *(text for _, text in files)))


def rest_of_document(snapshot: DocumentSnapshot, hole: Hole, settings: Settings) -> tuple[str, ...]:
    """What of a document is beyond the windows that the model is given."""
    start = hole.start - len(prefix_window(snapshot, hole, settings.prefix_chars))
    end = hole.end + settings.suffix_chars
    pieces = snapshot.text[: max(0, start)], snapshot.text[end:]
    return tuple(to_lf(piece) for piece in pieces if piece.strip())


def within(texts: Iterable[str], most_chars: int = _MOST_CHARS) -> tuple[str, ...]:
    """The first texts, as many as the budget holds; the last of them is cut to it."""
    kept: list[str] = []
    for text in texts:
        if most_chars <= 0:
            break
        kept.append(text[:most_chars])
        most_chars -= len(text)
    return tuple(kept)


def read_files_near(
    path: Path, text: str, settings: Settings, root: Path | None = None
) -> list[tuple[Path, str]]:
    """The files of a document's project that are most like it, and their texts, within the budget.

    Args:
        path: of the document, absolute.
        text: of the document.
        root: the project's folder; None to look for it.
    """
    found: list[tuple[Path, str]] = []
    room = _MOST_CHARS
    for file in nearest_first(path, text, _list_files(path, root or _project_root(path))):
        if room <= 0:
            break
        # A link may lead out of the project, to what the patterns would leave out.
        if file.is_symlink() or not may_read(file.as_uri(), settings.ignore_globs):
            continue
        content = _read_text(file, _stamp(file))
        if content:
            found.append((file, content))
            room -= len(content)
    return found


def nearest_first(path: Path, text: str, files: Iterable[Path]) -> list[Path]:
    """Files by what they say about a document: its folder's first, then those that it names.

    Args:
        path: of the document; not among the result.
        text: of the document.
        files: of its project.
    """
    words = set(re.findall(r"\w+", text))

    def distance(file: Path) -> tuple[bool, bool, int, str]:
        shared = Path(os.path.commonpath((file.parent, path.parent)))
        steps = len(file.parts) + len(path.parts) - 2 * len(shared.parts)
        return file.parent != path.parent, file.stem not in words, steps, str(file)

    return sorted((file for file in files if file != path), key=distance)


def _project_root(path: Path) -> Path | None:
    """The nearest folder upwards that says it is a project; None if none does."""
    return next(
        (
            folder
            for folder in path.parents
            if any((folder / name).exists() for name in _MARKS_OF_PROJECTS)
        ),
        None,
    )


def _list_files(path: Path, root: Path | None) -> list[Path]:
    """Files of the same kind in a document's project; in its folder alone if it is in none.

    Outwards from its folder, so that in a large project what is near is found before the limit.
    """
    found = [file for file in path.parent.glob(f"*{path.suffix}") if file.is_file()]
    if root is None:
        return found
    num_seen = 0
    inner = path.parent
    outwards = [folder for folder in path.parents if folder.is_relative_to(root)]
    for start in outwards:
        for folder, folders, names in os.walk(start):
            below = Path(folder)
            folders[:] = sorted(
                name for name in folders if _is_source(name) and below / name != inner
            )
            num_seen += len(names)
            if below != path.parent:
                found += [below / name for name in names if Path(name).suffix == path.suffix]
            if num_seen > _MOST_LISTED:
                return found
        inner = start
    return found


def _is_source(folder: str) -> bool:
    """Whether a folder may hold what a person wrote, by its name."""
    return not folder.startswith((".", "__")) and folder not in _SKIPPED


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _read_text(path: Path, stamp: tuple[int, int]) -> str:
    """A file's text as it was at `stamp`; empty where it is too long or cannot be read."""
    if not 0 < stamp[1] <= _LONGEST_FILE:
        return ""
    try:
        return to_lf(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
