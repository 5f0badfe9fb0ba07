"""Long output: several canvases one after another, each encoded before the next is denoised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .canvas import Canvas
from .config import SamplerConfig
from .denoise import DenoisingStep
from .errors import RequestError
from .loops import Denoiser
from .model import DiffusionGemma
from .stopping import StableAndConfident, StoppingCriterion


def generate(
    model: DiffusionGemma,
    token_ids: Tensor,
    max_new_tokens: int,
    sampler: SamplerConfig,
    seed: int,
) -> Tensor:
    """Continue a prompt; see `DiffusionGemma.generate` for arguments and result.

    On the CPU in float32 equal, token for token, to transformers 5.23 after `torch.manual_seed`.

    Raises:
        RequestError: `max_new_tokens` < 1, or the prompt is empty or outside the vocabulary.
    """
    if max_new_tokens < 1:
        raise RequestError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    length = model.config.canvas_length
    generator = torch.Generator(model.device).manual_seed(seed)
    eos = torch.tensor(sampler.eos_token_ids, dtype=torch.int64, device=model.device)
    cache = model.prefill(token_ids)
    sequence = token_ids
    is_finished = torch.zeros(token_ids.shape[0], dtype=torch.bool, device=model.device)
    denoise = Denoiser(model)
    num_canvases = math.ceil(max_new_tokens / length)
    for index in range(num_canvases):
        if index > 0:
            model.prefill(sequence[:, -length:], cache)
        canvas = Canvas.open(token_ids.shape[0], length, model.device)
        criteria: list[StoppingCriterion] = [
            StableAndConfident(sampler.stability_threshold, sampler.confidence_threshold)
        ]
        last: DenoisingStep | None = None
        for last in denoise(cache, canvas, sampler, generator, criteria):  # noqa: B007
            pass
        assert last is not None  # max_denoising_steps is at least 1
        block, has_ended = _pad_after_end(last.argmax_canvas, eos, sampler.pad_token_id)
        block = torch.where(is_finished[:, None], sampler.pad_token_id, block)
        sequence = torch.cat((sequence, block), dim=1)
        is_finished = is_finished | has_ended
        if bool(is_finished.all()):
            break
    return sequence


def _pad_after_end(block: Tensor, eos: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Overwrite what follows each row's first end-of-text token.

    Args:
        block: (B, C) int64.
        eos: (N,) int64.
    Returns:
        the padded block (B, C), and which rows hold an end (B,) bool.
    """
    is_end = torch.isin(block, eos)
    is_after = (is_end.cumsum(dim=-1) - is_end.long()) > 0
    return block.masked_fill(is_after, pad_token_id), is_end.any(dim=-1)
