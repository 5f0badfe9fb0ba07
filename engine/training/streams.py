"""Documents and canvases one after the other: what `forward_joint` computes, in two halves.

The documents of a batch are encoded once. Canvases then read their keys and values: a first time
without gradient, for self-conditioning, and a second time with it. Each half is one function a
layer, so that both can be compiled, and attends under a dense mask or, on a GPU, in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dgemma_engine.attention import Rotary
from dgemma_engine.model import DiffusionGemma, Layer

from .fast_kernels import expected_embeddings
from .masks import MaskRule, canvas_mask, canvas_rule, document_mask, document_rule
from .rows import Batch

Mask = Tensor | BlockMask


@dataclass(frozen=True)
class Masks:
    """By `LayerConfig.is_sliding`: of L documents tokens over themselves, of N canvas tokens over
    documents and canvases."""

    documents: dict[bool, Mask]
    canvases: dict[bool, Mask]


def dense_masks(batch: Batch) -> Masks:
    """(B, 1, L, L) and (B, 1, N, L + N) bool."""
    length = batch.num_document_tokens
    positions = batch.position_ids[:, :length]
    index = batch.document_index
    no_index = torch.zeros_like(batch.canvas_index)
    windows = _windows(batch)
    documents = {window: document_mask(index, positions, window) for window in windows.values()}
    canvases = {}
    if batch.num_canvas_tokens:
        canvases = {
            window: canvas_mask(index, positions, batch.canvas_index, no_index, batch.cuts, window)
            for window in windows.values()
        }
    return _by_kind(windows, documents, canvases)


def block_masks(batch: Batch, compiled: bool = True) -> Masks:
    """The same as flex_attention reads them."""
    length, num_canvas = batch.num_document_tokens, batch.num_canvas_tokens
    windows = _windows(batch)

    def build(rule: MaskRule, num_queries: int, num_keys: int) -> BlockMask:
        return create_block_mask(
            rule,
            B=batch.token_ids.shape[0],
            H=None,
            Q_LEN=num_queries,
            KV_LEN=num_keys,
            device=batch.token_ids.device,
            _compile=compiled,
        )

    documents = {
        window: build(document_rule(batch.document_index, window), length, length)
        for window in windows.values()
    }
    canvases = {}
    if num_canvas:
        canvases = {
            window: build(
                canvas_rule(batch.canvas_index, batch.cuts, length, window),
                num_canvas,
                length + num_canvas,
            )
            for window in windows.values()
        }
    return _by_kind(windows, documents, canvases)


def _windows(batch: Batch) -> dict[bool, int | None]:
    """By kind of layer; a window that a row fits into is none."""
    is_limited = batch.num_document_tokens >= batch.sliding_window
    return {True: batch.sliding_window if is_limited else None, False: None}


def _by_kind(
    windows: dict[bool, int | None],
    documents: dict[int | None, Any],
    canvases: dict[int | None, Any],
) -> Masks:
    return Masks(
        {kind: documents[window] for kind, window in windows.items()},
        {kind: canvases[window] for kind, window in windows.items() if canvases},
    )


@dataclass(frozen=True)
class Encoded:
    """What canvases need of their documents, and what the losses need.

    Attributes:
        hidden: (B, L, D).
        keys_values: by layer, key and value (B, G, L, K).
        router_scores: by layer, (B * L, E).
    """

    hidden: Tensor
    keys_values: list[tuple[Tensor, Tensor]]
    router_scores: list[Tensor]

    def detach(self) -> Encoded:
        keys_values = [(key.detach(), value.detach()) for key, value in self.keys_values]
        return Encoded(self.hidden.detach(), keys_values, [])


def _document_layer(
    layer: Layer, hidden: Tensor, rotary: Rotary, mask: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, L, D) to the same, with key, value and router logits."""
    query, key, value = layer.self_attn.project(layer.input_layernorm(hidden), rotary)
    attended = layer.self_attn.attend(query, key, value, mask)
    hidden, scores = layer.finish_routed(hidden, attended, layer.encoder_layer_scalar)
    return hidden, key, value, scores


def _canvas_layer(
    layer: Layer,
    hidden: Tensor,
    rotary: Rotary,
    mask: Any,
    prefix_key: Tensor,
    prefix_value: Tensor,
) -> tuple[Tensor, Tensor]:
    """(B, N, D) to the same, with router logits."""
    query, key, value = layer.self_attn.project(layer.input_layernorm(hidden), rotary)
    keys = torch.cat((prefix_key, key), dim=2)
    values = torch.cat((prefix_value, value), dim=2)
    attended = layer.self_attn.attend(query, keys, values, mask)
    return layer.finish_routed(hidden, attended, layer.layer_scalar)


class Streams:
    """A model's two halves for one trainer."""

    def __init__(
        self, model: DiffusionGemma, *, compiled: bool = False, in_blocks: bool = False
    ) -> None:
        """
        Args:
            model: the model.
            compiled: run the layers through torch.compile.
            in_blocks: attend by flex_attention, which has gradients on GPUs only.
        """
        self.model = model
        self._in_blocks = in_blocks
        self._compiled = compiled
        self._document_layer: Callable[..., Any] = _document_layer
        self._canvas_layer: Callable[..., Any] = _canvas_layer
        if compiled:
            # Two kinds of layers, shapes of two phases, with gradient and without.
            torch._dynamo.config.recompile_limit = 64
            self._document_layer = torch.compile(_document_layer, dynamic=False)
            self._canvas_layer = torch.compile(_canvas_layer, dynamic=False)

    def masks(self, batch: Batch) -> Masks:
        return block_masks(batch, self._compiled) if self._in_blocks else dense_masks(batch)

    def encode(self, batch: Batch, masks: Masks) -> Encoded:
        """The documents of a batch, with gradients if they are enabled."""
        model, length = self.model, batch.num_document_tokens
        hidden = model.embed(batch.token_ids[:, :length])
        rotaries = model._rotaries(batch.position_ids[:, :length], hidden.dtype)
        keys_values, router_scores = [], []
        for layer in model.layers:
            assert isinstance(layer, Layer)
            mask = masks.documents[layer.config.is_sliding]
            hidden, key, value, scores = self._document_layer(
                layer, hidden, rotaries[layer.config], mask
            )
            keys_values.append((key, value))
            router_scores.append(scores)
        return Encoded(hidden, keys_values, router_scores)

    def decode(
        self,
        batch: Batch,
        masks: Masks,
        canvas_ids: Tensor,
        encoded: Encoded,
        soft_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The canvases of a batch.

        Args:
            batch: where they lie.
            masks: of this batch.
            canvas_ids: (B, N) int64, noisy.
            encoded: their documents.
            soft_embeddings: (B, N, D), what a first pass expects, or None in a first pass.
        Returns:
            (B, N, D), and by layer the router's logits (B * N, E).
        """
        model = self.model
        hidden = model.self_conditioning.combine(model.embed(canvas_ids), soft_embeddings)
        positions = batch.position_ids[:, batch.num_document_tokens :]
        rotaries = model._rotaries(positions, hidden.dtype)
        router_scores = []
        for layer, (key, value) in zip(model.layers, encoded.keys_values, strict=True):
            assert isinstance(layer, Layer)
            mask = masks.canvases[layer.config.is_sliding]
            hidden, scores = self._canvas_layer(
                layer, hidden, rotaries[layer.config], mask, key, value
            )
            router_scores.append(scores)
        return hidden, router_scores

    @torch.no_grad()
    def first_pass(
        self, batch: Batch, masks: Masks, canvas_ids: Tensor, encoded: Encoded
    ) -> Tensor:
        """What a pass without self-conditioning expects in every slot: (B, N, D) embeddings.

        Clamped slots are certain of their tokens, as the sampler sees to.
        """
        kind = batch.token_ids.device.type
        # Casts made without gradient must not serve the passes that have one.
        with torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        ):
            hidden, _ = self.decode(batch, masks, canvas_ids, encoded.detach())
            clean_ids = batch.token_ids[:, batch.num_document_tokens :]
            soft = self.model.embed(clean_ids).clone()
            table = self.model.embed_tokens.weight
            cap = self.model.config.final_logit_softcapping
            hidden = self.model.norm(hidden[batch.hole_mask])
            expected = expected_embeddings(hidden, table, cap) * self.model.embedding_scale()
            soft[batch.hole_mask] = expected.to(soft.dtype)
        return soft
