"""What `dgemma-lsp models` shows: which models there are, what they take, and what runs here.

Of published models it tells what is written down in `dgemma_engine.known`; it opens no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

import dgemma_engine
from dgemma_engine.config import ModelConfig
from dgemma_engine.known import KNOWN, published_config
from dgemma_engine.memory import HELD_AS, held_bytes, longest_context, weight_bytes

if TYPE_CHECKING:
    from dgemma_engine.machine import Memory

_TOO_LARGE = "too large"


def machine_lines(memory: Sequence[Memory]) -> list[str]:
    """What this machine has, one device a line."""
    lines = [
        f"{item.name}: {item.description}, {_size(item.total_bytes)} of memory, "
        f"{_size(item.free_bytes)} free"
        for item in memory
    ]
    return lines if len(memory) > 1 else [*lines, "no GPU that torch can use"]


def known_table(memory: Sequence[Memory]) -> Table:
    """The default model, and the published forms of the 26B with what they become in fewer bits."""
    table = _table("model", memory)
    own = dgemma_engine.survey_checkpoint("default")
    held = own.held_bytes[None]
    cells = _cells(own.config, held, memory)
    table.add_row("default", f"{own.name}, in this package", *_sizes(own.disk_bytes, held), *cells)
    config = published_config()
    for known in KNOWN:
        held = held_bytes(config, known.forms)
        about = "" if known.is_measured else "about "
        disk, own_memory = _sizes(known.disk_bytes, held)
        cells = _cells(config, held, memory)
        table.add_row(known.repository, known.holds, about + disk, own_memory, *cells)
        if not known.forms:
            for name in HELD_AS:
                held = weight_bytes(config, name)
                cells = _cells(config, held, memory)
                table.add_row("", f"--quantization {name}", "", _size(held), *cells)
    return table


def folder_table(paths: Sequence[str], memory: Sequence[Memory]) -> Table:
    """Checkpoint folders of the user's, as stored and in fewer bits.

    Raises:
        CheckpointError: a folder is not one.
    """
    table = _table("folder", memory)
    for path in paths:
        found = dgemma_engine.survey_checkpoint(path)
        for name, held in found.held_bytes.items():
            cells = _cells(found.config, held, memory)
            if name is None:
                stored = f"quantised by {found.method}" if found.method else found.config.dtype
                what = f"{found.parameters / 1e6:,.1f} M parameters, {stored}"
                table.add_row(path, what, *_sizes(found.disk_bytes, held), *cells)
            elif held < found.held_bytes[None]:
                table.add_row("", f"--quantization {name}", "", _size(held), *cells)
    return table


def download_lines() -> Iterator[Text]:
    """How a user gets a published model, and then uses it."""
    for known in KNOWN:
        yield Text(f"  {known.download_command}", style="cyan")
    yield Text("then: dgemma-lsp fill FILE:LINE:COL --model FOLDER  (or the setting `model`)")


def _table(first: str, memory: Sequence[Memory]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="cyan")
    for heading in (first, "weights", "on disk", "in memory"):
        table.add_column(heading, justify="right" if " " in heading else "left")
    for item in memory:
        table.add_column(f"context on {item.name}", justify="right")
    return table


def _cells(config: ModelConfig, held: int, memory: Sequence[Memory]) -> Iterator[str]:
    """For every device, the longest context in tokens that fits there beside the weights."""
    for item in memory:
        context = longest_context(config, held, item.total_bytes)
        yield f"{context:,}" if context else _TOO_LARGE


def _sizes(disk_bytes: int, held: int) -> tuple[str, str]:
    return _size(disk_bytes), _size(held)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
