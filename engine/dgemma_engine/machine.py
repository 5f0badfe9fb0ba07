"""What this machine has: memory, and GPUs with theirs. Imports torch where it is asked for GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Memory:
    """One device's memory in bytes; `name` is torch's, `description` is for people."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


def main_memory() -> Memory | None:
    """The computer's own; None where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page
    except (AttributeError, ValueError, OSError):
        return None
    try:  # Linux counts what it could drop as well
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return Memory("cpu", f"{os.cpu_count()} CPU cores", total, free)


def gpu_memory() -> list[Memory]:
    """Every CUDA device that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def free_memory(device: torch.device) -> Memory | None:
    """The memory of a device; None where nobody says, as on MPS."""
    if device.type == "cuda":
        import torch

        return _gpu(torch.cuda.current_device() if device.index is None else device.index)
    return main_memory() if device.type == "cpu" else None


def _gpu(index: int) -> Memory:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Memory(f"cuda:{index}", torch.cuda.get_device_name(index), total, free)
