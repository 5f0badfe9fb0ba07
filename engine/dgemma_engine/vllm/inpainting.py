"""The hole on vLLM's canvas, between pinned code: what our own engine does with any model.

The layout is that of `layouts.py`. vLLM 0.33 takes a canvas to begin with and positions that it
resets to it after every pass; each candidate length is a request, and they run side by side. First
one pass over all lengths, then the two whose drafts are likeliest are denoised to the end.

What vLLM does not do, and is done here: it emits what the model believes at pinned positions, so
they are overwritten (and say how well hole and suffix agree); it forbids no token, so a draft with
special tokens, or one that does not begin with what was taken back from the prefix, loses; it seeds
the first canvas only, so a hole never exceeds one. A fill cannot be repeated: its noise is vLLM's.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..edges import cut_to_kind
from ..errors import RequestError
from ..layouts import LengthLayout, lay_out_lengths
from ..tokenizer import Tokenizer
from ..types import Decoder, InfillRequest, OnStep, StopReason
from .client import Server
from .completions import COMPLETIONS, Completion, complete, until
from .failures import ServerUnreachable
from .outcome import Outcome, late, read_tokens

_NUM_REFINED = 2  # candidate lengths that are denoised to the end
_NUM_JUDGED = 8  # tokens of the suffix whose agreement counts
_LEAST_LOG_PROBABILITY = -30.0


@dataclass(frozen=True, slots=True)
class _Draft:
    """The hole of one canvas, as the server left it.

    Attributes:
        token_ids: of the hole.
        log_probabilities: of these, at temperature 1.
        score: mean log-probability of the hole and of the head of the suffix behind it.
        is_text: no special tokens, and it begins with what was taken back from the prefix.
    """

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float
    is_text: bool


class InPainting:
    """Fills holes on a server that takes canvases.

    Args:
        server: vLLM 0.33 or later.
        model: by its name there.
        tokenizer: of the model.
        canvas_length: C, at most what is served.
        vocab_size: V, of the model.
        max_model_len: what prompt and canvas may have together.
    """

    name = "in-painting"

    def __init__(
        self,
        server: Server,
        model: str,
        tokenizer: Tokenizer,
        *,
        canvas_length: int,
        vocab_size: int,
        max_model_len: int,
    ) -> None:
        self._server = server
        self._model = model
        self._tokenizer = tokenizer
        self._canvas_length = canvas_length
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._specials = frozenset(tokenizer.special_ids)
        self._known = range(tokenizer.vocab_size)

    def render(self, request: InfillRequest) -> str:
        layout = self._lay_out(request)
        size = layout.sizes[-1]
        prompt, tail = map(self._tokenizer.render, (layout.prompt_ids, layout.behind(size)))
        healed = layout.healed.decode("utf-8", errors="replace")
        start = f"the first slot begins with {healed!r}, taken back from the prefix\n"
        return (
            f"prompt ({len(layout.prompt_ids)} tokens):\n{prompt}\n\n"
            f"canvases, with holes of {', '.join(map(str, layout.sizes))} slots; the last:\n"
            f"⟨{size} slots to fill⟩{tail}\n{start if healed else ''}"
        )

    async def fill(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """See `Level.fill`."""
        if request.decoder is Decoder.LEFT_TO_RIGHT:
            raise RequestError(
                f"{self.name} on a server cannot decode left to right; ask for the decoder "
                "'diffusion' or 'auto'"
            )
        if request.draft:
            return await self._revise(request, on_step)
        layout = self._lay_out(request)
        outcome = await self._fill(request, layout, on_step)
        if outcome is None and layout.healed:
            # The model did not write on what the cursor had cut: it is left to it as it is.
            layout = self._lay_out(request, is_healed=False)
            outcome = await self._fill(request, layout, on_step)
        return outcome or late(Decoder.DIFFUSION)

    async def _fill(
        self, request: InfillRequest, layout: LengthLayout, on_step: OnStep | None
    ) -> Outcome | None:
        """The best of all lengths; None if none of them is text that can stand there."""
        sizes, rounds = layout.sizes, 1
        drafts: list[_Draft] = []
        if len(sizes) > _NUM_REFINED:
            first = dataclasses.replace(request, max_steps=1)
            drafts = await self._denoise(first, layout, sizes)
            if not drafts:  # the deadline came
                return late(Decoder.DIFFUSION)
            drafts.sort(key=_rank, reverse=True)
            if not drafts[0].is_text:
                return None
            if on_step is not None:
                on_step(self._outcome(drafts[0], layout, request, 1, is_late=False).as_step(0, 2))
            sizes = tuple(sorted(len(draft.token_ids) for draft in drafts[:_NUM_REFINED]))
            rounds = 2
        done = await self._denoise(request, layout, sizes)
        best = max(done or drafts, key=_rank, default=None)
        if best is None:
            return late(Decoder.DIFFUSION)
        if not best.is_text:
            return None
        outcome = self._outcome(best, layout, request, rounds, is_late=not done)
        if on_step is not None:
            on_step(outcome.as_step(rounds - 1, rounds))
        return outcome

    async def _revise(self, request: InfillRequest, on_step: OnStep | None) -> Outcome:
        """Denoise the least likely tokens of a draft again; the others are pinned.

        vLLM begins every canvas at the highest temperature, at which tokens that are not pinned
        would not outlast the first pass.
        """
        assert request.draft is not None
        draft_ids = self._tokenizer.encode(request.draft)
        exact = dataclasses.replace(
            request, num_tokens=len(draft_ids), max_tokens=max(len(draft_ids), request.max_tokens)
        )
        layout = self._lay_out(exact, is_healed=False)
        if layout.sizes != (len(draft_ids),):
            raise RequestError(
                f"the text to revise has {len(draft_ids)} tokens, the canvas holds "
                f"{layout.sizes[0]}; choose a shorter one"
            )
        weakest = list(range(len(draft_ids)))
        rounds = 1
        if request.strength < 1.0:
            body = self._body(layout, draft_ids, free=weakest, max_steps=1)
            (read,) = await until(request.deadline, [complete(self._server, COMPLETIONS, body)])
            if read is None:
                return late(Decoder.DIFFUSION)
            chances = _log_chances(read, draft_ids, 0)
            count = max(1, round(request.strength * len(draft_ids)))
            weakest = sorted(weakest, key=chances.__getitem__)[:count]
            rounds = 2
        noise = random.Random(request.seed)
        held = list(draft_ids)
        for index in weakest:
            held[index] = noise.randrange(self._vocab_size)
        body = self._body(layout, held, free=weakest, max_steps=request.max_steps)
        (completion,) = await until(request.deadline, [complete(self._server, COMPLETIONS, body)])
        if completion is None:
            return late(Decoder.DIFFUSION)
        pinned = {index: draft_ids[index] for index in range(len(held)) if index not in weakest}
        best = self._draft(completion, layout, len(held), pinned)
        if not best.is_text:  # the draft stays as it was
            best = self._draft(completion, layout, len(held), dict(enumerate(draft_ids)))
        outcome = self._outcome(best, layout, request, rounds, is_late=False)
        if on_step is not None:
            on_step(outcome.as_step(rounds - 1, rounds))
        return outcome

    async def _denoise(
        self, request: InfillRequest, layout: LengthLayout, sizes: Sequence[int]
    ) -> list[_Draft]:
        """What the server makes of holes of these lengths, as far as it does so in time."""
        noise = random.Random(request.seed)
        bodies = []
        for size in sizes:
            held = [noise.randrange(self._vocab_size) for _ in range(size)]
            bodies.append(self._body(layout, held, free=range(size), max_steps=request.max_steps))
        completions = await until(
            request.deadline, [complete(self._server, COMPLETIONS, body) for body in bodies]
        )
        return [
            self._draft(completion, layout, size, {})
            for size, completion in zip(sizes, completions, strict=True)
            if completion is not None
        ]

    def _lay_out(self, request: InfillRequest, *, is_healed: bool = True) -> LengthLayout:
        return lay_out_lengths(
            self._tokenizer,
            request,
            canvas_length=self._canvas_length,
            max_position_embeddings=self._max_model_len,
            is_healed=is_healed,
        )

    def _body(
        self, layout: LengthLayout, held: Sequence[int], free: Sequence[int], max_steps: int | None
    ) -> dict[str, Any]:
        """A request for one canvas.

        Args:
            held: what the hole begins with.
            free: slots of it that may change.
        """
        seed = [*held, *layout.behind(len(held))]
        changing = frozenset(free)
        options: dict[str, Any] = {
            "diffusion_canvas_length": len(seed),
            "diffusion_seed_canvas": seed,
            "diffusion_pinned": [slot for slot in range(len(seed)) if slot not in changing],
            "diffusion_read_only": 1,  # one canvas, emitted without another pass to encode it
        }
        if max_steps is not None:
            options["diffusion_max_steps"] = max_steps
        return {
            "model": self._model,
            "prompt": layout.prompt_ids,
            "add_special_tokens": False,
            "max_tokens": len(seed),
            "ignore_eos": True,  # the pinned suffix may end a turn
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "vllm_xargs": options,
        }

    def _draft(
        self, completion: Completion, layout: LengthLayout, size: int, pinned: dict[int, int]
    ) -> _Draft:
        """The hole of a canvas that came back, pinned tokens put back where they belong."""
        if min(len(completion.token_ids), len(completion.log_probabilities)) < size:
            raise ServerUnreachable(
                f"{self._server.address.url} emitted {len(completion.token_ids)} tokens with "
                f"{len(completion.log_probabilities)} log-probabilities for a hole of {size}"
            )
        token_ids = list(completion.token_ids[:size])
        log_probabilities = list(completion.log_probabilities[:size])
        for slot, token_id in pinned.items():
            log_probabilities[slot] = _log_chances(completion, [token_id], slot)[0]
            token_ids[slot] = token_id
        agreement = _log_chances(completion, layout.behind(size)[:_NUM_JUDGED], size)
        values = [max(value, _LEAST_LOG_PROBABILITY) for value in (*log_probabilities, *agreement)]
        is_known = all(token_id in self._known for token_id in token_ids)
        return _Draft(
            tuple(token_ids),
            tuple(log_probabilities),
            sum(values) / len(values),
            is_text=is_known
            and self._specials.isdisjoint(token_ids)
            and self._tokenizer.decode_bytes(token_ids).startswith(layout.healed),
        )

    def _outcome(
        self,
        draft: _Draft,
        layout: LengthLayout,
        request: InfillRequest,
        rounds: int,
        *,
        is_late: bool,
    ) -> Outcome:
        text, ends = read_tokens(
            self._tokenizer,
            draft.token_ids,
            layout.healed,
            lambda text: cut_to_kind(text, request.kind),
        )
        return Outcome(
            text,
            Decoder.DIFFUSION,
            StopReason.DEADLINE if is_late else StopReason.CONVERGED,
            draft.token_ids,
            tuple(math.exp(min(0.0, value)) for value in draft.log_probabilities),
            ends,
            rounds,
            len(layout.prompt_ids),
        )


def _rank(draft: _Draft) -> tuple[bool, float]:
    return draft.is_text, draft.score


def _log_chances(completion: Completion, token_ids: Sequence[int], start: int) -> list[float]:
    """How likely these tokens are at the positions from `start` on, at most.

    Of each position the server tells the likeliest token alone. Of another we know that it is not
    likelier than that one, and has no more than what that one leaves.
    """
    chances = []
    emitted = zip(
        token_ids,
        completion.token_ids[start:],
        completion.log_probabilities[start:],
        strict=False,
    )
    for token_id, likeliest, log_probability in emitted:
        if token_id != likeliest:
            rest = -math.expm1(min(log_probability, 0.0))
            log_probability = min(log_probability, math.log(max(rest, 1e-13)))
        chances.append(log_probability)
    return chances
