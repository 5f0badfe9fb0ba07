"""Ways to ask for a hole that any model understands: a prompt, and text that comes back.

    Suffix   completions with a `suffix`, as fill-in-the-middle servers take them
    Prompt   the turns of our own chat strategy, as token ids: the reply is begun in the prompt
    Chat     a chat message, for servers of which nothing else is known

The text streams in, is shown as it does, and is cut as our own engine cuts it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ..edges import cut_to_kind, heal, without_overlap
from ..errors import RequestError
from ..layouts import describe_hole
from ..tokenizer import Tokenizer
from ..turns import FENCE, check_fits, end_ids
from ..turns import Chat as Turns
from ..types import Decoder, HoleKind, InfillRequest, OnStep, StopReason
from .client import Server
from .completions import CHAT_COMPLETIONS, COMPLETIONS, Completion, OnText, complete, until
from .outcome import Outcome, late, read_tokens

# Near to greedy: alternatives, which differ by their seed, still differ.
_TEMPERATURE = 0.2
_FENCE_TOKENS = 24  # room for a code block's fences and the line that it repeats


class Suffix:
    """Fills holes by completions with a suffix.

    Args:
        has_log_probabilities: the server tells them, of completions.
    """

    name = "suffix"

    def __init__(self, server: Server, model: str, *, has_log_probabilities: bool) -> None:
        self._server = server
        self._model = model
        self._has_log_probabilities = has_log_probabilities

    def render(self, request: InfillRequest) -> str:
        return f"prompt:\n{request.prefix}\n\nsuffix:\n{request.suffix}\n"

    async def fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """See `Level.fill`."""
        _no_length(self.name, request)
        body = {
            **_sampling(self._model, request, request.max_tokens),
            "prompt": request.prefix,
            "suffix": request.suffix,
            **({"stop": ["\n"]} if request.kind is HoleKind.LINE else {}),
            **({"logprobs": 1} if self._has_log_probabilities else {}),
        }

        def read(completion: Completion) -> str:
            return without_overlap(cut_to_kind(completion.text, request.kind), request.suffix)

        completion, is_late = await _stream(self._server, COMPLETIONS, body, request, on_step, read)
        if not completion.text and is_late:
            return late(Decoder.LEFT_TO_RIGHT)
        text, reason = read(completion), _reason(is_late)
        product = math.exp(min(0.0, sum(completion.log_probabilities)))
        has_chance = bool(completion.log_probabilities) and bool(text)
        return Outcome(
            text,
            Decoder.LEFT_TO_RIGHT,
            reason,
            # The server's tokens are its own: of all of them together we know how likely they are.
            confidences=(product,) if has_chance else (),
            ends=(len(text),) if has_chance else (),
            num_context_tokens=completion.num_prompt_tokens,
        )


class Prompt:
    """Fills holes by a prompt of token ids, as our own chat strategy writes it.

    Args:
        decoder: how the model writes.
        max_model_len: what prompt and reply may have together.
    """

    name = "prompt"

    def __init__(
        self,
        server: Server,
        model: str,
        tokenizer: Tokenizer,
        *,
        decoder: Decoder,
        max_model_len: int,
    ) -> None:
        self._server = server
        self._model = model
        self._tokenizer = tokenizer
        self._turns = Turns(tokenizer)
        self._ends = frozenset(end_ids(tokenizer))
        self._decoder = decoder
        self._max_model_len = max_model_len

    def render(self, request: InfillRequest) -> str:
        prompt_ids, healed = self._prompt(request, is_healed=True)
        prompt = self._tokenizer.render(prompt_ids)
        start = (
            f"\n\nthe reply begins with {healed.decode('utf-8', errors='replace')!r}, "
            "taken back from the prefix"
        )
        return f"prompt ({len(prompt_ids)} tokens):\n{prompt}{start if healed else ''}\n"

    async def fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """See `Level.fill`."""
        _no_length(self.name, request)
        outcome = await self._fill(request, on_step, is_healed=True)
        if outcome is None:  # it did not write on what the cursor had cut
            outcome = await self._fill(request, on_step, is_healed=False)
        return outcome or late(self._decoder)

    async def _fill(
        self, request: InfillRequest, on_step: OnStep | None, *, is_healed: bool
    ) -> Outcome | None:
        prompt_ids, healed = self._prompt(request, is_healed=is_healed)
        body = {
            **_sampling(self._model, request, request.max_tokens),
            "prompt": prompt_ids,
            "add_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": sorted(self._ends),
        }

        def token_ids(completion: Completion) -> list[int]:
            ids = completion.token_ids
            known = range(self._tokenizer.vocab_size)
            ends = (at for at, one in enumerate(ids) if one in self._ends or one not in known)
            end = next(ends, len(ids))
            return ids[: min(end, request.max_tokens)]

        def cut(text: str) -> str:
            text = cut_to_kind(text.split(f"\n{FENCE}", maxsplit=1)[0], request.kind)
            return without_overlap(text, request.suffix)

        def read(completion: Completion) -> str:
            return read_tokens(self._tokenizer, token_ids(completion), healed, cut)[0]

        completion, is_late = await _stream(self._server, COMPLETIONS, body, request, on_step, read)
        ids = token_ids(completion)
        if not ids and is_late:
            return late(self._decoder)
        if healed and not self._tokenizer.decode_bytes(ids).startswith(healed):
            return None
        text, ends = read_tokens(self._tokenizer, ids, healed, cut)
        values = completion.log_probabilities[: len(ids)]
        has_chances = len(values) == len(ids)
        return Outcome(
            text,
            self._decoder,
            _reason(is_late),
            tuple(ids),
            tuple(math.exp(min(0.0, value)) for value in values) if has_chances else (),
            ends if has_chances else (),
            num_context_tokens=len(prompt_ids),
        )

    def _prompt(self, request: InfillRequest, *, is_healed: bool) -> tuple[list[int], bytes]:
        user, reply_start = describe_hole(request)
        prompt_ids, healed = self._turns.prompt(user, reply_start), b""
        if is_healed:
            prompt_ids, healed = heal(self._tokenizer, prompt_ids)
        check_fits(len(prompt_ids), request.max_tokens, self._max_model_len)
        return prompt_ids, healed


class ChatMessage:
    """Fills holes by a chat message."""

    name = "chat"

    def __init__(self, server: Server, model: str, *, decoder: Decoder) -> None:
        self._server = server
        self._model = model
        self._decoder = decoder

    def render(self, request: InfillRequest) -> str:
        return f"message of the user:\n{describe_hole(request)[0]}\n"

    async def fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """See `Level.fill`."""
        _no_length(self.name, request)
        body = {
            **_sampling(self._model, request, request.max_tokens + _FENCE_TOKENS),
            "messages": [{"role": "user", "content": describe_hole(request)[0]}],
        }

        def read(completion: Completion) -> str:
            return read_reply(completion.text, request)

        completion, is_late = await _stream(
            self._server, CHAT_COMPLETIONS, body, request, on_step, read
        )
        if not completion.text and is_late:
            return late(self._decoder)
        return Outcome(
            read(completion),
            self._decoder,
            _reason(is_late),
            num_context_tokens=completion.num_prompt_tokens,
        )


def read_reply(reply: str, request: InfillRequest) -> str:
    """The fill in a chat's reply: its first code block, without what it repeats of either side."""
    before, fence, after = reply.partition(FENCE)
    text = reply
    if fence:
        text = after.partition("\n")[2]  # the rest of the fence's line is a language
        text = text.removeprefix(FENCE) if text.startswith(FENCE) else text
    elif before.lstrip().startswith(FENCE[:1]):
        text = ""  # a fence that has only begun to stream in
    text = text.split(f"\n{FENCE}", maxsplit=1)[0]
    line = request.prefix[request.prefix.rfind("\n") + 1 :]
    if line and text.startswith(line):
        text = text[len(line) :]
    elif line.strip() and text.startswith(line.strip()):
        text = text[len(line.strip()) :]
    return without_overlap(cut_to_kind(text, request.kind), request.suffix)


def _sampling(model: str, request: InfillRequest, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": _TEMPERATURE,
        "seed": request.seed,
    }


async def _stream(
    server: Server,
    path: str,
    body: dict[str, Any],
    request: InfillRequest,
    on_step: OnStep | None,
    read: Callable[[Completion], str],
) -> tuple[Completion, bool]:
    """The completion as far as it came, and whether the deadline ended it."""
    so_far = Completion()
    count = 0

    def show(completion: Completion) -> None:
        nonlocal so_far, count
        so_far = dataclasses.replace(
            completion,
            token_ids=list(completion.token_ids),
            log_probabilities=list(completion.log_probabilities),
        )
        if on_step is not None and completion.text:
            step = Outcome(read(so_far), Decoder.AUTO, StopReason.END)
            on_step(step.as_step(count, request.max_tokens))
            count += 1

    on_text: OnText = show
    (completion,) = await until(request.deadline, [complete(server, path, body, on_text)])
    return (so_far, True) if completion is None else (completion, False)


def _reason(is_late: bool) -> StopReason:
    return StopReason.DEADLINE if is_late else StopReason.END


def _no_length(name: str, request: InfillRequest) -> None:
    if request.num_tokens is not None:
        raise RequestError(
            f"an engine on a server that is asked by {name!r} cannot be told a length; "
            "leave num_tokens out"
        )
