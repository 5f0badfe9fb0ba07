"""What a strategy makes of a request: prompt, canvas, and which tokens may stand where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..canvas import Canvas
from ..chains import CausalRules, Mix
from ..config import ModelConfig
from ..errors import RequestError
from ..judge import JudgePrompt
from ..scope import Scope
from ..tokenizer import Tokenizer
from ..types import Decoder, InfillRequest, JointRequest


@dataclass(frozen=True, slots=True)
class InfillPlan:
    """What to run for a request.

    Attributes:
        prompt_ids: for the encoder.
        canvas: (N, C), one row, or one row per draft or candidate length.
        healed: bytes of the prefix that the first token repeats; not part of the fill.
        may_continue: further open canvases may follow if this one does not end.
        rules: how the fill reads from left to right; None for models whose encoder was not trained
            to go on after such a prompt.
        decoder: what `Decoder.AUTO` means for this request.
        candidates: lengths of which the likeliest are drafted and compared, none to let the canvas
            decide by an end mark. Then `canvas` only shows how likely each length is.
        num_drafts: how many of the candidates are drafted.
        num_refined: how many of several drafts go on after `probe_passes`, those that the judge
            prefers by then.
        probe_passes: see above.
        exact_canvas: the canvas of some of these lengths, a row each.
        judge: what drafts are compared by; None where there is only one.
        most_tokens: of a text that is written from left to right, or copied; 0 without rules.
        before_ids, after_ids: the text around the hole, all of it and not only what is read; empty
            without rules.
        mix: changes what the rules say of the next token, by what `recall.py` knows.
        guesses: what stood elsewhere between such texts as around the hole, the same or renamed:
            token ids of a few texts, each of so many tokens at most; None where nothing is
            recalled.
        scope: which names may stand in the hole; None where nobody asks, or knows.
        is_reply: the text has the shape of no hole and is not cut.
    """

    prompt_ids: list[int]
    canvas: Canvas
    healed: bytes = b""
    may_continue: bool = False
    rules: CausalRules | None = None
    decoder: Decoder = Decoder.DIFFUSION
    candidates: tuple[int, ...] = ()
    num_drafts: int = 1
    num_refined: int = 1
    probe_passes: int = 0
    exact_canvas: Callable[[Sequence[int]], Canvas] | None = None
    judge: JudgePrompt | None = None
    most_tokens: int = 0
    before_ids: Sequence[int] = ()
    after_ids: Sequence[int] = ()
    mix: Mix | None = None
    guesses: Callable[[int], Iterator[list[int]]] | None = None
    scope: Scope | None = None
    is_reply: bool = False


@dataclass(frozen=True, slots=True)
class JointPlan:
    """What to run for several holes on one canvas.

    Attributes:
        prompt_ids: for the encoder.
        canvas: (1, C).
        holes: (H, C) bool, the slots of each hole.
        healed: for each hole, bytes of the text before it that its first token repeats.
        judge: what texts for all holes, joined with those between them, are compared by; None
            where the encoder cannot.
    """

    prompt_ids: list[int]
    canvas: Canvas
    holes: Tensor
    healed: tuple[bytes, ...]
    judge: JudgePrompt | None = None


class InfillStrategy(Protocol):
    """Turns a request into a plan, and the tokens that came out into text."""

    name: str
    end_token_ids: tuple[int, ...]  # a hole's text ends before the first of these
    fills_together: bool  # whether `plan_together` can be asked

    def plan(self, request: InfillRequest) -> InfillPlan:
        """Build the prompt and the canvas.

        Raises:
            ContextTooLong: the context cannot be cut to what the model reads.
        """
        ...

    def plan_together(self, request: JointRequest) -> JointPlan:
        """Build the prompt and one canvas for several holes.

        Raises:
            HolesTooFarApart: they do not fit on one.
            RequestError: this strategy has no such canvas.
        """
        ...

    def cut(self, text: str, request: InfillRequest) -> str:
        """Cut decoded text to the shape of the hole."""
        ...


def one_by_one(name: str) -> RequestError:
    """What a strategy raises that has no canvas for several holes."""
    return RequestError(f"strategy {name!r} fills holes one by one only")


def token_mask(token_ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """(V,) bool, True at the given ids."""
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[torch.tensor(list(token_ids), dtype=torch.int64, device=device)] = True
    return mask


def not_text(
    tokenizer: Tokenizer, config: ModelConfig, end_token_ids: tuple[int, ...], device: torch.device
) -> Tensor:
    """(V,) bool: special tokens but the ends, and embedding rows that no token belongs to."""
    specials = [index for index in tokenizer.special_ids if index not in end_token_ids]
    unused = range(tokenizer.vocab_size, config.vocab_size)
    return token_mask([*specials, *unused], config.vocab_size, device)


def continuing(
    tokenizer: Tokenizer, healed: bytes, vocab_size: int, device: torch.device
) -> Tensor | None:
    """(V,) bool, the tokens that continue what healing took back; None if it took nothing."""
    if not healed:
        return None
    return token_mask(tokenizer.ids_starting_with(healed), vocab_size, device)
