"""Document text, and the one place that converts Position <-> character offset.

LSP ends a line at \\n, \\r\\n or \\r and nowhere else; `str.splitlines`, which pygls uses, also
ends it at form feeds, U+2028 and seven more, so one such character shifts every later edit. The
second half of this module mends pygls's documents with the first half. It hands on what was edited
to `lazy_tree.py`, and knows nothing else of syntax, nor of holes.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from urllib.parse import unquote

from lsprotocol import types
from pygls.workspace import PositionCodec, TextDocument, Workspace
from pygls.workspace.position_codec import ServerTextPosition

from .ignored import path_of
from .lazy_tree import LazyTree

Encoding = types.PositionEncodingKind | str

UTF8 = types.PositionEncodingKind.Utf8
UTF16 = types.PositionEncodingKind.Utf16
UTF32 = types.PositionEncodingKind.Utf32


def count_units(text: str, encoding: Encoding) -> int:
    """Code units of `text` in a position encoding; an unknown one counts as utf-16, the default."""
    if encoding == UTF32 or text.isascii():
        return len(text)
    if encoding == UTF8:
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def count_chars(line: str, units: int, encoding: Encoding) -> int:
    """Characters in the first `units` code units of `line`.

    Past the end means the end; inside a character means before that character.
    """
    if encoding == UTF32 or line.isascii():
        return min(units, len(line))
    if encoding == UTF8:
        data = line.encode("utf-8", "surrogatepass")
        while 0 < units < len(data) and data[units] & 0xC0 == 0x80:
            units -= 1
        return len(data[:units].decode("utf-8", "surrogatepass"))
    data = line.encode("utf-16-le", "surrogatepass")
    cut = 2 * units
    if 0 < cut < len(data) and _is_pair(data[cut - 2 : cut + 2]):
        cut -= 2
    return len(data[:cut].decode("utf-16-le", "surrogatepass"))


def _is_pair(four_bytes: bytes) -> bool:
    return 0xD8 <= four_bytes[1] <= 0xDB and 0xDC <= four_bytes[3] <= 0xDF


class LineIndex:
    """Where the lines of one text begin; never changes.

    10,000 lines (180 kB) are indexed in about 1 ms: the text is flattened to one separator of
    unchanged length and split, so that no Python loop runs over the lines. After an edit only the
    lines between it and the edit before are gone over, since the starts behind an edit are kept as
    they were, to be read with what the text has grown by.
    """

    __slots__ = ("_growth", "_num_settled", "_starts", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts = _line_starts(text)
        self._num_settled = len(self._starts)  # those behind are off by `_growth`
        self._growth = 0

    def edited(self, start: int, end: int, new: str) -> LineIndex:
        """The index of the text with `text[start:end]` replaced. This one stays as it is."""
        after = LineIndex.__new__(LineIndex)
        after.text = self.text[:start] + new + self.text[end:]
        # A \r\n may be cut or made at either edge, so the lines around the edit are read again.
        first, last = self.line_at(max(0, start - 1)), self.line_at(end) + 1
        piece_start = self._start(first)
        grown = len(new) - (end - start)
        piece_end = len(self.text) if last >= len(self) else self._start(last)
        piece = _line_starts(after.text[piece_start : piece_end + grown])
        if last < len(self):
            piece.pop()  # the piece ends with a separator; the line behind it is the next one kept
        head = self._settled(first)
        after._starts = [*head, *(piece_start + offset for offset in piece)]
        after._num_settled = len(after._starts)
        if last < self._num_settled:
            # Lines between this edit and the one before, off by one growth or the other.
            after._starts += [
                offset - self._growth for offset in self._starts[last : self._num_settled]
            ]
            last = self._num_settled
        after._starts += self._starts[last:]
        after._growth = self._growth + grown
        return after

    def _settled(self, count: int) -> list[int]:
        """The first `count` starts as they are now."""
        settled = self._starts[: min(count, self._num_settled)]
        return settled + [offset + self._growth for offset in self._starts[len(settled) : count]]

    def _start(self, line: int) -> int:
        return self._starts[line] + (self._growth if line >= self._num_settled else 0)

    def __len__(self) -> int:
        return len(self._starts)

    def line_at(self, char_offset: int) -> int:
        """Number of the line that holds `char_offset`, counted from 0."""
        char_offset = max(0, char_offset)
        settled = self._num_settled
        if settled < len(self) and self._start(settled) <= char_offset:
            return bisect_right(self._starts, char_offset - self._growth, settled) - 1
        return bisect_right(self._starts, char_offset, 0, settled) - 1

    def bounds(self, line: int) -> tuple[int, int]:
        """Character offsets of a line's text, its separator left out."""
        start = self._start(line)
        if line + 1 == len(self._starts):
            return start, len(self.text)
        end = self._start(line + 1) - 1
        if self.text[end] == "\n" and end > start and self.text[end - 1] == "\r":
            end -= 1
        return start, end

    def line_text(self, line: int) -> str:
        """A line's text without its separator."""
        start, end = self.bounds(line)
        return self.text[start:end]

    def lines_with_ends(self) -> tuple[str, ...]:
        """Every line with its separator."""
        starts = self._settled(len(self))
        ends = [*starts[1:], len(self.text)]
        return tuple(self.text[a:b] for a, b in zip(starts, ends, strict=True))

    def offset_at(self, position: types.Position, encoding: Encoding) -> int:
        """Character offset of a Position: past a line's end is its end, past the last the end."""
        if position.line >= len(self._starts):
            return len(self.text)
        start, end = self.bounds(position.line)
        # A character is a unit at least, so of a long line no more than this is looked at.
        head = self.text[start : min(end, start + position.character)]
        return start + count_chars(head, position.character, encoding)

    def position_at(self, char_offset: int, encoding: Encoding) -> types.Position:
        """Position of a character offset; between \\r and \\n it is the end of the line."""
        line = self.line_at(char_offset)
        start, end = self.bounds(line)
        head = self.text[start : min(char_offset, end)]
        return types.Position(line=line, character=count_units(head, encoding))


def _line_starts(text: str) -> list[int]:
    flat = text.replace("\r\n", " \n").replace("\r", "\n") if "\r" in text else text
    return list(accumulate((len(line) + 1 for line in flat.split("\n")), initial=0))[:-1]


@dataclass(frozen=True, slots=True)
class DocumentSnapshot:
    """A document as it was when a request arrived; later edits do not reach it.

    Attributes:
        uri: as the client spells it.
        version: the client's number for this text, None where it gave none.
        language_id: LSP language identifier, "python".
        text: with the line separators the document has.
        lines: index of `text`; built when not handed in.
        syntax: the tree of `text`, made when it is asked for; `syntax.now()` never takes long.
    """

    uri: str
    version: int | None
    language_id: str
    text: str
    lines: LineIndex = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    syntax: LazyTree = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.lines is None:
            object.__setattr__(self, "lines", LineIndex(self.text))
        if self.syntax is None:
            object.__setattr__(self, "syntax", LazyTree(self.text, self.language_id))

    @property
    def eol(self) -> str:
        """The separator of the first line; "\\n" for a single line."""
        end = self.lines.bounds(0)[1]
        return "\r\n" if self.text.startswith("\r\n", end) else self.text[end : end + 1] or "\n"

    def offset_at(self, position: types.Position, encoding: Encoding) -> int:
        """See `LineIndex.offset_at`."""
        return self.lines.offset_at(position, encoding)

    def range_at(self, start: int, end: int, encoding: Encoding) -> types.Range:
        """LSP Range of two character offsets."""
        return types.Range(
            self.lines.position_at(start, encoding), self.lines.position_at(end, encoding)
        )


class DocumentNotOpen(LookupError):
    """A request names a document that the client did not open."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"document is not open: {uri} (send textDocument/didOpen first)")


class ExactPositionCodec(PositionCodec):
    """pygls's codec with LSP's clamping; `TextDocument`'s helpers that take lines go through it."""

    def position_from_client_units(
        self, lines: Sequence[str], position: types.Position
    ) -> ServerTextPosition:
        if not lines:
            return ServerTextPosition(0, 0)
        line = min(position.line, len(lines) - 1)
        content = lines[line].rstrip("\r\n")
        if position.line >= len(lines):
            return ServerTextPosition(line, len(content))
        encoding = self.encoding or UTF16
        return ServerTextPosition(line, count_chars(content, position.character, encoding))


class ExactTextDocument(TextDocument):
    """A pygls document whose edits and offsets go through `LineIndex`."""

    _line_index: LineIndex | None = None
    _syntax: tuple[LazyTree, str, str] | None = None  # with the text and the language it is for
    was_edited = False

    @property
    def line_index(self) -> LineIndex:
        """Index of the present text, built at most once per text."""
        if self._line_index is None or self._line_index.text is not self.source:
            self._line_index = LineIndex(self.source)
        return self._line_index

    @property
    def encoding(self) -> Encoding:
        return self.position_codec.encoding or UTF16

    @property
    def lines(self) -> Sequence[str]:
        return self.line_index.lines_with_ends()

    def _apply_incremental_change(self, change: types.TextDocumentContentChangePartial) -> None:
        lines, syntax = self.line_index, self.syntax
        start = lines.offset_at(change.range.start, self.encoding)
        end = max(start, lines.offset_at(change.range.end, self.encoding))
        self._line_index = lines.edited(start, end, change.text)
        self._source = self._line_index.text
        language_id = self.language_id or "plaintext"
        tree = syntax.edited(start, end, change.text, self._source)
        self._syntax = tree, self._source, language_id

    @property
    def syntax(self) -> LazyTree:
        """The tree of the present text, once it is asked for."""
        language_id = self.language_id or "plaintext"
        known = self._syntax
        if known is None or known[1] is not self.source or known[2] != language_id:
            known = LazyTree(self.source, language_id), self.source, language_id
            self._syntax = known
        return known[0]

    def offset_at_position(self, client_position: types.Position) -> int:
        return self.line_index.offset_at(client_position, self.encoding)

    def client_position_at_offset(self, offset: int) -> types.Position:
        return self.line_index.position_at(offset, self.encoding)

    def snapshot(self) -> DocumentSnapshot:
        """The document as it is now."""
        language_id = self.language_id or "plaintext"
        return DocumentSnapshot(
            self.uri,
            self.version,
            language_id,
            self.source,
            lines=self.line_index,
            syntax=self.syntax,
        )


# Documents that were edited and closed are kept for what they define, so many at most.
_MOST_CLOSED = 8


class ExactWorkspace(Workspace):
    """A pygls workspace of `ExactTextDocument`s; it never reads a file the client did not open."""

    def __init__(
        self,
        root_uri: str | None,
        sync_kind: types.TextDocumentSyncKind,
        workspace_folders: Sequence[types.WorkspaceFolder],
        position_encoding: Encoding,
    ) -> None:
        super().__init__(root_uri, sync_kind, workspace_folders, position_encoding)
        self._position_codec = ExactPositionCodec(position_encoding)
        self._closed: OrderedDict[str, _ClosedDocument] = OrderedDict()

    def _create_text_document(
        self,
        doc_uri: str,
        source: str | None = None,
        version: int | None = None,
        language_id: str | None = None,
    ) -> ExactTextDocument:
        document = ExactTextDocument(
            doc_uri,
            source=source or "",
            version=version,
            language_id=language_id,
            sync_kind=self._sync_kind,
            position_codec=self._position_codec,
        )
        # Done here, they take no time of the first keystroke.
        _ = document.line_index
        document.syntax.prepare()
        return document

    def get_text_document(self, doc_uri: str) -> ExactTextDocument:
        """The open document.

        Raises:
            DocumentNotOpen: pygls would read the file from disk, or fail with a traceback.
        """
        document = self._text_documents.get(unquote(doc_uri))
        if not isinstance(document, ExactTextDocument):
            raise DocumentNotOpen(doc_uri)
        return document

    def others(self, uri: str) -> list[DocumentSnapshot]:
        """The other documents, those edited and closed lately first, then the open ones, the one
        that was edited last at the end; no notebook cells.
        """
        documents = [*self._text_documents.values()]
        cells = {cell.document for book in self.notebook_documents.values() for cell in book.cells}
        for key, closed in [*self._closed.items()]:
            if not closed.is_on_disk():
                del self._closed[key]
        return [
            *(closed.snapshot for closed in self._closed.values()),
            *(
                document.snapshot()
                for document in documents
                if isinstance(document, ExactTextDocument)
                and document.uri != uri
                and document.uri not in cells
            ),
        ]

    def cells_before(self, uri: str) -> list[DocumentSnapshot]:
        """The cells before this one in its notebook; none for a document that is not a cell."""
        book = self.get_notebook_document(cell_uri=uri)
        uris = [cell.document for cell in book.cells] if book is not None else []
        before = uris[: uris.index(uri)] if uri in uris else []
        return [self.get_text_document(cell).snapshot() for cell in before]

    def update_text_document(
        self,
        text_doc: types.VersionedTextDocumentIdentifier,
        change: types.TextDocumentContentChangeEvent,
    ) -> None:
        document = self.get_text_document(text_doc.uri)
        document.apply_change(change)
        document.version = text_doc.version
        document.syntax.prepare()
        document.was_edited = True
        # The documents are kept in the order in which they were edited.
        key = unquote(text_doc.uri)
        self._text_documents[key] = self._text_documents.pop(key)

    def put_text_document(
        self, text_document: types.TextDocumentItem, notebook_uri: str | None = None
    ) -> None:
        super().put_text_document(text_document, notebook_uri)
        self._closed.pop(unquote(text_document.uri), None)

    def remove_text_document(self, doc_uri: str) -> None:
        key = unquote(doc_uri)
        document = self._text_documents.get(key)
        if isinstance(document, ExactTextDocument) and document.was_edited:
            size = len(document.source.encode("utf-8", "surrogatepass"))
            self._closed[key] = _ClosedDocument(document.snapshot(), size, time.time())
            while len(self._closed) > _MOST_CLOSED:
                self._closed.popitem(last=False)
        super().remove_text_document(doc_uri)


@dataclass(frozen=True, slots=True)
class _ClosedDocument:
    """A document as it was when it was closed."""

    snapshot: DocumentSnapshot
    size: int  # bytes
    closed_at: float  # seconds since the epoch

    def is_on_disk(self) -> bool:
        """Whether the file holds this text still, as far as its size and date tell."""
        path = path_of(self.snapshot.uri)
        if path is None:
            return False
        try:
            found = path.stat()
        except OSError:
            return False
        return found.st_size == self.size and found.st_mtime <= self.closed_at
