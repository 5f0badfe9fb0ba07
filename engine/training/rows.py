"""Training rows: documents that the encoder reads, and canvases cut out of them.

A row is `[bos] [language] ([suf] suffix window) [pre] text...` and several canvases, each with its
own cut and hole, laid out by `dgemma_engine.canvas` as at inference. A batch is a function of
(seed, step, phase) alone, so that a resumed run sees the rows that an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dgemma_engine.canvas import (
    EOM_ID,
    EXACT_ID,
    MID_ID,
    PAD_ID,
    marked_canvas_of_several,
    marked_prompt,
    marked_target,
)
from dgemma_engine.special_tokens import EOS, LANGUAGE_TAGS

from .documents import TokenizedDocument
from .masks import joint_mask
from .spans import Span, sample_kind, sample_span

# Slots of a slack hole, by canvas length. The hole is drawn uniformly among those that hold the
# text and its end mark, so that its length says no more about the text's than that.
HOLE_LENGTHS = {32: (8, 16, 24), 64: (8, 16, 24, 32, 48), 128: (16, 24, 32, 48, 64, 96)}

# How 256 canvas tokens of a row are shared out, and how often.
_LAYOUT_TOKENS = 256
_LAYOUTS = (((64, 64, 64, 64), 0.55), ((128, 64, 64), 0.25), ((32, 32, 32, 32, 64, 64), 0.20))

_MIN_PREFIX_TOKENS = 12
_SUFFIX_WINDOW_TOKENS = (16, 96)
# Rows start at a line break this often, as the prefix window of the engine does.
_LINE_START_SHARE = 0.8
_NO_SUFFIX_SHARE = 0.1  # of all canvases: the end of a file
# Of canvases with an end mark, in rows without a suffix window: those that are to hold two holes.
_SECOND_HOLE_SHARE = 0.3
_MOST_BETWEEN_TOKENS = 32
_LEAST_SUFFIX_TOKENS = 4
_MAX_ATTEMPTS = 12
_SUFFIX_CHARS_PER_TOKEN = 8


@dataclass(frozen=True)
class Mixture:
    """What a phase of training asks for.

    Attributes:
        block: share of canvases that are all hole, with no suffix: the densest supervision.
        exact: share of canvases whose hole is exactly as long as its text.
        slack: the rest, with an end mark and padding.
        suffix_window: share of rows whose encoder reads the suffix first; all their canvases end
            where that suffix begins, and the row teaches left-to-right infilling too.
        canvas_tokens: per row; 0 for left-to-right training alone.
    """

    block: float
    exact: float
    slack: float
    suffix_window: float = 0.5
    canvas_tokens: int = _LAYOUT_TOKENS

    @property
    def exact_share(self) -> float:
        """Of the canvases that are not blocks."""
        return self.exact / max(1e-9, self.exact + self.slack)


@dataclass
class Hole:
    """A canvas' content.

    Attributes:
        cut: tokens of the row before it, which it sees.
        canvas_length: C.
        hole_length: M.
        target: (M,) ids that belong into the hole.
        suffix_ids: clamped behind the hole, as far as there is room.
        marker: `MID_ID` or `EXACT_ID`.
        second: of a canvas with two holes, the ids between them and those that belong into the
            second; `suffix_ids` are then what follows that one.
    """

    cut: int
    canvas_length: int
    hole_length: int
    target: list[int]
    suffix_ids: list[int]
    marker: int
    second: tuple[list[int], list[int]] | None = None

    def layout(self) -> tuple[list[int], list[bool]]:
        """Clean canvas and hole mask, both of `canvas_length`."""
        targets, following = [self.target], [self.suffix_ids]
        if self.second is not None:
            between, target = self.second
            targets, following = [self.target, target], [between, self.suffix_ids]
        token_ids, holes = marked_canvas_of_several(
            [len(target) for target in targets], following, self.canvas_length, self.marker
        )
        for number, target in enumerate(targets):
            start = holes.index(number)
            token_ids[start : start + len(target)] = target
        return token_ids, [hole >= 0 for hole in holes]


@dataclass
class Row:
    """One row: what the encoder reads, and its canvases.

    `unscored` are the places of tokens that nothing before them predicts: markers, and where a
    window into the document begins.
    """

    token_ids: list[int]
    unscored: tuple[int, ...]
    holes: list[Hole] = field(default_factory=list)


@dataclass
class Batch:
    """Rows as tensors: L document tokens, then N canvas tokens, T = L + N.

    Attributes:
        token_ids: (B, T) int64, canvases clean.
        is_canvas: (T,) bool.
        position_ids: (B, T) int64.
        document_index: (B, L) int64, 1 for the padding behind a short document, else 0.
        cuts: (B, N) int64, how many document tokens the slot's canvas has before it.
        document_weight: (B, L) float32, 1 where the token is predicted from those before it.
        hole_mask: (B, N) bool.
        canvas_index: (B, N) int64, which canvas of its row.
        slot_index: (B, N) int64, place in its canvas; the hole's first slot is 1.
        sliding_window: of the model.
    """

    token_ids: Tensor
    is_canvas: Tensor
    position_ids: Tensor
    document_index: Tensor
    cuts: Tensor
    document_weight: Tensor
    hole_mask: Tensor
    canvas_index: Tensor
    slot_index: Tensor
    sliding_window: int

    @property
    def num_document_tokens(self) -> int:
        return self.document_weight.shape[1]

    @property
    def num_canvas_tokens(self) -> int:
        return self.hole_mask.shape[1]

    # The masks are by far the largest part: each is built where it is used, when it is.

    @cached_property
    def full_mask(self) -> Tensor:
        """(B, 1, T, T) bool, for full layers."""
        return self._mask(None)

    @cached_property
    def sliding_mask(self) -> Tensor:
        """(B, 1, T, T) bool, for sliding layers."""
        if self.num_document_tokens < self.sliding_window:
            return self.full_mask
        return self._mask(self.sliding_window)

    def _mask(self, sliding_window: int | None) -> Tensor:
        return joint_mask(
            self.document_index,
            self.position_ids[:, : self.num_document_tokens],
            self.canvas_index,
            torch.zeros_like(self.canvas_index),
            self.cuts,
            sliding_window,
        )

    def to(self, device: torch.device) -> Batch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Batch(
            **{
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
        )


class RowSource:
    """Cuts rows out of tokenized documents."""

    def __init__(self, documents: Sequence[TokenizedDocument], tokenizer: Tokenizer) -> None:
        self._documents = [d for d in documents if d.num_tokens > 4 * _MIN_PREFIX_TOKENS]
        if not self._documents:
            raise ValueError("no document is long enough to cut rows from")
        sizes = np.array([d.num_tokens for d in self._documents], dtype=np.float64)
        self._shares = np.cumsum(sizes) / sizes.sum()
        self._tokenizer = tokenizer
        self._tag_ids = {d.language: _tag_id(tokenizer, d.language) for d in self._documents}
        self._eos_id = tokenizer.token_to_id(EOS)
        self._line_breaks = frozenset(
            index
            for index in range(tokenizer.get_vocab_size())
            if tokenizer.decode([index], skip_special_tokens=False).startswith("\n")
        )

    def batch(
        self,
        seed: int,
        step: int,
        mixture: Mixture,
        num_rows: int,
        document_length: int,
        sliding_window: int,
    ) -> Batch:
        """The batch of one step: B rows of `document_length` and the mixture's canvas tokens."""
        rng = np.random.default_rng([seed, step])
        rows = [self.row(rng, mixture, document_length) for _ in range(num_rows)]
        return collate(rows, document_length, mixture.canvas_tokens, sliding_window)

    def row(self, rng: np.random.Generator, mixture: Mixture, length: int) -> Row:
        """One row of at most `length` document tokens, with a suffix window or without."""
        canvas_lengths = _sample_canvas_lengths(rng, mixture.canvas_tokens)
        document = self._documents[int(np.searchsorted(self._shares, rng.random()))]
        if rng.random() < mixture.suffix_window:
            row = self._row_with_suffix(rng, document, mixture, length, canvas_lengths)
            if row is not None:
                return row
        return self._plain_row(rng, document, mixture, length, canvas_lengths)

    # --- rows without a suffix window: canvases anywhere in the text ---

    def _plain_row(
        self,
        rng: np.random.Generator,
        document: TokenizedDocument,
        mixture: Mixture,
        length: int,
        canvas_lengths: Sequence[int],
    ) -> Row:
        header = marked_prompt(self._tag_ids[document.language], [], [])
        room = length - len(header)
        # From half a row before the document's start to half a row before its end: every token is
        # as often at the end of a row as at its start.
        wanted = int(rng.integers(-room // 2, max(1, document.num_tokens - room // 2)))
        start = self._settle(rng, document, wanted, document.num_tokens - 2 * _MIN_PREFIX_TOKENS)
        text = document.token_ids[start : start + room].tolist()
        end = start + len(text)
        if len(text) < room:
            text.append(self._eos_id)
        row = Row(header + text, (*range(len(header)), len(header)))
        # There are no blocks in rows with a suffix window; plain rows carry them for both.
        block = min(1.0, mixture.block / max(1e-9, 1.0 - mixture.suffix_window))
        for canvas_length in canvas_lengths:
            hole = None
            if rng.random() < block:
                hole = _block_hole(rng, document, start, end, canvas_length)
            if hole is None:
                is_exact = rng.random() < mixture.exact_share
                hole = self._hole_within(
                    rng, document, mixture, start, end, canvas_length, is_exact
                )
            hole.cut += len(header) - start
            row.holes.append(hole)
        return row

    def _hole_within(
        self,
        rng: np.random.Generator,
        document: TokenizedDocument,
        mixture: Mixture,
        start: int,
        end: int,
        canvas_length: int,
        is_exact: bool,
    ) -> Hole:
        """A hole that begins anywhere in tokens start..end; its cut counts document tokens."""
        longest = _longest_middle(canvas_length, is_exact)
        first_cut = start + _MIN_PREFIX_TOKENS
        for _ in range(_MAX_ATTEMPTS):
            cut = int(rng.integers(first_cut, end))
            if not document.is_edge[cut]:
                continue
            span = _sample_span(rng, document, cut, longest, is_exact)
            if span is None or span[0] < document.token_starts[first_cut]:
                continue
            cut, middle = self._middle(document, *span)
            if not first_cut <= cut <= end or not 0 < len(middle) <= longest:
                continue
            return self._make_hole(
                rng, document, mixture, cut, middle, span[1], canvas_length, is_exact
            )
        # Nothing suits, as among lines longer than a canvas: a few tokens at a fixed place.
        last = first_cut + 4
        while not document.is_edge[last]:
            last += 1
        ends = (int(document.token_starts[first_cut]), int(document.token_starts[last]))
        cut, middle = self._middle(document, *ends)
        return self._make_hole(
            rng, document, mixture, cut, middle, ends[1], canvas_length, is_exact
        )

    def _make_hole(
        self,
        rng: np.random.Generator,
        document: TokenizedDocument,
        mixture: Mixture,
        cut: int,
        middle: list[int],
        end_char: int,
        canvas_length: int,
        is_exact: bool,
    ) -> Hole:
        if not is_exact and rng.random() < _SECOND_HOLE_SHARE:
            pair = self._two_holes(rng, document, cut, middle, end_char, canvas_length)
            if pair is not None:
                return pair
        suffix = self._suffix(document.text, end_char, canvas_length)
        if rng.random() < _NO_SUFFIX_SHARE / max(_NO_SUFFIX_SHARE, 1.0 - mixture.suffix_window):
            suffix = []
        return _build_hole(rng, cut, middle, suffix, canvas_length, is_exact)

    def _two_holes(
        self,
        rng: np.random.Generator,
        document: TokenizedDocument,
        cut: int,
        middle: list[int],
        end_char: int,
        canvas_length: int,
    ) -> Hole | None:
        """A canvas with another hole a little behind the first; None if none is found that fits.

        The text between the two is tokenized on its own and healed, as at inference.
        """
        for _ in range(_MAX_ATTEMPTS):
            anchor = document.token_at(end_char) + int(rng.integers(1, _MOST_BETWEEN_TOKENS))
            if anchor >= document.num_tokens or document.token_starts[anchor] <= end_char:
                continue
            span = _sample_span(rng, document, anchor, canvas_length // 2, is_exact=False)
            if span is None or span[0] <= end_char:
                continue
            text = document.text[end_char : span[0]]
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            between, healed_start = encoded.ids[:-1], end_char + encoded.offsets[-1][0]
            second = self._tokenizer.encode(
                document.text[healed_start : span[1]], add_special_tokens=False
            ).ids
            room = canvas_length - len(between) - 4 - _LEAST_SUFFIX_TOKENS
            sizes = [
                (one, two)
                for one in HOLE_LENGTHS[canvas_length]
                for two in HOLE_LENGTHS[canvas_length]
                if one > len(middle) and two > len(second) and one + two <= room
            ]
            if not sizes:
                continue
            one, two = sizes[int(rng.integers(len(sizes)))]
            target = marked_target(middle, one)
            suffix = self._suffix(document.text, span[1], canvas_length)
            behind = between, marked_target(second, two)
            return Hole(cut, canvas_length, one, target, suffix, MID_ID, behind)
        return None

    # --- rows with a suffix window: all canvases end where the window begins ---

    def _row_with_suffix(
        self,
        rng: np.random.Generator,
        document: TokenizedDocument,
        mixture: Mixture,
        length: int,
        canvas_lengths: Sequence[int],
    ) -> Row | None:
        for _ in range(_MAX_ATTEMPTS):
            anchor = int(rng.integers(_MIN_PREFIX_TOKENS, document.num_tokens))
            if not document.is_edge[anchor]:
                continue
            span = _sample_span(rng, document, anchor, length // 4, is_exact=False)
            if span is None:
                continue
            cut, middle = self._middle(document, *span)
            window_size = int(rng.integers(_SUFFIX_WINDOW_TOKENS[0], _SUFFIX_WINDOW_TOKENS[1] + 1))
            window = self._suffix(document.text, span[1], window_size)
            if cut < _MIN_PREFIX_TOKENS or not 0 < len(middle) <= length // 4 or not window:
                continue
            header = marked_prompt(self._tag_ids[document.language], window, [])
            most = length - len(header) - len(middle) - 1  # prefix tokens that there is room for
            if most < _MIN_PREFIX_TOKENS:
                continue
            break
        else:
            return None
        wanted = cut - int(rng.integers(_MIN_PREFIX_TOKENS, most + 1))
        start = self._settle(rng, document, wanted, cut - _MIN_PREFIX_TOKENS)
        text = document.token_ids[start:cut].tolist() + middle
        first_suffix = len(header) - 1 - len(window)
        row = Row(
            [*header, *text, EOM_ID],
            (*range(first_suffix + 1), len(header) - 1, len(header)),
        )
        suffix = self._suffix(document.text, span[1], max(canvas_lengths, default=0))
        edges = document.is_edge[start : document.token_at(span[1]) + 1]
        for index, canvas_length in enumerate(canvas_lengths):
            is_exact = rng.random() < mixture.exact_share
            longest = _longest_middle(canvas_length, is_exact)
            hole_start = cut - start
            if index > 0 or len(middle) > longest:
                hole_start = self._other_start(rng, text, edges, longest)
            hole = _build_hole(rng, hole_start, text[hole_start:], suffix, canvas_length, is_exact)
            hole.cut += len(header)
            row.holes.append(hole)
        return row

    def _other_start(
        self, rng: np.random.Generator, text: list[int], edges: np.ndarray, longest: int
    ) -> int:
        """Another start for a hole that ends where the text does: a line break, or any edge."""
        first = max(1, len(text) - longest, _MIN_PREFIX_TOKENS // 2)
        starts = [i for i in range(first, min(len(edges), len(text))) if edges[i]]
        if rng.random() < 0.5:
            # At the line break, or behind it and its indentation.
            behind = int(rng.random() < 0.5)
            at_breaks = [
                i + behind
                for i in starts
                if text[i] in self._line_breaks and i + behind < len(text)
            ]
            starts = at_breaks or starts
        return int(rng.choice(starts)) if starts else len(text) - 1

    # --- cutting ---

    def _settle(
        self, rng: np.random.Generator, document: TokenizedDocument, wanted: int, last: int
    ) -> int:
        """Where a row starts: 0, mostly the next line break, or the token edge asked for."""
        start = min(max(wanted, 0), max(last, 0))
        if start == 0:
            return 0
        if rng.random() < _LINE_START_SHARE:
            for index in range(start, last):
                if int(document.token_ids[index]) in self._line_breaks:
                    return index
        while not document.is_edge[start]:
            start -= 1
        return start

    def _middle(
        self, document: TokenizedDocument, start_char: int, end_char: int
    ) -> tuple[int, list[int]]:
        """The healed cut before a span, and the ids from there to the span's end.

        The cut is a token edge of the document; a token that the end divides is encoded anew.
        """
        cut, last = document.token_at(start_char), document.token_at(end_char)
        rest_char = int(document.token_starts[last])
        middle = document.token_ids[cut:last].tolist()
        if rest_char < end_char:
            rest_char = max(rest_char, int(document.token_starts[cut]))
            rest = document.text[rest_char:end_char]
            middle += self._tokenizer.encode(rest, add_special_tokens=False).ids
        return cut, middle

    def _suffix(self, text: str, start_char: int, limit: int) -> list[int]:
        """The first ids of the text from a character on, tokenized on its own as at inference."""
        head = text[start_char : start_char + limit * _SUFFIX_CHARS_PER_TOKEN]
        return self._tokenizer.encode(head, add_special_tokens=False).ids[:limit]


def _tag_id(tokenizer: Tokenizer, language: str) -> int:
    return int(tokenizer.token_to_id(LANGUAGE_TAGS[language]))


def _sample_canvas_lengths(rng: np.random.Generator, num_tokens: int) -> tuple[int, ...]:
    if num_tokens % _LAYOUT_TOKENS:
        raise ValueError(f"canvas_tokens must be a multiple of {_LAYOUT_TOKENS}, got {num_tokens}")
    shares = [share for _, share in _LAYOUTS]
    lengths: tuple[int, ...] = ()
    for _ in range(num_tokens // _LAYOUT_TOKENS):
        lengths += _LAYOUTS[int(rng.choice(len(_LAYOUTS), p=shares))][0]
    return lengths


def _longest_middle(canvas_length: int, is_exact: bool) -> int:
    return canvas_length // 2 if is_exact else HOLE_LENGTHS[canvas_length][-1] - 1


def _sample_span(
    rng: np.random.Generator,
    document: TokenizedDocument,
    anchor: int,
    longest: int,
    is_exact: bool,
) -> Span | None:
    """A span as editors ask for; for half of the exact holes a longer stretch of tokens."""
    if is_exact and rng.random() < 0.5:
        last = min(anchor + int(rng.integers(4, longest + 1)), document.num_tokens)
        return int(document.token_starts[anchor]), int(document.token_starts[last])
    return sample_span(document, int(document.token_starts[anchor]), sample_kind(rng), rng)


def _block_hole(
    rng: np.random.Generator, document: TokenizedDocument, start: int, end: int, canvas_length: int
) -> Hole | None:
    """All that follows a token edge, with no suffix; None at the end of the document."""
    size = canvas_length - 2
    first, last = start + _MIN_PREFIX_TOKENS, min(end, document.num_tokens - size)
    if last < first:
        return None
    cut = int(rng.integers(first, last + 1))
    if not document.is_edge[cut]:
        return None
    target = document.token_ids[cut : cut + size].tolist()
    return Hole(cut, canvas_length, size, target, [], EXACT_ID)


def _build_hole(
    rng: np.random.Generator,
    cut: int,
    middle: list[int],
    suffix: list[int],
    canvas_length: int,
    is_exact: bool,
) -> Hole:
    if is_exact:
        return Hole(cut, canvas_length, len(middle), middle, suffix, EXACT_ID)
    fitting = [size for size in HOLE_LENGTHS[canvas_length] if size > len(middle)]
    hole_length = int(rng.choice(fitting))
    target = marked_target(middle, hole_length)
    return Hole(cut, canvas_length, hole_length, target, suffix, MID_ID)


def collate(
    rows: Sequence[Row], document_length: int, canvas_tokens: int, sliding_window: int
) -> Batch:
    """Rows to tensors; short documents are padded, and padding counts as a document of its own."""
    shape = (len(rows), document_length + canvas_tokens)
    token_ids = np.full(shape, PAD_ID, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    positions[:, :document_length] = np.arange(document_length)
    document_index = np.zeros((len(rows), document_length), dtype=np.int64)
    weight = np.zeros((len(rows), document_length), dtype=np.float32)
    hole_mask = np.zeros((len(rows), canvas_tokens), dtype=bool)
    canvas_index, slot_index, cuts = np.zeros((3, len(rows), canvas_tokens), dtype=np.int64)
    for index, row in enumerate(rows):
        size = len(row.token_ids)
        token_ids[index, :size] = row.token_ids
        document_index[index, size:] = 1
        weight[index, :size] = 1.0
        weight[index, list(row.unscored)] = 0.0
        at = 0
        for number, hole in enumerate(row.holes):
            canvas = slice(at, at + hole.canvas_length)
            at += hole.canvas_length
            hole_ids, mask = hole.layout()
            token_ids[index, document_length + canvas.start : document_length + at] = hole_ids
            hole_mask[index, canvas] = mask
            canvas_index[index, canvas] = number
            slot_index[index, canvas] = np.arange(hole.canvas_length)
            cuts[index, canvas] = hole.cut
    positions[:, document_length:] = cuts + slot_index
    return Batch(
        token_ids=torch.from_numpy(token_ids),
        is_canvas=torch.arange(shape[1]) >= document_length,
        position_ids=torch.from_numpy(positions),
        document_index=torch.from_numpy(document_index),
        cuts=torch.from_numpy(cuts),
        document_weight=torch.from_numpy(weight),
        hole_mask=torch.from_numpy(hole_mask),
        canvas_index=torch.from_numpy(canvas_index),
        slot_index=torch.from_numpy(slot_index),
        sliding_window=sliding_window,
    )
