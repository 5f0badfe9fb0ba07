"""The safetensors files of a folder: one file or an index of shards, read and written in parts.

Knows names, shapes and bytes; not what they mean to a model (`checkpoint.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint: it has no {path.name}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


class StoredTensor(NamedTuple):
    """What a file's header says of a tensor; `dtype` is None where torch has none like it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None


class TensorFiles:
    """All tensors of a folder by name; a tensor is read when it is asked for, and not kept.

    Raises:
        CheckpointError: there are no such files, one is missing, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._open: dict[Path, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for file in tensor_files(folder):
            try:
                opened: Any = safe_open(file, framework="pt")
                self._open[file] = opened
                for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                    header = opened.get_slice(name)
                    dtype = _DTYPES.get(header.get_dtype())
                    self.tensors[name] = StoredTensor(file, tuple(header.get_shape()), dtype)
            except (SafetensorError, OSError) as error:
                raise _damaged(file, error) from error

    def read(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        file = self.tensors[name].file
        try:
            tensor: Tensor = self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        return tensor

    def read_at(self, name: str, index: int) -> Tensor:
        """One entry of a tensor's first dimension."""
        file = self.tensors[name].file
        try:
            tensor: Tensor = self._open[file].get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        return tensor


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each named once.

    Raises:
        CheckpointError: there are none, or the index names one that is not there.
    """
    index_path = folder / INDEX
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise CheckpointError(f"{index_path} has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        absent = [file.name for file in files if not file.exists()]
        if absent:
            raise CheckpointError(
                f"{folder}: {index_path.name} names files that are not there: {', '.join(absent)}"
            )
        return files
    single = folder / _SINGLE
    if not single.exists():
        raise CheckpointError(f"{folder} has neither {_SINGLE} nor {INDEX}")
    return [single]


class ShardWriter:
    """Writes tensors in the order they come, a file whenever one is full; holds one file's.

    Args:
        folder: exists, empty of tensors.
        max_shard_bytes: a file's tensors together; one tensor alone may be more.
    """

    def __init__(self, folder: Path, max_shard_bytes: int) -> None:
        self._folder = folder
        self._most = max_shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._written: list[list[str]] = []
        self._total = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors that belong into one file, such as a weight with its scales."""
        pending = sum(tensor.nbytes for tensor in self._pending.values())
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._pending and pending + size > self._most:
            self._flush()
        self._pending |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._total += size

    def close(self) -> None:
        """Write what is left, and the index if there are several files."""
        if not self._written:
            save_file(self._pending, self._folder / _SINGLE, metadata={"format": "pt"})
            return
        self._flush()
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._written, start=1):
            file = f"model-{number:05d}-of-{len(self._written):05d}.safetensors"
            self._part(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")

    def _flush(self) -> None:
        self._written.append(list(self._pending))
        save_file(self._pending, self._part(len(self._written)), metadata={"format": "pt"})
        self._pending = {}

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.safetensors"


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or cut short ({error}); download it again")
