"""Compiles one of the encoder's and the canvas' passes, and ends: see `compiled.py`.

    python -m dgemma_engine.compiling step|pass CHECKPOINT LIBRARY

Runs at the lowest priority, and ends with all that it started when its stdin does. The compiler
takes 560 MB, which is why it is not the engine's process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgemma_kernels import linear
from dgemma_kernels.weights import QuantizedWeight, WeightFormat, quantize

from .checkpoint import load_checkpoint
from .compiled import LEAST_TOKENS, Form
from .layers import Experts, Linear, hold
from .model import DiffusionGemma

# Sizes of the sample by which a pass is traced; different, or two of them are taken for one.
_SLIDING_TOKENS, _FULL_TOKENS, _ROWS, _NEW_TOKENS, _SLOTS = 7, 11, 3, 5, 4
# Of a row's largest weight: what is stored in bytes is turned back with less than this.
_ROUNDING = 1e-6


class _Step(nn.Module):
    """A token, and what each layer holds of the prefix."""

    def __init__(self, model: DiffusionGemma) -> None:
        super().__init__()
        self.model = model
        self.table = in_bytes(model.embed_tokens.weight)

    def forward(
        self, token_ids: Tensor, length: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> list[Tensor]:
        """The logits, then each layer's new key, then each layer's new value.

        Args:
            token_ids: (1, 1) int64.
            length: () int64, of the prefix.
            keys: of each layer (1, G, S', K), what the token sees of the prefix.
            values: as `keys`.
        """
        if isinstance(self.table, QuantizedWeight):
            codes, scales = self.table.data[token_ids], self.table.scale[token_ids]
            hidden = codes.float() * scales[..., None]
        else:
            hidden = self.table[token_ids]
        hidden, new = self.model.continued(
            hidden * self.model.embedding_scale(),
            length.view(1, 1),
            list(zip(keys, values, strict=True)),
            {True: None, False: None},
        )
        logits = self.model.softcapped(linear(self.model.norm(hidden[:, -1]), self.table))
        return [logits, *(key for key, _ in new), *(value for _, value in new)]


class _Pass(nn.Module):
    """Tokens, or canvases, and what each layer holds of the prefix."""

    def __init__(self, model: DiffusionGemma) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        hidden: Tensor,
        length: Tensor,
        slots: Tensor,
        is_canvas: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> list[Tensor]:
        """The logits (B, M, V), then each layer's new keys, then each layer's new values.

        Args:
            hidden: (B, S, D), embedded.
            length: () int64, of the prefix.
            slots: (B, M) int64, the positions that are asked about.
            is_canvas: () bool.
            keys: of each layer (1, G, S', K), what is seen of the prefix.
            values: as `keys`.
        """
        num_rows, num_new, _ = hidden.shape
        places = torch.arange(num_new)
        masks = {}
        for layer, held in zip(self.model.config.layers, keys, strict=True):
            if layer.is_sliding not in masks:
                num_held = held.shape[2]
                distance = (places + num_held)[:, None] - torch.arange(num_held + num_new)
                is_seen = distance >= 0
                if layer.is_sliding:
                    is_seen &= distance < self.model.config.sliding_window
                masks[layer.is_sliding] = is_seen | is_canvas
        shape = (num_rows, -1, -1, -1)
        prefixes = [(k.expand(shape), v.expand(shape)) for k, v in zip(keys, values, strict=True)]
        hidden, new = self.model.continued(
            hidden, (places + length)[None], prefixes, masks, is_canvas, slots
        )
        return [self.model.logits(hidden), *(key for key, _ in new), *(v for _, v in new)]


def in_bytes(weight: Tensor) -> Tensor | QuantizedWeight:
    """A matrix (..., N, K) in INT8 if that is how it was stored: the same numbers, in a quarter."""
    plain = weight.detach()
    held = quantize(plain, WeightFormat.INT8)
    difference = (held.dequantize(torch.float32) - plain).abs().amax(dim=-1)
    is_same = bool((difference <= _ROUNDING * plain.abs().amax(dim=-1)).all())
    return held if is_same else plain


def hold_bytes(model: DiffusionGemma) -> None:
    """Have a model hold each matrix as `in_bytes` does: one token is the time to read them."""
    names = {Linear: ("weight",), Experts: ("gate_up_proj", "down_proj")}
    for path, module in list(model.named_modules()):
        for name in names.get(type(module), ()):
            held = in_bytes(getattr(module, name))
            if isinstance(held, QuantizedWeight):
                hold(model, f"{path}.{name}", held)


@torch.no_grad()
def compile_form(form: Form, model: DiffusionGemma, library: Path, folder: Path) -> None:
    """Write a shared library; it is there when it is whole.

    Args:
        form: which of the two.
        model: in float32, on the CPU. It is modified.
        library: what to write.
        folder: for what is written on the way, on the same disk.
    Raises:
        Exception: of many kinds, by torch's compiler.
    """
    most = model.config.max_position_embeddings
    sliding = torch.export.Dim("sliding", min=LEAST_TOKENS, max=model.config.sliding_window - 1)
    full = torch.export.Dim("full", min=LEAST_TOKENS, max=most - 1)
    dims = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for layer in model.config.layers:
        dims.append({2: sliding if layer.is_sliding else full})
        length = _SLIDING_TOKENS if layer.is_sliding else _FULL_TOKENS
        for part in (keys, values):
            part.append(torch.randn(1, layer.num_key_value_heads, length, layer.head_dim))
    of_prefix = torch.tensor(_FULL_TOKENS)
    arguments: tuple[Any, ...]
    dynamic: tuple[Any, ...]
    if form is Form.STEP:
        hold_bytes(model)
        module: nn.Module = _Step(model)
        arguments, dynamic = (torch.tensor([[1]]), of_prefix), (None, None)
    else:
        module = _Pass(model)
        hidden = torch.randn(_ROWS, _NEW_TOKENS, model.config.hidden_size)
        slots = torch.arange(_SLOTS).repeat(_ROWS, 1)
        arguments = (hidden, of_prefix, slots, torch.tensor(False))
        rows = torch.export.Dim("rows", min=2, max=most)
        new = torch.export.Dim("new", min=2, max=most)
        asked = torch.export.Dim("asked", min=2, max=most)
        dynamic = ({0: rows, 1: new}, None, {0: rows, 1: asked}, None)
    arguments = (*arguments, keys, values)
    traced = torch.export.export(
        module, arguments, dynamic_shapes=(*dynamic, dims, dims), strict=False
    )
    from torch._inductor import aot_compile

    written = folder / "compiled.so"
    options: dict[str, Any] = {"aot_inductor.output_path": str(written), "cpp.threads": 1}
    if form is Form.STEP:
        # Or what a matrix is multiplied with is computed anew for each of its rows.
        options["realize_reads_threshold"] = 0
    # `freezing` would have oneDNN multiply a pass's matrices, 1.3 times as fast on AMD; what it
    # keeps for each number of tokens came to 600 MB.
    aot_compile(traced.module(), arguments, options=options)
    written.replace(library)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # a C++ compiler may be running
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    os.nice(19)
    torch.set_num_threads(1)
    form, checkpoint, library = Form(sys.argv[1]), *map(Path, sys.argv[2:])
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another window's engine may compile the same
        if library.exists():
            return
        folder = library.with_suffix(".work")
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir()
        try:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
            compile_form(form, load_checkpoint(checkpoint, "cpu", "float32"), library, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
