"""Which denoising loop runs: the one place that decides.

On a GPU with its kernels it is `device_loop.py`, elsewhere `denoise.py`, and that also wherever the
former does not do what is asked for. Both yield the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from dgemma_kernels.backend import Backend, backend_for, report

from .cache import KVCache
from .canvas import Canvas
from .config import SamplerConfig
from .denoise import DenoisingStep, denoise, denoise_in_passes
from .device_loop import MOST_NEW_TOKENS, DeviceLoop
from .model import DiffusionGemma
from .passes import InPasses, Pass
from .sampler import Randoms
from .stopping import StoppingCriterion
from .types import CancellationToken

# What a denoising yields, with its passes done or left to whoever runs it.
Steps = (
    Generator[DenoisingStep, Tensor | None, None]
    | Generator[DenoisingStep | Pass, Tensor | None, None]
)
Denoise = Callable[..., Steps]  # a Denoiser, or its `in_passes`


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

    @property
    def most_new_tokens(self) -> int:
        """How many new tokens of a prefix are better left to the first pass than encoded before.

        None on a CPU: with 4 M parameters it would take 0.8 times as long, 5 ms less a fill, but
        the plain loop gives the same bits whatever was encoded before.
        """
        return 0 if self._loop is None else MOST_NEW_TOKENS

    def describe(self) -> str:
        """Which loop the last denoising took, and why if it was the plain one.

        Also which passes are compiled code.
        """
        if self._why_plain or self._loop is None:
            forms = {"step": self._model.compiled_step, "pass": self._model.compiled_pass}
            names = " and ".join(name for name, compiled in forms.items() if compiled is not None)
            return f"plain: {self._why_plain}{names and f'; {names} compiled'}"
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
        new_ids: Sequence[int] = (),
    ) -> Generator[DenoisingStep, Tensor | None, None]:
        """See `denoise.denoise`.

        Args:
            new_ids: what the prefix goes on with, `most_new_tokens` at most; encoded into the cache
                by the first pass, or before it.
        """
        given = (cache, canvas, config, generator, criteria, cancel)
        if self._loop is not None:
            self._why_plain = self._loop.why_not(canvas, config, criteria) or ""
            if not self._why_plain:
                return self._loop.denoise(
                    *given, initial=initial, first_step=first_step, new_ids=new_ids
                )
        if new_ids:
            self._encode(new_ids, cache)
        return denoise(self._model, *given, initial=initial, first_step=first_step)

    def _encode(self, new_ids: Sequence[int], cache: KVCache) -> None:
        self._model.prefill(torch.tensor([list(new_ids)], device=self._model.device), cache)

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
        new_ids: Sequence[int] = (),
    ) -> Generator[DenoisingStep | Pass, Tensor | None, None]:
        """See `denoise.denoise_in_passes`; what is random is what `__call__` would draw.

        Args:
            new_ids: as in `__call__`, encoded before the first pass.
        """
        if new_ids:
            self._encode(new_ids, cache)
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


def next_step(steps: Steps, rows: Tensor | None) -> InPasses[DenoisingStep | None]:
    """The next step, of these rows alone if any are named; None after the last one."""
    given = rows
    while True:
        try:
            found = steps.send(given)
        except StopIteration:
            return None
        if isinstance(found, DenoisingStep):
            return found
        given = yield found


def describe_kernels() -> str:
    """Which ops ran by their kernel so far, and why the others did not."""
    taken = report()
    plain: dict[str, list[str]] = {}
    for op, form in taken.items():
        if form != Backend.TRITON.value:
            plain.setdefault(form, []).append(op)
    by_kernel = len(taken) - sum(map(len, plain.values()))
    if by_kernel == 0:
        return "PyTorch reference"
    reasons = "".join(f"; {', '.join(ops)} by {form}" for form, ops in plain.items())
    return f"Triton for {by_kernel} of {len(taken)} ops{reasons}"
