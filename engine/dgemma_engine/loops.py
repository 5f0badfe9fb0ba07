"""Which denoising loop runs: the one place that decides.

On a GPU with its kernels it is `device_loop.py`, elsewhere `denoise.py`, and that also wherever the
former does not do what is asked for. Both yield the same steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from dgemma_kernels.backend import Backend, backend_for

from .cache import KVCache
from .canvas import Canvas
from .config import SamplerConfig
from .denoise import DenoisingStep, denoise, denoise_in_passes
from .device_loop import DeviceLoop
from .model import DiffusionGemma
from .passes import Pass
from .sampler import Randoms
from .stopping import StoppingCriterion
from .types import CancellationToken


class Denoiser:
    """Denoises canvases of one model, one at a time.

    Args:
        model: the model, where it will stay.
        loop: the loop on the device; None for the one that its device and its kernels ask for.
    """

    def __init__(self, model: DiffusionGemma, loop: DeviceLoop | None = None) -> None:
        self._model = model
        self._loop = loop
        is_gpu = model.device.type == "cuda"
        if loop is None and is_gpu and backend_for(model.device) is Backend.TRITON:
            self._loop = DeviceLoop.on(model)
        self._why_plain = "" if self._loop else f"no kernels on {model.device.type}"

    def describe(self) -> str:
        """Which loop the last denoising took, and why if it was the plain one."""
        if self._why_plain or self._loop is None:
            return f"plain: {self._why_plain}"
        return f"on the device, {self._loop.num_graphs} CUDA graphs"

    def __call__(
        self,
        cache: KVCache,
        canvas: Canvas,
        config: SamplerConfig,
        generator: torch.Generator,
        criteria: Sequence[StoppingCriterion],
        cancel: CancellationToken | None = None,
        *,
        initial: Tensor | None = None,
        first_step: int = 0,
    ) -> Generator[DenoisingStep, Tensor | None, None]:
        """See `denoise.denoise`."""
        given = (cache, canvas, config, generator, criteria, cancel)
        if self._loop is not None:
            self._why_plain = self._loop.why_not(canvas, config, criteria) or ""
            if not self._why_plain:
                return self._loop.denoise(*given, initial=initial, first_step=first_step)
        return denoise(self._model, *given, initial=initial, first_step=first_step)

    def in_passes(
        self,
        cache: KVCache,
        canvas: Canvas,
        config: SamplerConfig,
        generator: torch.Generator,
        criteria: Sequence[StoppingCriterion],
        cancel: CancellationToken | None = None,
        *,
        initial: Tensor | None = None,
        first_step: int = 0,
    ) -> Generator[DenoisingStep | Pass, Tensor | None, None]:
        """See `denoise.denoise_in_passes`; what is random is what `__call__` would draw."""
        randoms = None
        if self._loop is not None and not self._loop.why_not(canvas, config, criteria):
            randoms = Randoms.of(
                generator,
                num_steps=config.max_denoising_steps,
                shape=(canvas.token_ids.shape[0], canvas.token_ids.shape[1]),
                num_slots=int(canvas.hole_mask.sum(dim=-1).max()),
                vocab_size=self._model.config.vocab_size,
            )
        return denoise_in_passes(
            self._model,
            cache,
            canvas,
            config,
            generator,
            criteria,
            cancel,
            initial=initial,
            first_step=first_step,
            randoms=randoms,
        )
