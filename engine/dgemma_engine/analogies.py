"""Guesses at a line by analogy: what stood between such ends as the hole has, renamed as they are.

Code repeats its shapes more often than its words: `self.width = width` in one place is
`self.height = height` in another. A place is like the hole if the words before and behind it are
those around the hole, where a name may stand for another as long as it does so throughout; what is
between them, with the names exchanged, is a guess. The judge decides, for `copying.py`.

Imports no torch, and knows no language: a few words that are keywords somewhere keep their meaning.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .places import Numbers, Places, num_shared, pairs, pieces
from .types import InfillRequest

# Words compared before and behind a place at most, and at least so many on each side.
_MOST_BEFORE, _MOST_BEHIND, _LEAST = 16, 10, 2
# Of a guess.
_MOST_WORDS = 20
# Places whose shapes before them are most alike, and with what is behind them, of which the names
# are looked at.
_MOST_STARTS, _MOST_PLACES = 4000, 200
# What a word that is the same adds to one that may be another name.
_SAME = 0.5
# Of the text around the hole, in characters.
_BEFORE_CHARS, _BEHIND_CHARS = 1500, 400

_WORD = re.compile(r"\n[ \t]*|[^\W\d]\w*|\d[\w.]*|\"[^\"\n]*\"|'[^'\n]*'|[ \t]+|.", re.DOTALL)
_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """and as assert async await break case catch class cls const continue def default del do
        elif else end enum except export extends false False finally fn for from func function
        global if impl import in interface is lambda let local match mod new nil None nonlocal not
        null or pass private protected pub public raise return self static struct super switch then
        this throw true True try type typeof use var void where while with yield""",
    )
)
_BETWEEN = ""  # stands between two texts; no word
# The shapes of every name and of that; no hash is -1.
_NAME, _NO_WORD = 0, -1


class _Words(NamedTuple):
    """A text's words, and their shapes: equal words that are no names have equal ones."""

    words: tuple[str, ...]
    shapes: Numbers


class Analogies:
    """Finds guesses; keeps the words of texts that it saw before."""

    def __init__(self) -> None:
        self._words_of_piece = lru_cache(maxsize=16384)(_words)

        @lru_cache(maxsize=256)
        def words_of_text(text: str) -> _Words:
            """By pieces, so that a text that changed costs what changed of it."""
            parts = [self._words_of_piece(piece) for piece in pieces(text)]
            words = tuple(word for part in parts for word in part.words)
            return _Words(
                (*words, _BETWEEN), np.concatenate([*(part.shapes for part in parts), [_NO_WORD]])
            )

        self._words_of_text = words_of_text

    def read(self, text: str) -> None:
        """Split a text ahead of the fill that looks at it."""
        self._words_of_text(text)

    def guesses(self, request: InfillRequest, most: int) -> list[str]:
        """What may stand in the hole of a line, the likest place's first; different ones."""
        before = _words(request.prefix[-_BEFORE_CHARS:]).words
        if len(request.prefix) > _BEFORE_CHARS:
            before = before[1:]  # it may be cut
        behind = _words(request.suffix[:_BEHIND_CHARS]).words
        read = [self._words_of_text(text) for text in (request.suffix, request.prefix)]
        read += [self._words_of_text(text) for text in request.nearby]
        words: list[str] = []
        for text in read:
            words.extend(text.words)
        shapes = np.concatenate([text.shapes for text in read])
        scored: dict[str, float] = {}
        for start, unfinished in _readings(before):
            own = before[:start][-_MOST_BEFORE:]
            for guess, score in _alike(words, shapes, own, behind[:_MOST_BEHIND]):
                rest = guess.removeprefix(unfinished)
                if rest and (not unfinished or rest != guess):
                    scored[rest] = max(score, scored.get(rest, 0.0))
        return sorted(scored, key=scored.__getitem__, reverse=True)[:most]


def _readings(before: Sequence[str]) -> Iterator[tuple[int, str]]:
    """How many words before the hole are whole, and what the hole's first word begins with."""
    yield len(before), ""
    if before and _is_name_or_keyword(before[-1]):
        yield len(before) - 1, before[-1]


def _alike(
    words: Sequence[str], shapes: Numbers, before: Sequence[str], behind: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Guesses of all places that are like the hole, and how like."""
    if len(before) < _LEAST or len(behind) < _LEAST:
        return
    before_shapes = np.array([_shape(word) for word in before[::-1]])
    behind_shapes = np.array([_shape(word) for word in behind])
    starts = _places(shapes, before_shapes, -1) + 1
    ends = _places(shapes, behind_shapes, 1)
    num_before = num_shared(shapes, starts - 1, before_shapes, -1)
    likest = np.argsort(-num_before, kind="stable")[:_MOST_STARTS]
    starts, num_before = starts[likest], num_before[likest]
    num_behind = num_shared(shapes, ends, behind_shapes, 1)
    start, end = pairs(starts, ends, _MOST_WORDS)
    likest = np.argsort(-(num_before[start] + num_behind[end]), kind="stable")[:_MOST_PLACES]
    for pair in likest:
        place = int(starts[start[pair]]), int(ends[end[pair]])
        found = _renamed(words, place, before, behind)
        if found is not None:
            yield found


def _renamed(
    words: Sequence[str], place: tuple[int, int], before: Sequence[str], behind: Sequence[str]
) -> tuple[str, float] | None:
    """What is between a place's ends, by the names around the hole, and how like the place is."""
    start, end = place
    between = words[start:end]
    if not between or any(word == _BETWEEN or word[0] == "\n" for word in between):
        return None
    names = _Names()
    score = 0.0
    for step, most, own in ((-1, len(before), before[::-1]), (1, len(behind), behind)):
        at = start - 1 if step < 0 else end
        count = 0
        while count < most and 0 <= at < len(words) and names.agree(words[at], own[count]):
            score += 1.0 + _SAME * (words[at] == own[count])
            count += 1
            at += step
        if count < _LEAST:
            return None
    return "".join(names.here.get(word, word) for word in between), score


class _Names:
    """Which name there is which name here, each for one other."""

    def __init__(self) -> None:
        self.here: dict[str, str] = {}
        self._there: dict[str, str] = {}

    def agree(self, there: str, here: str) -> bool:
        """Whether two words may be the same in an analogy; names are so from now on."""
        if not (_is_name(there) and _is_name(here)):
            return there == here != _BETWEEN
        if self.here.get(there, here) != here or self._there.get(here, there) != there:
            return False
        self.here[there], self._there[here] = here, there
        return True


def _words(text: str) -> _Words:
    words = tuple(map(sys.intern, _WORD.findall(text)))  # most words are there many times
    return _Words(words, np.array([_shape(word) for word in words], dtype=np.int64))


def _shape(word: str) -> int:
    return _NAME if _is_name(word) else hash(word)


def _is_name(word: str) -> bool:
    return _is_name_or_keyword(word) and word not in _KEYWORDS


def _is_name_or_keyword(word: str) -> bool:
    return word[:1].isalpha() or word[:1] == "_"


def _places(shapes: Numbers, wanted: Numbers, step: int) -> Places:
    """Where the first words wanted stand, one after the other in the direction of `step`."""
    found = np.flatnonzero(shapes == wanted[0])
    for offset in range(1, _LEAST):
        there = found + step * offset
        found = found[(there >= 0) & (there < len(shapes))]
        found = found[shapes[found + step * offset] == wanted[offset]]
    return found
