"""A document's tree comes when it is asked for, and nobody on the event loop waits for it."""

from __future__ import annotations

import asyncio
import statistics
import time

from hypothesis import given, settings
from hypothesis import strategies as st
from lsprotocol import types

from dgemma_lsp.document import ExactPositionCodec, ExactTextDocument
from dgemma_lsp.hole import select_hole
from dgemma_lsp.lazy_tree import LazyTree
from dgemma_lsp.syntax import parse

from .drawn import nodes_of

LONG = "def f(a):\n    if a:\n        return [a, '😋']\n\n\n" * 10_000  # 50,000 lines
WIDE = "x = [" + "12345, " * 150_000 + "]\n"  # one line of 1 MB
PIECES = st.sampled_from(["x", "(", ")", ":", "\n", "\r\n", "    ", "'", "é", "😋", "def f", ""])


def typing(text: str) -> list[float]:
    """Seconds on the event loop for each of 20 keystrokes: the edit and its hole."""
    codec = ExactPositionCodec(types.PositionEncodingKind.Utf16)
    document = ExactTextDocument("file:///a", text, 1, "python", position_codec=codec)
    document.syntax.prepare()
    seconds = []
    for column in range(20):
        place = types.Position(0, 5 + column)
        change = types.TextDocumentContentChangePartial(types.Range(place, place), "x")
        start = time.perf_counter()
        document.apply_change(change)
        document.syntax.prepare()
        snapshot = document.snapshot()
        select_hole(snapshot, snapshot.offset_at(place, "utf-16"))
        seconds.append(time.perf_counter() - start)
    tree, fresh = document.syntax.wait(), parse(document.source, "python")
    assert tree is not None
    assert fresh is not None
    assert nodes_of(tree) == nodes_of(fresh)
    return seconds


def test_a_keystroke_in_a_long_file_does_not_wait_for_its_tree() -> None:
    """50,000 lines: a parse takes 0.4 s, a keystroke 3 ms."""
    assert statistics.median(typing(LONG)) < 0.03


def test_a_keystroke_in_a_long_line_does_not_wait_for_its_tree() -> None:
    """One line of 1 MB."""
    assert statistics.median(typing(WIDE)) < 0.03


def test_a_short_text_has_its_tree_at_once() -> None:
    """What a usual file's hole is does not depend on a background thread."""
    lazy = LazyTree("def f():\n    pass\n" * 500, "python")
    assert lazy.now() is not None
    assert lazy.edited(0, 0, "x = 1\n").now() is not None


def test_the_event_loop_goes_on_while_a_tree_is_made() -> None:
    """`ready` gives the tree; other tasks run meanwhile."""

    async def run() -> int:
        ticks = 0
        lazy = LazyTree(LONG, "python")
        task = asyncio.create_task(lazy.ready())
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        assert await task is lazy.now() is not None
        return ticks

    assert asyncio.run(run()) > 3  # measured: 60


def test_a_language_without_a_grammar_has_no_tree() -> None:
    """Nothing is parsed, edited or waited for."""
    lazy = LazyTree("x", "cobol").edited(0, 1, "y")
    assert (lazy.now(), lazy.wait(), asyncio.run(lazy.ready())) == (None, None, None)


@settings(deadline=None)
@given(data=st.data())
def test_edits_before_the_first_parse_are_kept_in_mind(data: st.DataObject) -> None:
    """Whichever of the trees on the way were asked for, the last one is that of its text."""
    text = "def f(a):\n    return '😋'\n"
    lazy = LazyTree(text, "python")
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            lazy.wait()
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        new = data.draw(PIECES)
        text = text[:start] + new + text[end:]
        lazy = lazy.edited(start, end, new)
    tree, fresh = lazy.wait(), parse(text, "python")
    assert tree is not None
    assert fresh is not None
    assert tree.source.text == text
    assert fresh.has_errors or nodes_of(tree) == nodes_of(fresh)
