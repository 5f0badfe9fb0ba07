"""DiffusionGemma: one stack of layers, run as a causal encoder or as a canvas denoiser.

`prefill` encodes tokens into a `KVCache`; `denoise_logits` reads it and never writes it. The model
knows ids and tensors; noise, acceptance and stopping are in `denoise.py`, text in `infill.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_kernels import residual_norm, soft_embedding

from .attention import Attention, Prefix, Prefixes, Rotary, build_rotary
from .cache import KVCache
from .config import LayerConfig, ModelConfig, SamplerConfig
from .errors import ContextTooLong, RequestError
from .layers import Experts, GatedMLP, RMSNorm, Router, SelfConditioning, held_weights
from .masks import encoder_mask
from .memory import prefill_tokens

if TYPE_CHECKING:
    from .compiled import CompiledPass, CompiledStep


class NewTokens(NamedTuple):
    """New tokens of a prefix that go through the layers together with canvases.

    What is said of a cache is said of its buffers, which have room for the new tokens.

    Attributes:
        token_ids: (1, n) int64. Those behind the last true one are padding, which no other sees.
        rotaries: for each kind of layer the angles of the new tokens, then of each canvas's
            positions, (1, n + B * C, K).
        lengths: (layers, 4) int32, in the first column the tokens that each layer held before.
        places: (layers, n) int64, where in its buffers each layer writes the new ones.
    """

    token_ids: Tensor
    rotaries: Mapping[LayerConfig, Rotary]
    lengths: Tensor
    places: Tensor


class Layer(nn.Module):
    """Attention, then a dense MLP beside the experts, each between its own norms."""

    layer_scalar: Tensor
    encoder_layer_scalar: Tensor

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.config = layer

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.input_layernorm = norm()
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.post_feedforward_layernorm_1 = norm()
        self.router = Router(config)
        self.pre_feedforward_layernorm_2 = norm()
        self.experts = Experts(config)
        self.post_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()
        self.register_buffer("layer_scalar", torch.ones(1))
        self.register_buffer("encoder_layer_scalar", torch.ones(1))

    def forward(self, hidden: Tensor, rotary: Rotary, mask: Tensor, scalar: Tensor) -> Tensor:
        """The whole layer over tokens that see only each other, for training.

        Args:
            hidden: (B, S, D).
            rotary: of the layer's kind.
            mask: bool, broadcastable to (B, H, S, S).
            scalar: as for `finish`.
        Returns:
            (B, S, D).
        """
        query, key, value = self.self_attn.project(self.input_layernorm(hidden), rotary)
        return self.finish(hidden, self.self_attn.attend(query, key, value, mask), scalar)

    def finish(self, residual: Tensor, attended: Tensor, scalar: Tensor | None) -> Tensor:
        """Everything after attention.

        Args:
            residual: (B, S, D), the layer's input.
            attended: (B, S, D), the attention's output.
            scalar: the layer scalar of the mode, broadcastable to (B, S, D); None for 1.
        Returns:
            (B, S, D), the layer's output.
        """
        return self.finish_routed(residual, attended, scalar)[0]

    def finish_routed(
        self, residual: Tensor, attended: Tensor, scalar: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `finish`; also the router's logits over the experts, (B * S, E), for training."""
        norms = (self.pre_feedforward_layernorm.weight, self.pre_feedforward_layernorm_2.weight)
        residual, for_dense, for_experts = residual_norm(
            residual,
            attended,
            self.post_attention_layernorm.weight,
            self.post_attention_layernorm.eps,
            next_weights=norms,
        )
        dense = self.post_feedforward_layernorm_1(self.mlp(for_dense))
        tokens = residual.flatten(0, -2)  # (T, D)
        scores = self.router.scores(tokens)  # (T, E)
        expert_index, expert_weight = self.router.choose(scores)
        routed = self.experts(for_experts.flatten(0, -2), expert_index, expert_weight)
        routed = self.post_feedforward_layernorm_2(routed).view_as(residual)
        (output,) = residual_norm(
            residual,
            dense + routed,
            self.post_feedforward_layernorm.weight,
            self.post_feedforward_layernorm.eps,
            scalar=scalar,
        )
        return output, scores


class DiffusionGemma(nn.Module):
    """The text model. Parameter names are the checkpoint's without `model.decoder.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.sampler_defaults = SamplerConfig()
        # Tokens that are encoded at once; None for as many as memory allows, by their number.
        self.prefill_tokens: int | None = None
        # What runs in the place of the encoder's pass over one token, and of passes over more.
        self.compiled_step: CompiledStep | None = None
        self.compiled_pass: CompiledPass | None = None
        # Without first values: drawing them on the meta device loads torch's compiler, 1.3 s.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        embedding = nn.Embedding.from_pretrained(empty, freeze=False)  # type: ignore[no-untyped-call]
        self.embed_tokens: nn.Embedding = embedding
        self.self_conditioning = SelfConditioning(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def num_parameters(self) -> int:
        """However many bits each is held in; layer scalars are not counted."""
        held = sum(weight.shape.numel() for weight in held_weights(self))
        return held + sum(parameter.numel() for parameter in self.parameters())

    @property
    def quantization(self) -> str | None:
        """The formats of the weights that are held in few bits, such as "fp8 and nvfp4"."""
        return " and ".join(sorted({weight.format.value for weight in held_weights(self)})) or None

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for prefixes of this model."""
        return KVCache(self.config, batch_size, self.dtype, self.device)

    @torch.no_grad()
    def prefill(self, token_ids: Tensor, cache: KVCache | None = None) -> KVCache:
        """Encode tokens causally, after those that the cache already holds.

        Many tokens are encoded in pieces, which bounds the memory and changes nothing else.

        Args:
            token_ids: (B, S) int64, S >= 1. Not modified.
            cache: continued in place; None starts a new one.
        Returns:
            the cache, S tokens longer.
        Raises:
            RequestError: `token_ids` is empty or holds an id outside the vocabulary.
            ContextTooLong: the cache would exceed `max_position_embeddings`.
        """
        if cache is None:
            cache = self.new_cache(token_ids.shape[0])
        self._encode(token_ids, cache, wants_logits=False)
        return cache

    @torch.no_grad()
    def next_token_logits(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """Encode tokens as `prefill` does, and say what may follow the last one.

        Args:
            token_ids: (B, S) int64, S >= 1. Not modified.
            cache: continued in place.
        Returns:
            (B, V) float32, softcapped.
        Raises:
            as `prefill`.
        """
        if self.compiled_step is not None and self.compiled_step.fits(token_ids, cache):
            self.check_new(token_ids, cache)
            return self.compiled_step(token_ids, cache)
        logits = self._encode(token_ids, cache, wants_logits=True)
        assert logits is not None
        return logits

    def _encode(self, token_ids: Tensor, cache: KVCache, *, wants_logits: bool) -> Tensor | None:
        """Run the encoder, piece by piece, and extend the cache: (B, V) of the last token."""
        self._check_token_ids(token_ids)
        length = cache.length + token_ids.shape[1]
        self._check_length(length)
        size = self.prefill_tokens or prefill_tokens(length)
        pieces = torch.split(token_ids, size, dim=1)
        for piece in pieces[:-1]:
            self._encode_piece(piece, cache, wants_logits=False)
        return self._encode_piece(pieces[-1], cache, wants_logits=wants_logits)

    def _encode_piece(
        self, token_ids: Tensor, cache: KVCache, *, wants_logits: bool
    ) -> Tensor | None:
        start, num_new = cache.length, token_ids.shape[1]
        hidden = self.embed(token_ids)
        if self.compiled_pass is not None and self.compiled_pass.fits(hidden, cache):
            return self.compiled_pass.encode(hidden, cache)
        positions = torch.arange(start, start + num_new, device=token_ids.device)[None]
        rotaries = self._rotaries(positions, hidden.dtype)
        masks = self._encoder_masks(start, num_new)
        last_index = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            normed = layer.input_layernorm(hidden)
            rotary = rotaries[layer.config]
            if index == last_index and not wants_logits:  # only its keys and values are read
                cache.write(index, *layer.self_attn.project_key_value(normed, rotary))
                break
            query, key, value = layer.self_attn.project(normed, rotary)
            keys, values = cache.write(index, key, value)
            mask = masks[layer.config.is_sliding]
            attended = layer.self_attn.attend(query, keys, values, mask)
            hidden = layer.finish(hidden, attended, layer.encoder_layer_scalar)
        cache.advance(num_new)
        return self.logits(hidden[:, -1]) if wants_logits else None

    @torch.no_grad()
    def continuation_logits(self, token_ids: Tensor, cache: KVCache, num_cached: int) -> Tensor:
        """What the encoder expects after each token of several continuations of one prefix.

        Args:
            token_ids: (N, S) int64, continuations of the first `num_cached` tokens of the cache.
            cache: of one row. Only read.
            num_cached: how much of the cache they continue, >= 0.
        Returns:
            (N, S, V) float32, softcapped: entry s is about the token after `token_ids[:, s]`.
        Raises:
            as `prefill`.
        """
        self._check_token_ids(token_ids)
        num_rows, num_new = token_ids.shape
        self._check_length(num_cached + num_new)
        hidden = self.embed(token_ids)
        if self.compiled_pass is not None and self.compiled_pass.fits(hidden, cache, num_cached):
            return self.compiled_pass.continuations(hidden, cache, num_cached)
        positions = torch.arange(num_cached, num_cached + num_new, device=token_ids.device)[None]
        held = [cache.prefix(index, num_cached, num_rows) for index in range(len(self.layers))]
        masks = self._encoder_masks(num_cached, num_new)
        hidden, _ = self.continued(hidden, positions, held, masks)
        return self.logits(hidden)

    def continued(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        held: Sequence[tuple[Tensor, Tensor]],
        masks: Mapping[bool, Tensor | None],
        is_canvas: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """All layers over tokens behind a prefix, of which nothing is written.

        Args:
            hidden: (N, S, D), embedded.
            position_ids: (1, S) int64.
            held: of each layer the prefix' keys and values, (N, G, S', K).
            masks: by `LayerConfig.is_sliding`, over those and the new ones; None masks nothing.
            is_canvas: () bool, whether the tokens are canvases; None for the encoder's.
            slots: (N, M) int64, the positions that are asked about; None for all.
        Returns:
            (N, S, D), or (N, M, D) with `slots`, for `logits`, and of each layer the new keys and
            values (N, G, S, K).
        """
        rotaries = self._rotaries(position_ids, hidden.dtype)
        new = []
        for layer, (prefix_keys, prefix_values) in zip(self.layers, held, strict=True):
            assert isinstance(layer, Layer)
            normed = layer.input_layernorm(hidden)
            query, key, value = layer.self_attn.project(normed, rotaries[layer.config])
            new.append((key, value))
            mask = masks[layer.config.is_sliding]
            if slots is not None and layer is self.layers[-1]:
                hidden, query = _asked_about(hidden, query, slots)
                mask = None if mask is None else mask[slots][:, None]  # (N, 1, M, S' + S)
            attended = layer.self_attn.attend(
                query,
                torch.cat((prefix_keys, key), dim=2),
                torch.cat((prefix_values, value), dim=2),
                mask,
            )
            scalar = layer.encoder_layer_scalar
            if is_canvas is not None:
                scalar = torch.where(is_canvas, layer.layer_scalar, scalar)
            hidden = layer.finish(hidden, attended, scalar)
        return hidden, new

    def _encoder_masks(self, num_cached: int, num_new: int) -> dict[bool, Tensor | None]:
        """By `LayerConfig.is_sliding`: over the cached tokens it sees, then the new ones.

        None where there is nothing to mask: one token sees all that its cache shows.
        """
        if num_new == 1:
            return {True: None, False: None}
        window = self.config.sliding_window
        return {
            True: encoder_mask(min(num_cached, window - 1), num_new, window, self.device),
            False: encoder_mask(num_cached, num_new, None, self.device),
        }

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise ContextTooLong(
                f"{length} tokens of context exceed the model's "
                f"{self.config.max_position_embeddings}; shorten the prefix or the suffix"
            )

    def denoise_logits(
        self,
        canvas: Tensor,
        cache: KVCache,
        self_conditioning_logits: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """One decoder pass: what the model believes each canvas position should hold.

        Args:
            canvas: (B, C) int64. Not modified.
            cache: the encoded prefix, of B rows or of one row that all canvases share. Only read.
            self_conditioning_logits: (B, C, V), those of the previous pass divided by its
                temperature; None in the first pass. With `slots`, (B, M, V) of these.
            slots: (B, M) int64, the positions that are asked about; the others are clamped, that
                is, certain of their tokens. None asks about all.
        Returns:
            (B, C, V) float32, softcapped, not divided by a temperature; with `slots`, (B, M, V).
        Raises:
            RequestError: `canvas` is empty or holds an id outside the vocabulary.
        Source: transformers 5.23 DiffusionGemmaForBlockDiffusion.forward.
        """
        self._check_token_ids(canvas)
        batch_size, canvas_length = canvas.shape
        hidden = self._embed_canvas(canvas, self_conditioning_logits, slots)
        if self.compiled_pass is not None and self.compiled_pass.fits(hidden, cache):
            return self.compiled_pass.canvases(hidden, cache, slots)
        rotaries = self.rotaries(cache.length, canvas_length)
        hidden = self.canvas_hidden(
            hidden, rotaries, lambda index: Prefix(*cache.canvas_keys(index, batch_size)), slots
        )
        return self.logits(hidden)

    def canvas_hidden(
        self,
        hidden: Tensor,
        rotaries: Mapping[LayerConfig, Rotary],
        prefix: Callable[[int], Prefix | Prefixes],
        slots: Tensor | None = None,
        canvas_length: Tensor | None = None,
    ) -> Tensor:
        """All layers over a canvas that is embedded.

        Args:
            hidden: (B, C, D).
            rotaries: of the canvas' positions, for each kind of layer.
            prefix: what each layer reads of the prefix, by its index.
            slots: (B, M) int64, the positions that are asked about; None for all.
            canvas_length: (1,) int32, how many of the C positions the canvas has, if it lies in a
                longer buffer; None for all.
        Returns:
            (B, C, D), or (B, M, D) with `slots`: for `logits`.
        """
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            normed = layer.input_layernorm(hidden)
            query, key, value = layer.self_attn.project(normed, rotaries[layer.config])
            if slots is not None and index == len(self.layers) - 1:
                # Nothing reads what the last layer makes of the other positions but their keys.
                hidden, query = _asked_about(hidden, query, slots)
            attended = layer.self_attn.attend_canvas(
                query, key, value, prefix(index), canvas_length
            )
            hidden = layer.finish(hidden, attended, layer.layer_scalar)
        return hidden

    @torch.no_grad()
    def fold_logits(
        self, new_ids: Tensor, canvas: Tensor, cache: KVCache, slots: Tensor | None = None
    ) -> Tensor:
        """`prefill` and the first `denoise_logits` in one pass over the weights.

        Args:
            new_ids: (1, n) int64, n >= 1, what the prefix goes on with. Not modified.
            canvas: (B, C) int64, behind them. Not modified.
            cache: of one row; n tokens longer afterwards, and as it was if the pass fails.
            slots: as for `denoise_logits`.
        Returns:
            as `denoise_logits`.
        Raises:
            as `prefill`.
        """
        self._check_token_ids(canvas)
        self.check_new(new_ids, cache)
        num_new = new_ids.shape[1]
        cache.reserve(num_new)
        new = self.new_tokens(new_ids, cache, canvas.shape)
        after = new.lengths + num_new
        hidden = self.folded_hidden(
            self._embed_canvas(canvas, None),
            new,
            lambda index: self.held(cache, index, after),
            slots,
        )
        cache.advance(num_new)
        return self.logits(hidden)

    def check_new(self, new_ids: Tensor, cache: KVCache) -> None:
        """Raises what `prefill` raises for such tokens."""
        self._check_token_ids(new_ids)
        self._check_length(cache.length + new_ids.shape[1])

    def new_tokens(
        self,
        token_ids: Tensor,
        cache: KVCache,
        canvas_shape: tuple[int, ...],
        num_true: int | None = None,
    ) -> NewTokens:
        """(1, n) int64 behind what a cache holds, before canvases of a shape (B, C).

        Args:
            num_true: how many are no padding; None for all.
        """
        num_new, (num_rows, length) = token_ids.shape[1], canvas_shape
        num_true = num_new if num_true is None else num_true
        held = torch.tensor([cache.num_held(index) for index in range(len(self.layers))])
        lengths = held[:, None].expand(-1, 4).to(self.device, torch.int32)
        step = torch.arange(num_new, device=self.device)
        canvas = torch.arange(length, device=self.device).repeat(num_rows) + num_true
        positions = torch.cat((step, canvas))[None] + cache.length
        rotaries = self._rotaries(positions, self.dtype)
        return NewTokens(token_ids, rotaries, lengths, held[:, None].to(self.device) + step)

    def held(self, cache: KVCache, layer_index: int, lengths: Tensor) -> Prefix:
        """What one layer holds, by its length on the device.

        Args:
            cache: of a prefix.
            layer_index: which layer.
            lengths: (layers, 4) int32, of which the first column counts: so that each lies as a
                kernel likes it.
        """
        is_sliding = self.config.layers[layer_index].is_sliding
        return Prefix(
            *cache.buffers(layer_index),
            length=lengths[layer_index, :1],
            window=self.config.sliding_window - 1 if is_sliding else None,
        )

    def folded_hidden(
        self,
        hidden: Tensor,
        new: NewTokens,
        prefix: Callable[[int], Prefix],
        slots: Tensor | None = None,
        canvas_length: Tensor | None = None,
    ) -> Tensor:
        """As `canvas_hidden`, and the new tokens of the prefix with it, whose keys are written.

        A canvas reads of its layer only keys and values, and these are there when it comes to them.

        Args:
            hidden: (B, C, D), the canvases, embedded.
            new: the tokens.
            prefix: what each layer holds with them, by its index.
            slots: as for `canvas_hidden`.
            canvas_length: likewise.
        Returns:
            as `canvas_hidden`.
        """
        num_new, (num_rows, length) = new.token_ids.shape[1], hidden.shape[:2]
        tokens = torch.cat((self.embed(new.token_ids), hidden.flatten(0, 1)[None]), dim=1)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            normed = layer.input_layernorm(tokens)
            heads = attention.project(normed, new.rotaries[layer.config])
            new_query, new_key, new_value = (part[:, :, :num_new] for part in heads)
            query, key, value = (  # (B, H or G, C, K)
                part[0, :, num_new:].view(part.shape[1], num_rows, length, -1).transpose(0, 1)
                for part in heads
            )
            now = prefix(index)
            now.key.index_copy_(2, new.places[index], new_key)
            now.value.index_copy_(2, new.places[index], new_value)
            if index == len(self.layers) - 1:  # of the new tokens only keys and values are read
                hidden = tokens[0, num_new:].view(num_rows, length, -1)
                if slots is not None:
                    hidden, query = _asked_about(hidden, query, slots)
                attended = attention.attend_canvas(query, key, value, now, canvas_length)
                return layer.finish(hidden, attended, layer.layer_scalar)
            before = now._replace(length=new.lengths[index, :1])
            attended = torch.cat(
                (
                    attention.attend_canvas(new_query, new_key, new_value, before, causal=True),
                    attention.attend_canvas(query, key, value, now, canvas_length).flatten(0, 1)[
                        None
                    ],
                ),
                dim=1,
            )
            tokens = layer.finish(tokens, attended, None)
            tokens[:, :num_new] *= layer.encoder_layer_scalar
            tokens[:, num_new:] *= layer.layer_scalar
        raise AssertionError("a model has layers")

    def forward_joint(
        self,
        token_ids: Tensor,
        is_canvas: Tensor,
        position_ids: Tensor,
        sliding_mask: Tensor,
        full_mask: Tensor,
        self_conditioning_logits: Tensor | None = None,
    ) -> Tensor:
        """Encoder rows and canvas rows in one pass, for training.

        The encoder never looks at a canvas, so with masks that say so this equals `prefill`
        followed by `denoise_logits`, and gradients reach both.

        Args:
            token_ids: (B, T) int64.
            is_canvas: (T,) bool, the same split in every row: which tokens are canvas.
            position_ids: (B, T) int64.
            sliding_mask: bool, broadcastable to (B, H, T, T), for sliding layers.
            full_mask: the same for full layers.
            self_conditioning_logits: (B, C, V) for the C canvas tokens of a row, or None.
        Returns:
            (B, T, D), for `logits`.
        """
        hidden = self.embed(token_ids).clone()
        canvas = self._embed_canvas(token_ids[:, is_canvas], self_conditioning_logits)
        hidden[:, is_canvas] = canvas.to(hidden.dtype)
        rotaries = self._rotaries(position_ids, hidden.dtype)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            scalar = torch.where(is_canvas, layer.layer_scalar, layer.encoder_layer_scalar)
            mask = sliding_mask if layer.config.is_sliding else full_mask
            hidden = layer(hidden, rotaries[layer.config], mask, scalar[:, None])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm, tied embedding, softcap: (..., D) to (..., V) float32."""
        return self.softcapped(F.linear(self.norm(hidden), self.embed_tokens.weight).float())

    def softcapped(self, logits: Tensor) -> Tensor:
        """Any shape; within +-`final_logit_softcapping`."""
        cap = self.config.final_logit_softcapping
        return torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def generate(
        self,
        token_ids: Tensor,
        max_new_tokens: int,
        sampler: SamplerConfig | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Continue a prompt, one canvas after another.

        Args:
            token_ids: (B, S) int64, the prompt; rows of one length.
            max_new_tokens: rounded up to whole canvases.
            sampler: None takes the checkpoint's own.
            seed: of the noise and the draws.
        Returns:
            (B, S + n) int64: the prompt and n new tokens, n a multiple of the canvas length. After
            a row's first end-of-text token there is only padding.
        """
        from .generate import generate

        return generate(self, token_ids, max_new_tokens, sampler or self.sampler_defaults, seed)

    def embed(self, token_ids: Tensor) -> Tensor:
        """(..., S) int64 to (..., S, D), scaled."""
        return F.embedding(token_ids, self.embed_tokens.weight) * self.embedding_scale()

    def _embed_canvas(
        self,
        canvas: Tensor,
        self_conditioning_logits: Tensor | None,
        slots: Tensor | None = None,
    ) -> Tensor:
        soft_embeddings = None
        if self_conditioning_logits is not None:
            table = self.embed_tokens.weight
            soft_embeddings = soft_embedding(
                self_conditioning_logits.flatten(0, 1),
                None,
                table,
                embedding_scale=self.config.hidden_size**0.5,
            )
            soft_embeddings = soft_embeddings.view(*self_conditioning_logits.shape[:2], -1)
        return self.embed_canvas(canvas, soft_embeddings, slots)

    def embed_canvas(
        self, canvas: Tensor, soft_embeddings: Tensor | None, slots: Tensor | None = None
    ) -> Tensor:
        """What goes into the first layer.

        Args:
            canvas: (B, C) int64.
            soft_embeddings: (B, C, D), the scaled mean embeddings under the previous pass's
                probabilities, or (B, M, D) with `slots`; None in the first pass.
            slots: (B, M) int64, where these are; the others are certain of their tokens.
        Returns:
            (B, C, D).
        """
        embeddings = self.embed(canvas)
        if soft_embeddings is not None and slots is not None:
            # Where there is certainty, the mean embedding is the token's own.
            index = slots[..., None].expand_as(soft_embeddings)
            soft_embeddings = embeddings.scatter(1, index, soft_embeddings)
        return self.self_conditioning.combine(embeddings, soft_embeddings)

    def embedding_scale(self) -> Tensor:
        """sqrt(D), rounded to the weights' dtype as the published model rounds it."""
        # Filled on the device: while a CUDA graph is captured nothing may be copied to it.
        return torch.full((), self.config.hidden_size**0.5, dtype=self.dtype, device=self.device)

    def rotaries(self, start: int, length: int) -> dict[LayerConfig, Rotary]:
        """The angles of so many positions from `start` on, for each kind of layer."""
        positions = torch.arange(start, start + length, device=self.device)[None]
        return self._rotaries(positions, self.dtype)

    def _rotaries(self, position_ids: Tensor, dtype: torch.dtype) -> dict[LayerConfig, Rotary]:
        return {
            layer: build_rotary(layer, position_ids, dtype) for layer in set(self.config.layers)
        }

    def _check_token_ids(self, token_ids: Tensor) -> None:
        if token_ids.ndim != 2 or token_ids.numel() == 0:
            raise RequestError(
                f"token ids must be (B, S) with S >= 1, got {tuple(token_ids.shape)}"
            )
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise RequestError(
                f"token ids must be in 0 .. {self.config.vocab_size - 1}, got {low} .. {high}"
            )


def _asked_about(hidden: Tensor, query: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, C, D) and (B, H, C, K) the positions (B, M): (B, M, D) and (B, H, M, K)."""
    return _at(hidden, slots), _at(query.transpose(1, 2), slots).transpose(1, 2)


def _at(values: Tensor, slots: Tensor) -> Tensor:
    """Some positions of every row: (B, C, ...) and (B, M) int64 to (B, M, ...)."""
    index = slots.view(*slots.shape, *([1] * (values.ndim - 2)))
    return values.gather(1, index.expand(*slots.shape, *values.shape[2:]))
