"""Waiting for an engine elsewhere, which is to be told when nobody wants its answer any more.

`process.py` and `shared/client.py` wait so; each on a thread that does nothing else.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import TypeVar

from .types import CancellationToken

_T = TypeVar("_T")

# How often whoever waits looks whether the call was withdrawn.
_GLANCE = 0.005  # seconds
# Withdrawing is answered within a pass; one that goes on for so long will not end.
_HANG = 60.0  # seconds


class Waiting:
    """For the messages of one call.

    Args:
        cancel: of the call; None if it cannot be withdrawn.
        withdraw: tells the engine, once.
        give_up: ends an engine that does not answer even that; the messages end then.
    """

    def __init__(
        self,
        cancel: CancellationToken | None,
        withdraw: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._cancel = cancel
        self._withdraw = withdraw
        self._give_up = give_up
        self._withdrawn_at: float | None = None

    def next(self, messages: queue.SimpleQueue[_T]) -> _T:
        """The next message, whatever it says."""
        if self._cancel is None:
            return messages.get()
        while True:
            try:
                return messages.get(timeout=_GLANCE)
            except queue.Empty:
                pass
            if self._withdrawn_at is None:
                if self._cancel.is_cancelled:
                    self._withdraw()
                    self._withdrawn_at = time.monotonic()
            elif time.monotonic() - self._withdrawn_at > _HANG:
                self._give_up()
