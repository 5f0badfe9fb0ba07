"""When the tree of a document is made, and on which thread.

The event loop must not wait for a parse: a text of 50,000 lines takes 0.3 s from scratch and 13 ms
after a keystroke. So a tree that is not there in a moment is made by a thread of its own, and who
cannot wait goes by lines meanwhile. It knows texts and edits, no documents and no holes.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from weakref import ref

import tree_sitter

from .languages import language_of
from .syntax import ParseTimeout, Source, SyntaxTree, has_grammar, move_tree, parse_source

# Processor time that `now` spends at most. A text of 20,000 characters takes 2 ms, so short ones
# are done in time on any machine, and it does not depend on its load what a cursor's hole is.
_MOMENT = 0.003  # seconds
_MOMENT_SHORT = 0.008
_SHORT = 20_000  # characters
# What follows a keystroke on the event loop goes first; the two would take the GIL from each other.
_PAUSE = 0.03  # seconds


class LazyTree:
    """The tree of one text, made when it is first asked for, from the tree of the text before.

    Its methods may be called on any thread. Neither the text nor the tree ever changes.
    """

    __slots__ = ("__weakref__", "_is_slow", "_language", "_lock", "_old", "_source", "_tree")

    def __init__(self, text: str, language_id: str, *, before: LazyTree | None = None) -> None:
        self._language = language_of(language_id)
        self._source = Source(text) if before is None and has_grammar(self._language) else None
        self._old: tree_sitter.Tree | None = None  # of the text before, offsets moved
        self._tree: SyntaxTree | None = None
        self._is_slow = False
        self._lock = threading.Lock()

    def edited(self, start: int, end: int, new: str, text: str | None = None) -> LazyTree:
        """The tree of the text with `text[start:end]` replaced; nothing is parsed.

        Args:
            text: what the text is then, if it is at hand; saves a copy of it.
        """
        after = LazyTree("", self._language.name, before=self)
        if self._source is None:
            return after
        after._source = self._source.edited(start, end, new, text)
        after._is_slow = self._is_slow
        tree, old = self._tree, self._old
        if tree is not None:
            after._old = tree.moved(after._source, start, end, new)
        elif old is not None:
            after._old = move_tree(old, self._source, after._source, start, end, new)
        return after

    def now(self) -> SyntaxTree | None:
        """The tree, if it is there or made in a moment; else None, and it is being made."""
        if self._tree is not None or self._source is None:
            return self._tree
        is_short = len(self._source.text) <= _SHORT
        if self._is_slow and not is_short:
            _BACKGROUND.add(self)
            return None
        try:
            return self._parse(_MOMENT_SHORT if is_short else _MOMENT)
        except ParseTimeout:
            self._is_slow = True
            _BACKGROUND.add(self)
            return None

    def wait(self) -> SyntaxTree | None:
        """The tree, however long it takes; None only where the language has no grammar.

        Other threads run meanwhile.
        """
        return self._tree or (self._parse(None) if self._source is not None else None)

    async def ready(self) -> SyntaxTree | None:
        """The tree, as `wait`, while the event loop goes on."""
        if self._source is not None and self.now() is None:
            await asyncio.to_thread(self.wait)
        return self._tree

    def prepare(self) -> None:
        """Have a tree that may take long made in the background; returns at once."""
        if self._source is not None and self._tree is None and len(self._source.text) > _SHORT:
            _BACKGROUND.add(self)

    def _parse(self, most_seconds: float | None) -> SyntaxTree:
        """Parse, or wait for the thread that does; with a limit, `ParseTimeout` instead."""
        if not self._lock.acquire(blocking=most_seconds is None):
            raise ParseTimeout
        try:
            if self._tree is None:
                assert self._source is not None
                started, old = time.thread_time(), self._old
                self._tree = parse_source(
                    self._source, self._language, old, most_seconds=most_seconds
                )
                # How long the next one takes is known only if this one had a tree to begin with.
                self._is_slow = old is not None and time.thread_time() - started > _MOMENT
                self._old = None
            return self._tree
        finally:
            self._lock.release()


class _BackgroundParser:
    """A thread that makes trees, the newest first; those that nobody holds any more are left."""

    def __init__(self) -> None:
        self._queue: queue.LifoQueue[ref[LazyTree]] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, tree: LazyTree) -> None:
        self._queue.put(ref(tree))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="syntax", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            wanted = self._queue.get()
            time.sleep(_PAUSE)
            with contextlib.suppress(queue.Empty):
                newer = self._queue.get_nowait()
                self._queue.put(wanted)
                wanted = newer
            tree = wanted()
            if tree is not None:
                tree.wait()
            del tree


_BACKGROUND = _BackgroundParser()
