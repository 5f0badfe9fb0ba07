"""What `dgemma-lsp bench` shows of what the engine timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from dgemma_engine.timing import Bench, Row


def bench_heading(bench: Bench) -> str:
    """Which model, held how, where, and how fast that reads."""
    model = bench.model
    held = f", weights in {model.quantization}" if model.quantization else ""
    return (
        f"{model.num_parameters / 1e6:,.1f} M parameters on {model.device} in "
        f"{str(model.dtype).removeprefix('torch.')}{held}; a copy moves "
        f"{bench.bandwidth / 1e9:,.1f} GB/s"
    )


def bench_table(rows: Sequence[Row]) -> Table:
    """One row a measurement; times are medians."""
    table = Table(box=None, pad_edge=False, header_style="cyan")
    for heading in ("", "canvas", "prefix", "passes", "ms", "p10", "p90", "floor ms", "tokens/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        rate = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""
        table.add_row(
            row.what,
            str(row.canvas or ""),
            f"{row.prefix:,}",
            str(row.passes or ""),
            *(f"{value:.2f}" for value in (row.ms, row.ms_low, row.ms_high, row.floor_ms)),
            rate,
        )
    return table
