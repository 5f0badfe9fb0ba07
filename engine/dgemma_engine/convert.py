"""`dgemma-lsp quantize`: a checkpoint in, the same in fewer bits out, tensor by tensor.

What is written has the project's own names: matrices as the model stacks them, scales beside them
(`stored_weights.py`), and says so in config.json. The vision tower, which is not run, is left out.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from dgemma_kernels.weights import QuantizedWeight

from .checkpoint import (
    OUR_METHOD,
    form_of,
    load_configs,
    resolve_device,
)
from .errors import ConfigError
from .memory import HELD_AS, check_quantization
from .stored_model import StoredModel, our_name_to_stored
from .stored_weights import stored_parts
from .tensor_files import INDEX, ShardWriter, read_json

MAX_SHARD_BYTES = 4_000_000_000
# Of the source, beside its tensors and what is written anew: the tokenizer and what goes with it.
_NOT_COPIED = {"config.json", INDEX, "hf_quant_config.json"}
_COPIED = ("*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*")

OnProgress = Callable[[int, int], None]


def quantize_checkpoint(
    source: str | Path,
    target: str | Path,
    quantization: str,
    device: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_progress: OnProgress | None = None,
) -> None:
    """Write a checkpoint folder whose experts and dense matrices are in fewer bits.

    Until it is whole, the folder has another name; what breaks off leaves none.

    Args:
        source: the checkpoint. Not modified. What it has quantised already stays as it is.
        target: the new folder; its parent exists, it does not.
        quantization: a name of `HELD_AS`.
        device: where matrices are quantised, one at a time.
        max_shard_bytes: of a file, >= 1.
        on_progress: called with the tensors that are done, and with all there are.
    Raises:
        ConfigError: an unknown quantization, a target that cannot be, or too little space.
        CheckpointError: the source cannot be read.
    """
    forms = HELD_AS[check_quantization(quantization)]
    source, target = Path(source).expanduser(), Path(target).expanduser()
    config, _ = load_configs(source)
    stored = StoredModel(source, config)
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another name, or remove it")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent} to write {target.name} into")
    needed = sum(stored.num_bytes(name, form_of(name, forms)) for name in stored.shapes)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConfigError(_no_space(target, needed, free))
    place = resolve_device(device)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            writer = ShardWriter(work, max_shard_bytes)
            for number, name in enumerate(stored.shapes):
                weight = stored.read(name, place, form_of(name, forms))
                if not isinstance(weight, QuantizedWeight) and weight.dtype == torch.float64:
                    weight = weight.float()
                parts = stored_parts(our_name_to_stored(name), weight)
                writer.add({part: tensor.cpu() for part, tensor in parts.items()})
                if on_progress is not None:
                    on_progress(number + 1, len(stored.shapes))
            writer.close()
            _write_configs(source, work, quantization)
            os.chmod(work, 0o755)
            os.rename(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from error
        free = shutil.disk_usage(target.parent).free
        raise ConfigError(f"{_no_space(target, needed, free)} ({error})") from error


def _write_configs(source: Path, work: Path, quantization: str) -> None:
    """What belongs to the tensors; config.json, which makes it a checkpoint, last."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, work / file.name)
    config = read_json(source / "config.json")
    config["quantization_config"] = {"quant_method": OUR_METHOD, "format": quantization}
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _no_space(target: Path, needed: int, free: int) -> str:
    return (
        f"{target.name} takes {needed / 1e9:.2f} GB, and {target.parent} has {free / 1e9:.2f} GB "
        "free; choose another place, or fewer bits"
    )
