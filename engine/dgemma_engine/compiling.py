"""Compiles the encoder's pass over one token, and ends: see `compiled.py`, which starts it.

    python -m dgemma_engine.compiling CHECKPOINT LIBRARY

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

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint
from .compiled import LEAST_TOKENS
from .model import DiffusionGemma

# Tokens of the sample by which the pass is traced; different, or both counts are taken for one.
_SLIDING_TOKENS, _FULL_TOKENS = 7, 11


class _Step(nn.Module):
    """Tensors in, tensors out: a token and what each layer holds of the prefix."""

    def __init__(self, model: DiffusionGemma) -> None:
        super().__init__()
        self.model = model

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
        held = list(zip(keys, values, strict=True))
        masks = {True: None, False: None}
        hidden, new = self.model.continued(token_ids, length.view(1, 1), held, masks)
        return [self.model.logits(hidden[:, -1]), *(key for key, _ in new), *(v for _, v in new)]


@torch.no_grad()
def compile_step(model: DiffusionGemma, library: Path, folder: Path) -> None:
    """Write a shared library; it is there when it is whole.

    Args:
        model: in float32, on the CPU.
        library: what to write.
        folder: for what is written on the way, on the same disk.
    Raises:
        Exception: of many kinds, by torch's compiler.
    """
    window = model.config.sliding_window
    sliding = torch.export.Dim("sliding", min=LEAST_TOKENS, max=window - 1)
    full = torch.export.Dim("full", min=LEAST_TOKENS, max=model.config.max_position_embeddings - 1)
    dims = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for layer in model.config.layers:
        dims.append({2: sliding if layer.is_sliding else full})
        length = _SLIDING_TOKENS if layer.is_sliding else _FULL_TOKENS
        for part in (keys, values):
            part.append(torch.randn(1, layer.num_key_value_heads, length, layer.head_dim))
    arguments = (torch.tensor([[1]]), torch.tensor(_FULL_TOKENS), keys, values)
    traced = torch.export.export(
        _Step(model), arguments, dynamic_shapes=(None, None, dims, dims), strict=False
    )
    from torch._inductor import aot_compile

    written = folder / "step.so"
    options = {"aot_inductor.output_path": str(written), "cpp.threads": 1}
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
    checkpoint, library = map(Path, sys.argv[1:])
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
            compile_step(load_checkpoint(checkpoint, "cpu", "float32"), library, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
