"""The encoder's keys and values, and their reuse between calls.

`KVCache` is what one prefix left behind; `PrefixCache` keeps it for the next prompt, which in an
editor shares all but a few tokens with the last; `PrefixCaches` keeps one for each of many clients.
Only the encoder writes any of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .config import ModelConfig

if TYPE_CHECKING:
    from .model import DiffusionGemma

# Buffers grow to the next multiple of this many tokens: a typed character then seldom reallocates.
_GROWTH_TOKENS = 256


class KVCache:
    """Keys and values of an encoded prefix, per layer (B, G, S, K), post-norm and post-rope.

    Every layer keeps the whole prefix, sliding layers too, so that `truncate` is exact anywhere.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = config
        self._length = 0
        self.batch_size = batch_size
        self._keys = [
            torch.empty(
                (batch_size, layer.num_key_value_heads, 0, layer.head_dim),
                dtype=dtype,
                device=device,
            )
            for layer in config.layers
        ]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    @property
    def length(self) -> int:
        """S, the tokens encoded so far."""
        return self._length

    def write(self, layer_index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new tokens' keys and values behind the encoded ones.

        They count only after `advance`: a pass that is broken off leaves the cache as it was.

        Args:
            layer_index: which layer.
            keys: (B, G, S_new, K).
            values: as `keys`.
        Returns:
            keys and values of all S + S_new tokens, views into the cache.
        """
        end = self._length + keys.shape[2]
        self._reserve(layer_index, end)
        self._keys[layer_index][:, :, self._length : end] = keys
        self._values[layer_index][:, :, self._length : end] = values
        return self._keys[layer_index][:, :, :end], self._values[layer_index][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has written."""
        self._length += num_tokens

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, used or not."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        assert 0 <= length <= self._length, (length, self._length)
        self._length = length

    def canvas_keys(self, layer_index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """What a canvas may read of the prefix in one layer.

        A full layer shows all of it. A sliding layer shows the last `sliding_window - 1` tokens,
        the same ones to every canvas position, however far into the canvas it stands.

        Args:
            layer_index: which layer.
            batch_size: of the canvas; a cache of one row serves a canvas of many.
        Returns:
            keys and values (batch_size, G, S', K), views.
        Source: transformers 5.23, decoder attention over a DynamicCache.
        """
        start = 0
        if self._config.layers[layer_index].is_sliding:
            start = max(0, self._length - (self._config.sliding_window - 1))
        return self._read(layer_index, start, self._length, batch_size)

    def prefix(self, layer_index: int, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and values (batch_size, G, length, K) of the first `length` tokens, views."""
        assert 0 <= length <= self._length, (length, self._length)
        return self._read(layer_index, 0, length, batch_size)

    def _read(
        self, layer_index: int, start: int, end: int, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        keys = self._keys[layer_index][:, :, start:end]
        values = self._values[layer_index][:, :, start:end]
        if self.batch_size != batch_size:
            assert self.batch_size == 1, (self.batch_size, batch_size)
            keys = keys.expand(batch_size, -1, -1, -1)
            values = values.expand(batch_size, -1, -1, -1)
        return keys, values

    def _reserve(self, layer_index: int, length: int) -> None:
        for buffers in (self._keys, self._values):
            old = buffers[layer_index]
            if old.shape[2] >= length:
                continue
            capacity = max(length, old.shape[2] * 2)
            capacity = -(-capacity // _GROWTH_TOKENS) * _GROWTH_TOKENS
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, : self._length] = old[:, :, : self._length]
            buffers[layer_index] = new


class PrefixCache:
    """The cache of the last prompt; the next prompt re-encodes only what differs."""

    def __init__(self, model: DiffusionGemma) -> None:
        self._model = model
        self._token_ids: list[int] = []
        self._cache: KVCache | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return 0 if self._cache is None else self._cache.num_bytes

    def encode(self, token_ids: Sequence[int]) -> tuple[KVCache, int]:
        """Return the cache of exactly `token_ids`, and how many of them it already held.

        The cache is valid until the next call. If encoding fails half-way, what was valid stays so.
        """
        cache, shared = self._keep_shared(token_ids)
        rest = list(token_ids[shared:])
        if rest:
            self._model.prefill(torch.tensor([rest], device=self._model.device), cache)
            self._token_ids.extend(rest)
        return cache, shared

    def next_token_logits(self, token_ids: Sequence[int]) -> Tensor:
        """Encode what differs of `token_ids`, at least the last one: (V,) logits of what follows.

        The cache is that of `token_ids` then.
        """
        cache, shared = self._keep_shared(token_ids[:-1])
        rest = list(token_ids[shared:])
        logits = self._model.next_token_logits(
            torch.tensor([rest], device=self._model.device), cache
        )
        self._token_ids.extend(rest)
        return logits[0]

    def _keep_shared(self, token_ids: Sequence[int]) -> tuple[KVCache, int]:
        """Cut the cache back to what it shares with `token_ids`, and say how much that is."""
        shared = _shared_length(self._token_ids, token_ids)
        if self._cache is None:
            self._cache = self._model.new_cache(batch_size=1)
        self._cache.truncate(shared)
        del self._token_ids[shared:]
        return self._cache, shared


class ClientCaches(NamedTuple):
    """What the last fill of a client left behind: of its prompt, and of what the judge read."""

    prompt: PrefixCache
    judged: PrefixCache

    @property
    def num_bytes(self) -> int:
        """Memory that they hold."""
        return self.prompt.num_bytes + self.judged.num_bytes


class PrefixCaches:
    """`ClientCaches` for each client, within a plan of memory.

    Args:
        model: whose keys and values they hold.
        max_bytes: for all of them. The one that is used may exceed it alone: without it there is
            no fill.
        max_clients: as many are kept at most.
    """

    def __init__(
        self, model: DiffusionGemma, max_bytes: int = 2 << 30, max_clients: int = 256
    ) -> None:
        self._model = model
        self.max_bytes = max_bytes
        self._max_clients = max_clients
        self._caches: OrderedDict[str, ClientCaches] = OrderedDict()  # the last used last

    @property
    def num_bytes(self) -> int:
        """Memory that all of them hold."""
        return sum(caches.num_bytes for caches in self._caches.values())

    @property
    def clients(self) -> tuple[str, ...]:
        """Whose are kept, the last used last."""
        return tuple(self._caches)

    def of(self, client: str) -> ClientCaches:
        """The caches of a client, empty ones if it has none."""
        if client not in self._caches:
            self._caches[client] = ClientCaches(PrefixCache(self._model), PrefixCache(self._model))
        self._caches.move_to_end(client)
        return self._caches[client]

    def trim(self) -> None:
        """Let the ones go that were not used for longest, until the rest is within the plan."""
        while len(self._caches) > 1 and (
            len(self._caches) > self._max_clients or self.num_bytes > self.max_bytes
        ):
            self._caches.popitem(last=False)

    def forget(self, client: str) -> None:
        """Let a client's caches go."""
        self._caches.pop(client, None)


def _shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (left_id, right_id) in enumerate(zip(left, right, strict=False)):
        if left_id != right_id:
            return index
    return min(len(left), len(right))
