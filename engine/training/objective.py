"""What is minimised: left-to-right loss on documents, denoising loss on canvases, router losses.

The denoising loss is a flat cross-entropy over every hole slot, corrupted or clean, text or
padding. A weight that depends on the target would tilt the very posterior that decides a fill's
length: padding weighted 0.1 doubled it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_engine.canvas import HOLE_START, PAD_ID
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.special_tokens import SPECIAL_TOKENS

from .fast_kernels import softcapped_cross_entropy
from .rows import HOLE_LENGTHS, Batch
from .streams import Streams

Noise = Literal["uniform", "hybrid"]

# Hybrid noise: 4 of 5 replaced tokens become this one, the others are uniform.
ABSORBING_ID = SPECIAL_TOKENS.index("<reserved:0>")
_ABSORBING_SHARE = 0.8

_LEAST_NOISE = 1e-3

LOAD_BALANCE_WEIGHT = 1e-2
ROUTER_Z_WEIGHT = 1e-4


@dataclass(frozen=True)
class Corruption:
    """Noisy canvases.

    Attributes:
        canvas_ids: (B, N) int64, the batch's with noise in the holes.
        is_corrupted: (B, N) bool, slots whose token was redrawn (perhaps as itself).
        is_pure: (B, N) bool, slots of canvases that are nothing but noise.
    """

    canvas_ids: Tensor
    is_corrupted: Tensor
    is_pure: Tensor


def corrupt(
    batch: Batch,
    vocab_size: int,
    noise: Noise,
    pure_noise_share: float,
    front_noise_share: float,
    generator: torch.Generator,
) -> Corruption:
    """Redraw hole slots, over the whole vocabulary.

    Three kinds of canvas: nothing but noise; clean up to a slot and noise from there on, as fills
    whose first slots were accepted; and every slot redrawn with the canvas' probability t.

    Args:
        batch: clean.
        vocab_size: V.
        noise: what replaces a token.
        pure_noise_share: of the canvases, those of the first kind.
        front_noise_share: of the canvases, those of the second kind, whose front is drawn from
            0 .. text slots. The others have t from U(0.001, 1).
        generator: of all draws, on the batch's device.
    """
    device = batch.token_ids.device
    shape = tuple(batch.hole_mask.shape)
    num_canvases = max(1, shape[1] // min(HOLE_LENGTHS))  # at most
    draws = torch.rand(2, shape[0], num_canvases, generator=generator, device=device)
    level = _LEAST_NOISE + (1.0 - _LEAST_NOISE) * draws[0]
    level = level.gather(1, batch.canvas_index)  # (B, N)
    kind = draws[1].gather(1, batch.canvas_index)
    is_pure = kind < pure_noise_share
    has_front = ~is_pure & (kind < pure_noise_share + front_noise_share)
    clean = batch.token_ids[:, batch.num_document_tokens :]
    is_text = batch.hole_mask & (clean != PAD_ID)
    num_text = torch.zeros(draws.shape[1:], device=device)
    num_text = num_text.scatter_add(1, batch.canvas_index, is_text.float())
    # The level is a share of the slots in both kinds: how many are noise.
    front = ((1.0 - level) * (num_text.gather(1, batch.canvas_index) + 1.0)).floor()
    num_before = is_text.cumsum(1) - is_text.int()  # text slots, of earlier canvases too
    earlier = (num_text.cumsum(1) - num_text).gather(1, batch.canvas_index)
    is_behind_front = ~is_text | (num_before - earlier >= front)
    is_redrawn = torch.rand(shape, generator=generator, device=device) < level
    is_redrawn = torch.where(has_front, is_behind_front, is_redrawn)
    is_corrupted = batch.hole_mask & (is_pure | is_redrawn)
    redrawn = torch.randint(0, vocab_size, shape, generator=generator, device=device)
    if noise == "hybrid":
        absorbed = torch.rand(shape, generator=generator, device=device) < _ABSORBING_SHARE
        redrawn = torch.where(absorbed, ABSORBING_ID, redrawn)
    return Corruption(torch.where(is_corrupted, redrawn, clean), is_corrupted, is_pure)


@dataclass(frozen=True)
class Losses:
    """Means over a batch, in nats; NaN where the batch has nothing of the kind.

    `canvas` is what is trained. The others part it: `t1` text slots of pure noise, `first` the
    first of them, `noisy` corrupted text slots of the other canvases, `clean` text slots left
    alone, `pad` padding slots that were corrupted.
    """

    total: Tensor
    causal: Tensor
    canvas: Tensor
    t1: float
    first: float
    noisy: float
    clean: float
    pad: float


def compute_losses(
    streams: Streams, batch: Batch, corruption: Corruption, self_condition: bool
) -> Losses:
    """Forward and loss of one batch, with a first pass over the canvases or without."""
    model, length = streams.model, batch.num_document_tokens
    masks = streams.masks(batch)
    encoded = streams.encode(batch, masks)
    scored = batch.document_weight[:, 1:] > 0  # (B, L - 1)
    causal, _ = _cross_entropy(
        model, encoded.hidden[:, : length - 1][scored], batch.token_ids[:, 1:length][scored]
    )
    if not batch.num_canvas_tokens:
        total = causal + router_loss(encoded.router_scores, model)
        nan = float("nan")
        return Losses(total, causal, torch.tensor(nan), nan, nan, nan, nan, nan)
    canvas_ids, slots = corruption.canvas_ids, batch.hole_mask
    soft = streams.first_pass(batch, masks, canvas_ids, encoded) if self_condition else None
    hidden, scores = streams.decode(batch, masks, canvas_ids, encoded, soft)
    routed = [torch.cat(pair) for pair in zip(encoded.router_scores, scores, strict=True)]
    target = batch.token_ids[:, length:][slots]
    canvas, losses = _cross_entropy(model, hidden[slots], target)
    is_text = target != PAD_ID
    is_corrupted = corruption.is_corrupted[slots]
    is_pure = corruption.is_pure[slots]
    is_first = batch.slot_index[slots] == HOLE_START

    def mean(where: Tensor) -> float:
        return float(losses[where].mean())

    return Losses(
        total=causal + canvas + router_loss(routed, model),
        causal=causal,
        canvas=canvas,
        t1=mean(is_text & is_pure),
        first=mean(is_text & is_pure & is_first),
        noisy=mean(is_text & is_corrupted & ~is_pure),
        clean=mean(is_text & ~is_corrupted),
        pad=mean(~is_text & is_corrupted),
    )


def _cross_entropy(model: DiffusionGemma, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of `model.logits(hidden)`: the mean, and every token's loss without its gradient."""
    cap = model.config.final_logit_softcapping
    return softcapped_cross_entropy(model.norm(hidden), model.embed_tokens.weight, target, cap)


def router_loss(collected: list[Tensor], model: DiffusionGemma) -> Tensor:
    """Even use of the experts, and small router logits; a mean over layers.

    Source: Switch Transformers (load balance), ST-MoE (z-loss).
    """
    num_experts, top_k = model.config.num_experts, model.config.top_k_experts
    balance = z_loss = torch.zeros((), device=model.device)
    for logits in collected:
        logits = logits.float()
        probabilities = logits.softmax(dim=-1)
        chosen = F.one_hot(probabilities.topk(top_k, dim=-1).indices, num_experts).sum(dim=1)
        share = chosen.float().mean(dim=0) / top_k
        balance = balance + num_experts * (share * probabilities.mean(dim=0)).sum()
        z_loss = z_loss + logits.logsumexp(dim=-1).square().mean()
    count = max(1, len(collected))
    return (LOAD_BALANCE_WEIGHT * balance + ROUTER_Z_WEIGHT * z_loss) / count
