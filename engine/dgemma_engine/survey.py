"""What can be told of a checkpoint folder without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import form_of, load_configs, quantization_method
from .config import ModelConfig
from .memory import HELD_AS, num_parameters
from .quantization import QUANT_METHOD
from .stored_model import StoredModel
from .tensor_files import read_json, tensor_files


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint that could be loaded.

    Attributes:
        name: its folder's.
        config: its dimensions.
        method: by which its weights are quantised; None for none.
        parameters: how many numbers, layer scalars included.
        disk_bytes: of its tensors' files.
        held_bytes: of its weights in memory, by quantization; None is as they are stored.
    """

    name: str
    config: ModelConfig
    method: str | None
    parameters: int
    disk_bytes: int
    held_bytes: dict[str | None, int]


def survey(path: str | Path) -> Survey:
    """Read a folder's headers.

    Raises:
        CheckpointError: it is no checkpoint, or one whose tensors do not match its config.json.
    """
    folder = Path(path).expanduser()
    config, _ = load_configs(folder)
    stored = StoredModel(folder, config)
    method = quantization_method(folder, read_json(folder / "config.json"))
    held = {
        name: sum(
            stored.num_bytes(weight, form_of(weight, HELD_AS.get(name or "")))
            for weight in stored.shapes
        )
        for name in (None, *HELD_AS)
    }
    if method == QUANT_METHOD:  # turned back when it is loaded, into float32 on a CPU
        held[None] = 4 * num_parameters(config)
    return Survey(
        name=folder.resolve().name,
        config=config,
        method=method,
        parameters=num_parameters(config),
        disk_bytes=sum(file.stat().st_size for file in tensor_files(folder)),
        held_bytes=held,
    )
