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
from .memory import SLACK_TOKENS, sliding_capacity
from .types import CancellationToken

if TYPE_CHECKING:
    from .model import DiffusionGemma

# Buffers grow to the next multiple of this many tokens: a typed character then seldom reallocates.
_GROWTH_TOKENS = 256
# Who may be withdrawn looks whether it is after so many tokens.
_CANCEL_TOKENS = 256


class KVCache:
    """Keys and values of an encoded prefix, per layer (B, G, S', K), post-norm and post-rope.

    A full layer keeps the whole prefix. A sliding layer keeps what its window reaches and
    `SLACK_TOKENS` before that, so that taking back a few tokens is exact however long the prefix
    is; `reusable` says how far back it goes.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config = config
        self._length = 0
        self.batch_size = batch_size
        self._starts = [0] * len(config.layers)  # of the tokens that a layer still holds
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

    @property
    def num_layers(self) -> int:
        return len(self._keys)

    def write(self, layer_index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new tokens' keys and values behind the encoded ones.

        They count only after `advance`: a pass that is broken off leaves the cache as it was.

        Args:
            layer_index: which layer.
            keys: (B, G, S_new, K).
            values: as `keys`.
        Returns:
            keys and values (B, G, `visible` + S_new, K), views into the cache: the cached tokens
            that the new ones may look at, and the new ones.
        """
        end = self._length + keys.shape[2]
        self._reserve(layer_index, end)
        start = self._starts[layer_index]
        self._keys[layer_index][:, :, self._length - start : end - start] = keys
        self._values[layer_index][:, :, self._length - start : end - start] = values
        first = self._length - self.visible(layer_index, self._length)
        return self._view(layer_index, first, end)

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has written."""
        self._length += num_tokens

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, used or not."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    def reusable(self, length: int) -> int:
        """How many of the first `length` tokens can be kept: all of them, or 0.

        0 where a sliding layer has dropped what the next tokens would look at.
        """
        window = self._config.sliding_window  # one more than is looked at: judges reread a token
        reaches = all(start == 0 or start <= length - window for start in self._starts)
        return length if reaches else 0

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens, which have to be `reusable`."""
        assert 0 <= length <= self._length, (length, self._length)
        assert self.reusable(length) == length, (length, self._starts)
        self._length = length
        if length == 0:
            self._starts = [0] * len(self._starts)

    def visible(self, layer_index: int, length: int) -> int:
        """How many of the first `length` tokens may be looked at from behind them.

        All of them in a full layer, the last `sliding_window - 1` in a sliding one.
        """
        if self._config.layers[layer_index].is_sliding:
            return min(length, self._config.sliding_window - 1)
        return length

    def canvas_keys(self, layer_index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """What a canvas may read of the prefix in one layer.

        Every canvas position reads the same `visible` tokens, however far into the canvas it is.

        Args:
            layer_index: which layer.
            batch_size: of the canvas; a cache of one row serves a canvas of many.
        Returns:
            keys and values (batch_size, G, S', K), views.
        Source: transformers 5.23, decoder attention over a DynamicCache.
        """
        return self.prefix(layer_index, self._length, batch_size)

    def buffers(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """The whole memory of one layer, (B, G, capacity, K) twice; `num_held` tokens count.

        It stays where it is until more tokens are written than it has room for.
        """
        return self._keys[layer_index], self._values[layer_index]

    def reserve(self, num_tokens: int) -> None:
        """Make room for more tokens in every layer: `buffers` then stay where they are."""
        for index in range(len(self._keys)):
            self._reserve(index, self._length + num_tokens)

    def num_held(self, layer_index: int) -> int:
        """How many tokens one layer holds, the last ones of the prefix."""
        return self._length - self._starts[layer_index]

    def prefix(self, layer_index: int, length: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and values (batch_size, G, S', K) of the `visible` of the first `length` tokens."""
        assert 0 <= length <= self._length, (length, self._length)
        keys, values = self._view(layer_index, length - self.visible(layer_index, length), length)
        if self.batch_size != batch_size:
            assert self.batch_size == 1, (self.batch_size, batch_size)
            keys = keys.expand(batch_size, -1, -1, -1)
            values = values.expand(batch_size, -1, -1, -1)
        return keys, values

    def _view(self, layer_index: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Tokens `first` to `end` of a layer, views."""
        start = self._starts[layer_index]
        assert first >= start, (first, start)
        kept = slice(first - start, end - start)
        return self._keys[layer_index][:, :, kept], self._values[layer_index][:, :, kept]

    def _reserve(self, layer_index: int, end: int) -> None:
        """Make room up to token `end`; a sliding layer that is full drops its oldest tokens."""
        start = self._starts[layer_index]
        capacity = self._keys[layer_index].shape[2]
        if end - start <= capacity:
            return
        first, most = start, end
        if self._config.layers[layer_index].is_sliding:
            most = sliding_capacity(self._config)
            if end - start > most:
                first = max(start, self._length - (self._config.sliding_window - 1) - SLACK_TOKENS)
        new_capacity = max(end - first, min(capacity * 2, most))
        new_capacity = -(-new_capacity // _GROWTH_TOKENS) * _GROWTH_TOKENS
        for buffers in (self._keys, self._values):
            old = buffers[layer_index]
            new = old.new_empty((*old.shape[:2], new_capacity, old.shape[3]))
            new[:, :, : self._length - first] = old[:, :, first - start : self._length - start]
            buffers[layer_index] = new
        self._starts[layer_index] = first


class Prepared(NamedTuple):
    """A cache, how many tokens of the prompt it already held, and those it does not hold yet."""

    cache: KVCache
    num_cached: int
    new_ids: list[int]


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

    def encode(
        self, token_ids: Sequence[int], cancel: CancellationToken | None = None
    ) -> tuple[KVCache, int]:
        """Return the cache of exactly `token_ids`, and how many of them it already held.

        The cache is valid until the next call. If encoding fails half-way, what was valid stays so.

        Raises:
            Cancelled: within `_CANCEL_TOKENS` of `cancel.cancel()`.
        """
        cache, shared = self._keep_shared(token_ids)
        rest = list(token_ids[shared:])
        size = max(1, len(rest)) if cancel is None else _CANCEL_TOKENS
        try:
            for start in range(0, len(rest), size):
                if cancel is not None:
                    cancel.raise_if_cancelled()
                piece = torch.tensor([rest[start : start + size]], device=self._model.device)
                self._model.prefill(piece, cache)
        finally:  # a long prefix is encoded in pieces, of which some may be done
            self._token_ids.extend(rest[: cache.length - shared])
        return cache, shared

    def prepare(self, token_ids: Sequence[int], most_new: int) -> Prepared:
        """As `encode`, but no more than `most_new` new tokens are left to the pass that comes.

        It may encode them, or not: the cache's length says how many tokens count.
        """
        cache, shared = self._keep_shared(token_ids)
        new_ids = list(token_ids[shared:])
        if len(new_ids) > most_new:
            self.encode(token_ids)
            new_ids = []
        self._token_ids.extend(new_ids)
        return Prepared(cache, shared, new_ids)

    def next_token_logits(self, token_ids: Sequence[int]) -> Tensor:
        """Encode what differs of `token_ids`, at least the last one: (V,) logits of what follows.

        The cache is that of `token_ids` then.
        """
        cache, shared = self._keep_shared(token_ids[:-1])
        rest = list(token_ids[shared:])
        try:
            logits = self._model.next_token_logits(
                torch.tensor([rest], device=self._model.device), cache
            )
        finally:
            self._token_ids.extend(rest[: cache.length - shared])
        return logits[0]

    def _keep_shared(self, token_ids: Sequence[int]) -> tuple[KVCache, int]:
        """Cut the cache back to what it shares with `token_ids`, and say how much that is."""
        if self._cache is None:
            self._cache = self._model.new_cache(batch_size=1)
        del self._token_ids[self._cache.length :]  # what was left to a pass that never was
        shared = self._cache.reusable(_shared_length(self._token_ids, token_ids))
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

    def trim(self, num_used: int = 1) -> None:
        """Let the ones go that were not used for longest, until the rest is within the plan.

        Args:
            num_used: so many of the last stay whatever they hold.
        """
        while len(self._caches) > num_used and (
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
