"""Decoder passes over canvases of several prefixes, done as one.

What they share is the weights, which are read once for all. Each canvas attends to its own prefix
where it lies in its client's cache: nothing is gathered, padded or masked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dgemma_kernels import soft_embedding

from .attention import Prefix, Prefixes, Rotary
from .cache import KVCache
from .config import LayerConfig
from .model import DiffusionGemma

# Logits of one pass, in float32: 4 canvases of 256 tokens of the 26B. A pass holds a few times as
# much; what does not fit goes in the next.
MOST_LOGITS_BYTES = 1 << 30


class Pass(NamedTuple):
    """One decoder pass that is wanted: the arguments of `DiffusionGemma.denoise_logits`.

    Attributes:
        canvas: (B, C) int64.
        cache: of one row.
        self_conditioning_logits: (B, M, V), or None.
        slots: (B, M) int64.
    """

    canvas: Tensor
    cache: KVCache
    self_conditioning_logits: Tensor | None
    slots: Tensor

    def alone(self, model: DiffusionGemma) -> Tensor:
        """(B, M, V) float32."""
        return model.denoise_logits(*self)


_T = TypeVar("_T")
# Work that may ask for passes, or let others on with None, and be answered with the logits.
InPasses = Generator[Pass | None, Tensor | None, _T]


def together(
    model: DiffusionGemma, passes: Sequence[Pass], most_bytes: int = MOST_LOGITS_BYTES
) -> list[Tensor]:
    """What each pass would find alone, up to rounding.

    Matrices of another height may be multiplied in another order of sums: a logit moves in its
    last digits, and a token can change where two are as likely to these digits.

    Args:
        passes: those of canvases of one length that are all the first of their canvas, or all
            not, go as one; on a device with too little memory, one by one.
        most_bytes: of the logits of those that go as one.
    Returns:
        for each pass (B, M, V) float32.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, wanted in enumerate(passes):
        key = (wanted.canvas.shape[1], wanted.self_conditioning_logits is None)
        groups.setdefault(key, []).append(index)
    found: dict[int, Tensor] = {}
    for group in groups.values():
        for part in _parts(group, passes, most_bytes // (4 * model.config.vocab_size)):
            found.update(zip(part, _as_one(model, [passes[index] for index in part]), strict=True))
    return [found[index] for index in range(len(passes))]


def _parts(group: list[int], passes: Sequence[Pass], most_slots: int) -> list[list[int]]:
    """Numbers of passes in parts of at most so many slots, or of one pass."""
    parts: list[list[int]] = []
    rows = width = 0
    for index in group:
        more, slots = passes[index].slots.shape
        rows, width = rows + more, max(width, slots)
        if not parts or rows * width > most_slots:
            parts.append([])
            rows, width = more, slots
        parts[-1].append(index)
    return parts


def _as_one(model: DiffusionGemma, passes: list[Pass]) -> list[Tensor]:
    if len(passes) > 1:
        try:
            return _joint(model, passes)
        except torch.OutOfMemoryError:
            pass  # what it held is free again only after this
    return [wanted.alone(model) for wanted in passes]


@torch.no_grad()
def _joint(model: DiffusionGemma, passes: list[Pass]) -> list[Tensor]:
    """One pass over canvases of one length, each with its own prefix and its own positions."""
    rows = tuple(len(wanted.canvas) for wanted in passes)
    canvas = torch.cat([wanted.canvas for wanted in passes])  # (B, C)
    width = max(wanted.slots.shape[1] for wanted in passes)
    slots = torch.cat([_widened(wanted.slots, width) for wanted in passes])  # (B, M)
    logits = [wanted.self_conditioning_logits for wanted in passes]
    soft: Tensor | None = None
    if logits[0] is not None:
        certain = [_widened(each, width) for each in logits if each is not None]
        soft = soft_embedding(
            torch.cat(certain).flatten(0, 1),
            None,
            model.embed_tokens.weight,
            embedding_scale=model.config.hidden_size**0.5,
        ).view(*slots.shape, -1)
    hidden = model.canvas_hidden(
        model.embed_canvas(canvas, soft, slots),
        _rotaries(model, passes, rows),
        lambda index: Prefixes(
            tuple(Prefix(*wanted.cache.canvas_keys(index, len(wanted.canvas))) for wanted in passes)
        ),
        slots,
    )
    found = torch.split(model.logits(hidden), list(rows))
    return [part[:, : wanted.slots.shape[1]] for part, wanted in zip(found, passes, strict=True)]


def _widened(values: Tensor, width: int) -> Tensor:
    """(B, M, ...) to (B, width, ...): the last slot is asked about again, and says the same."""
    missing = width - values.shape[1]
    if not missing:
        return values
    last = values[:, -1:].expand(-1, missing, *[-1] * (values.ndim - 2))
    return torch.cat((values, last), dim=1)


def _rotaries(
    model: DiffusionGemma, passes: list[Pass], rows: tuple[int, ...]
) -> dict[LayerConfig, Rotary]:
    """The angles of each canvas' positions, (B, C, K), which begin behind its own prefix."""
    length = passes[0].canvas.shape[1]
    each = [model.rotaries(wanted.cache.length, length) for wanted in passes]
    return {
        layer: Rotary(
            *(
                torch.cat(
                    [
                        angles[layer][part].expand(count, -1, -1)
                        for angles, count in zip(each, rows, strict=True)
                    ]
                )
                for part in (0, 1)
            )
        )
        for layer in each[0]
    }
