"""Who waits for an engine elsewhere tells it once that nobody wants the answer, then gives up."""

from __future__ import annotations

import queue

import pytest

from dgemma_engine import CancellationToken
from dgemma_engine import waiting as waiting_module
from dgemma_engine.waiting import Waiting


def test_an_engine_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says before that still counts."""
    monkeypatch.setattr(waiting_module, "_HANG", 0.1)
    messages: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: list[str] = []

    def give_up() -> None:
        done.append("given up")
        messages.put("the end")

    token = CancellationToken()
    waiting = Waiting(token, lambda: done.append("withdrawn"), give_up)
    messages.put("a step")
    assert waiting.next(messages) == "a step"
    assert not done
    token.cancel()
    assert waiting.next(messages) == "the end"
    assert done == ["withdrawn", "given up"]
    messages.put("more")
    assert waiting.next(messages) == "more"
    assert done == ["withdrawn", "given up"]
