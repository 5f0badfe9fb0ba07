"""One completion, as it streams in: what a request's body says and what its events bring.

Knows the shapes of OpenAI's completions and chat completions, and the fields that vLLM adds to
them: `return_token_ids`, `return_tokens_as_token_ids`. Knows no holes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .client import Server
from .failures import ServerUnreachable, in_openai_shape

COMPLETIONS = "/v1/completions"
CHAT_COMPLETIONS = "/v1/chat/completions"

Result = TypeVar("Result")


@dataclass(slots=True)
class Completion:
    """What has come of a completion so far.

    Attributes:
        text: as the server decodes it.
        token_ids: empty where the server does not tell.
        log_probabilities: of the tokens; empty where the server does not tell.
        num_prompt_tokens: 0 where the server does not tell.
        is_complete: the server said that it is at its end; else the deadline came first.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    is_complete: bool = False

    def add(self, event: dict[str, Any]) -> None:
        """Take in an event of a stream, or the one object of an answer that is none."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.num_prompt_tokens = int(usage.get("prompt_tokens") or 0)
        choices = event.get("choices") or [{}]
        choice = choices[0]
        message = choice.get("delta") or choice.get("message") or {}
        self.text += choice.get("text") or message.get("content") or ""
        self.token_ids += map(int, choice.get("token_ids") or [])
        logprobs = choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs") or []
        self.log_probabilities += [float(value) for value in values if value is not None]
        if choice.get("finish_reason") is not None:
            self.is_complete = True


OnText = Callable[[Completion], None]


async def complete(
    server: Server, path: str, body: dict[str, Any], on_text: OnText | None = None
) -> Completion:
    """Ask for a completion as a stream and read it to its end.

    Raises:
        DGemmaError: as `Server.events`; also if what comes has another shape.
    """
    completion = Completion()
    async with contextlib.aclosing(server.events(path, {**body, "stream": True})) as events:
        async for event in events:
            with in_openai_shape(server.address):
                completion.add(event)
            if on_text is not None:
                on_text(completion)
    if not completion.is_complete:
        raise ServerUnreachable(f"{server.address.url} broke its answer off")
    return completion


async def until(
    deadline: float | None, work: Sequence[Coroutine[Any, Any, Result]]
) -> list[Result | None]:
    """Results of what runs side by side; None for what was withdrawn at the deadline.

    Args:
        deadline: `time.monotonic()` seconds, or None.
    Raises:
        Exception: the first that one of them raises; the others are withdrawn then.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() if task in done else None for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
