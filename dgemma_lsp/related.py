"""What the model should know of what the hole names: imports, and signatures from elsewhere.

Found by the names around the hole, in this file beyond the window that is read anyway and in other
files that are open, or were lately; the most relevant comes last, next to the text. It stays the
same while a line is typed, so that the engine need not read it again. Files that git ignores, or
that hold secrets, are left out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from .context import prefix_window, to_lf
from .document import DocumentSnapshot
from .hole import Hole
from .ignored import may_read
from .settings import Settings
from .syntax import SyntaxNode, SyntaxTree

_NAME = re.compile(r"[^\W\d]\w{2,}")
_IMPORT = re.compile(
    r"^[ \t]*(?:from|import|use|using|package|require(?:_relative)?|#[ \t]*include)\b.*$"
    r"|^[ \t]*(?:local|const|let|var)\b.*\brequire\b.*$",
    re.MULTILINE,
)
# Names are taken from the text this near to the hole.
_CHARS_BEFORE, _CHARS_AFTER = 1500, 500
_MOST_FILES = 16
_LONGEST_FILE = 500_000  # characters
_LONGEST_SIGNATURE = 300  # characters


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, class or the like: its name, and its text as far as its body."""

    name: str
    signature: str
    start: int
    end: int


class RelatedText:
    """Finds text for holes; remembers what it found for the line that is being typed."""

    def __init__(self) -> None:
        self._of_line: OrderedDict[str, tuple[int, Settings, str]] = OrderedDict()
        self._definitions: dict[str, tuple[int | None, list[Definition]]] = {}

    def find(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        others: Sequence[DocumentSnapshot],
        cells: Sequence[DocumentSnapshot] = (),
    ) -> str:
        """The text to read before the prefix; empty if there is none.

        Args:
            others: other documents, the one that was edited last at the end.
            cells: of the same notebook, before this one, in their order.
        """
        line = snapshot.lines.line_at(hole.start)
        known = self._of_line.get(snapshot.uri)
        if known is not None and known[:2] == (line, settings):
            return known[2]
        pieces = [*self._pieces(snapshot, hole, settings, others), *_texts(snapshot, cells)]
        text = _within(pieces, settings.context_chars)
        self._of_line[snapshot.uri] = line, settings, text
        self._of_line.move_to_end(snapshot.uri)
        if len(self._of_line) > _MOST_FILES:
            self._of_line.popitem(last=False)
        return text

    def forget(self, uri: str) -> None:
        """A document was closed."""
        self._of_line.clear()
        self._definitions.pop(uri, None)

    def _pieces(
        self,
        snapshot: DocumentSnapshot,
        hole: Hole,
        settings: Settings,
        others: Sequence[DocumentSnapshot],
    ) -> Iterator[str]:
        """Pieces of text, the least relevant first."""
        before = snapshot.text[max(0, hole.start - _CHARS_BEFORE) : hole.start]
        after = snapshot.text[hole.end : hole.end + _CHARS_AFTER]
        # The word at the cursor is not finished yet, and changes with every key.
        names = set(_NAME.findall(re.sub(r"\w+$", "", before))) | set(_NAME.findall(after))
        if "open_files" in settings.context_sources:
            yield from self._from_others(snapshot, names, settings, others)
        if "imports" in settings.context_sources:
            yield from _from_here(snapshot, hole, names, settings)

    def _from_others(
        self,
        snapshot: DocumentSnapshot,
        names: set[str],
        settings: Settings,
        others: Sequence[DocumentSnapshot],
    ) -> Iterator[str]:
        found: list[tuple[int, str]] = []
        for other in others[-_MOST_FILES:]:
            if other.language_id != snapshot.language_id or len(other.text) > _LONGEST_FILE:
                continue
            if not may_read(other.uri, settings.ignore_globs):
                continue
            named = [item for item in self._definitions_of(other) if item.name in names]
            if named:
                comment = _line_comment(other)
                head = f"{comment} {_short_path(other.uri)}\n" if comment else ""
                signatures = "".join(f"{item.signature}\n" for item in named)
                found.append((len({item.name for item in named}), head + signatures))
        yield from (piece for _, piece in sorted(found, key=lambda scored: scored[0]))

    def _definitions_of(self, snapshot: DocumentSnapshot) -> list[Definition]:
        version, definitions = self._definitions.get(snapshot.uri, (None, []))
        if version is None or version != snapshot.version:
            tree = snapshot.syntax.now()
            if tree is None:
                return definitions
            definitions = list(_definitions(tree))
            self._definitions[snapshot.uri] = snapshot.version, definitions
        return definitions


def _from_here(
    snapshot: DocumentSnapshot, hole: Hole, names: set[str], settings: Settings
) -> Iterator[str]:
    """Signatures and imports of this file that are outside of what is read anyway."""
    window_start = hole.start - len(prefix_window(snapshot, hole, settings.prefix_chars))
    window_end = hole.end + settings.suffix_chars
    tree = snapshot.syntax.now()
    if tree is not None:
        for item in _definitions(tree):
            if item.name in names and (item.end <= window_start or item.start >= window_end):
                yield f"{item.signature}\n"
    head = to_lf(snapshot.text[: max(0, window_start)])
    imports = [match[0] for match in _IMPORT.finditer(head) if names & set(_NAME.findall(match[0]))]
    if imports:
        yield "".join(f"{line}\n" for line in imports)


def _definitions(tree: SyntaxTree) -> Iterator[Definition]:
    """Those of the text's outermost level, and of classes on it."""
    for node in tree.outermost():
        inner = _unwrapped(node, tree)
        if inner is None:
            continue
        yield from _definition(inner)
        body = inner.field("body")
        if body is not None and "class" in inner.kind:
            for child in body.children:
                member = _unwrapped(child, tree)
                if member is not None:
                    yield from _definition(member)


def _unwrapped(node: SyntaxNode, tree: SyntaxTree) -> SyntaxNode | None:
    """The definition itself, out of a decorator's or an export's node; None if there is none."""
    kinds = tree.language.documented
    if node.kind in kinds:
        return node
    if node.kind in tree.language.wrappers:
        return next((child for child in node.children if child.kind in kinds), None)
    return None


def _definition(node: SyntaxNode) -> Iterator[Definition]:
    name, body = node.field("name"), node.field("body")
    if name is None:
        return
    text = node.text
    signature = text[: body.start - node.start] if body is not None else text.partition("\n")[0]
    signature = to_lf(signature).rstrip().removesuffix("{").rstrip()
    if len(signature) <= _LONGEST_SIGNATURE:
        yield Definition(name.text, signature, node.start, node.end)


def _texts(snapshot: DocumentSnapshot, cells: Sequence[DocumentSnapshot]) -> Iterator[str]:
    for cell in cells:
        if cell.language_id == snapshot.language_id:
            yield to_lf(cell.text).rstrip("\n") + "\n"


def _within(pieces: Sequence[str], budget: int) -> str:
    """The last pieces that fit, whole."""
    kept: list[str] = []
    for piece in reversed(pieces):
        if len(piece) > budget:
            break
        kept.append(piece)
        budget -= len(piece)
    return "".join(f"{piece}\n" for piece in reversed(kept))


def _line_comment(snapshot: DocumentSnapshot) -> str:
    tree = snapshot.syntax.now()
    return tree.language.line_comment if tree is not None else ""


def _short_path(uri: str) -> str:
    return "/".join(PurePosixPath(unquote(urlsplit(uri).path)).parts[-2:]).lstrip("/")
