"""Attention of one layer: projections, per-head norms, rotary embedding.

One set of weights serves two uses. The encoder attends causally and its caller writes the keys and
values returned here into the cache; the canvas attends to cached and own keys and drops its own.
Nothing in this module writes a cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgemma_kernels import attention, canvas_attention, qk_norm_rope, rms_norm, rope

from .config import LayerConfig, ModelConfig
from .layers import Linear, RMSNorm


class Rotary(NamedTuple):
    """Angles of one kind of layer: cos and sin, each (B or 1, S, K)."""

    cos: Tensor
    sin: Tensor


class Projections(NamedTuple):
    """What attention needs of new tokens: query (B, H, S, K), key and value (B, G, S, K)."""

    query: Tensor
    key: Tensor
    value: Tensor


class Prefix(NamedTuple):
    """What a canvas may read of the prefix in one layer; see `dgemma_kernels.canvas_attention`.

    Attributes:
        key: (B or 1, G, S, K), what `KVCache.canvas_keys` shows, or a whole buffer.
        value: as `key`.
        length: (1,) int32, how many of the S keys count; None for all.
        window: how many of these are seen at most; None for all.
    """

    key: Tensor
    value: Tensor
    length: Tensor | None = None
    window: int | None = None


class Prefixes(NamedTuple):
    """Several prefixes, each read by canvases of its own: as many as its keys have rows."""

    parts: tuple[Prefix, ...]


class Attention(nn.Module):
    """q, k, v and output projections with query and key norms, named as in the checkpoint."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.layer = layer
        query_size = config.num_attention_heads * layer.head_dim
        key_size = layer.num_key_value_heads * layer.head_dim
        self.q_proj = Linear(config.hidden_size, query_size)
        self.k_proj = Linear(config.hidden_size, key_size)
        if not layer.value_from_key:
            self.v_proj = Linear(config.hidden_size, key_size)
        self.o_proj = Linear(query_size, config.hidden_size)
        self.q_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(layer.head_dim, config.rms_norm_eps)

    def project(self, hidden: Tensor, rotary: Rotary) -> Projections:
        """Project (B, S, D), norm each head, rotate queries and keys.

        Values are normed without a scale and not rotated. On a full layer they are the raw key
        projection, taken before the key norm.
        """
        query = self.q_proj(hidden).unflatten(-1, (-1, self.layer.head_dim))  # (B, S, H, K)
        key, value = self._raw_key_value(hidden)
        weights = (self.q_norm.weight, self.k_norm.weight)
        heads = qk_norm_rope(query, key, value, *weights, *rotary, self.k_norm.eps)
        return Projections(*heads)

    def project_key_value(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """As `project`, without the query: all that the encoder's last layer has to do."""
        key, value = self._raw_key_value(hidden)
        key = rope(self.k_norm(key), *rotary)
        value = rms_norm(value, None, self.k_norm.eps)
        return key.transpose(1, 2), value.transpose(1, 2)  # (B, G, S, K)

    def _raw_key_value(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key = self.k_proj(hidden).unflatten(-1, (-1, self.layer.head_dim))  # (B, S, G, K)
        if self.layer.value_from_key:
            return key, key
        return key, self.v_proj(hidden).unflatten(-1, (-1, self.layer.head_dim))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend and project back: (B, H, S, K) over (B, G, L, K) to (B, S, D)."""
        return self._project_back(attention(query, key, value, mask))

    def attend_canvas(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix: Prefix | Prefixes,
        canvas_length: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """As `attend`, from a canvas over a prefix of the cache and itself, with no mask.

        Args:
            query: (B, H, M, K), all positions of the canvas or some.
            key: (B, G, C, K), of the canvas.
            value: as `key`.
            prefix: what the canvas reads of the cache, or the canvases of theirs.
            canvas_length: (1,) int32, how many of the C keys count; None for all.
            causal: the C are no canvas but new tokens of the prefix, M of them.
        Returns:
            (B, M, D).
        """
        if isinstance(prefix, Prefix):
            return self._project_back(
                _heads(query, key, value, prefix, canvas_length, causal=causal)
            )
        assert not causal, "new tokens are of one prefix"
        rows = [len(part.key) for part in prefix.parts]
        queries, keys, values = (torch.split(tensor, rows) for tensor in (query, key, value))
        each = zip(queries, keys, values, prefix.parts, strict=True)
        return self._project_back(torch.cat([_heads(*one, canvas_length) for one in each]))

    def _project_back(self, heads: Tensor) -> Tensor:
        output: Tensor = self.o_proj(heads.transpose(1, 2).flatten(-2))
        return output


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: Prefix,
    canvas_length: Tensor | None,
    *,
    causal: bool = False,
) -> Tensor:
    """(B, H, M, K), before they are projected back."""
    return canvas_attention(
        query,
        prefix.key,
        prefix.value,
        key,
        value,
        prefix_length=prefix.length,
        window=prefix.window,
        canvas_length=canvas_length,
        causal=causal,
    )


def build_rotary(layer: LayerConfig, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
    """Angles for tokens at the given positions.

    The first `rotary_fraction` of the channel pairs rotate, with frequencies theta^(-2j/K) whose
    exponent is over the whole head; the other pairs stay (frequency 0).

    Args:
        layer: head size, theta and fraction.
        position_ids: (B or 1, S) int64.
        dtype: of the result; the angles are computed in float32 and rounded once.
    Returns:
        cos and sin, (B or 1, S, K).
    Source: transformers 5.23, rope types "default" and "proportional".
    """
    half = layer.head_dim // 2
    num_rotating = int(layer.rotary_fraction * layer.head_dim // 2)
    exponent = torch.arange(0, 2 * num_rotating, 2, device=position_ids.device).float()
    frequencies = torch.zeros(half, device=position_ids.device)
    frequencies[:num_rotating] = 1.0 / layer.rope_theta ** (exponent / layer.head_dim)
    angles = position_ids[..., None].float() * frequencies  # (B, S, K/2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, S, K)
    return Rotary(angles.cos().to(dtype), angles.sin().to(dtype))
