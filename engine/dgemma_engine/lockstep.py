"""Pieces of work that go on in step, so that what each waits for is done for all at once.

A piece is a generator: it yields what it wants, or None to let the others have a turn, is sent the
answer, and returns its outcome. It knows nothing of the others. No torch here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Wanted = TypeVar("Wanted")
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome")


def run_in_step(
    pieces: Sequence[Generator[Wanted | None, Answer | None, Outcome]],
    answer: Callable[[list[Wanted]], Sequence[Answer]],
    on_done: Callable[[int, Outcome | Exception], None],
    *,
    may_begin: Callable[[int], bool] = lambda num_begun: True,
) -> None:
    """Run all pieces to their ends.

    Args:
        pieces: not begun.
        answer: what several pieces want, in the order of these; an error ends them all.
        on_done: called with the number of each piece as soon as it ends, and what it returned or
            raised.
        may_begin: whether one more may begin beside so many that go on; asked if there are any.
    """
    waiting = deque(enumerate(pieces))
    wants: dict[int, Wanted | None] = {}  # of those that have begun

    def resume(index: int, given: Answer | Exception | None) -> None:
        piece = pieces[index]
        outcome: Outcome | Exception
        try:
            is_error = isinstance(given, Exception)
            wants[index] = piece.throw(given) if is_error else piece.send(given)  # type: ignore[arg-type]
            return
        except StopIteration as end:
            outcome = end.value
        except Exception as error:
            outcome = error
        on_done(index, outcome)

    while waiting or wants:
        while waiting and (not wants or may_begin(len(wants))):
            resume(waiting.popleft()[0], None)
        asked = {index: wanted for index, wanted in wants.items() if wanted is not None}
        given: dict[int, Answer | Exception] = {}
        try:
            if asked:
                given.update(zip(asked, answer(list(asked.values())), strict=True))
        except Exception as error:
            given = dict.fromkeys(asked, error)
        begun = list(wants)
        wants.clear()
        for index in begun:
            resume(index, given.get(index))
