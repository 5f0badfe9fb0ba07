"""How long the attention of a canvas takes, of what the memory allows.

    python kernels/benchmarks/bench_canvas_attention.py [--prefixes 4096] [--csv results.csv]

By default at both kinds of layer of the 26B: "sliding" shows the last 1,023 keys of the prefix in 8
heads of 256 channels, "full" all of it in 2 heads of 512; 16 query heads. The kernel is compared
with its twin first, which lays prefix and canvas side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from common import (
    DTYPES,
    Row,
    device,
    measure,
    parser,
    refuse_if_red,
    row_of,
    run,
    show,
)
from torch import Tensor

from dgemma_kernels import canvas_attention
from dgemma_kernels.backend import Backend
from dgemma_kernels.canvas_attention.reference import canvas_attention_reference


class Layer(NamedTuple):
    """heads: of the queries; kv_heads; size: channels of one; window: of the prefix, or None."""

    heads: int
    kv_heads: int
    size: int
    window: int | None


LAYERS = {"sliding": Layer(16, 8, 256, 1023), "full": Layer(16, 2, 512, None)}
_TINY = {"sliding": Layer(4, 2, 16, 40), "full": Layer(4, 1, 32, None)}


class Arguments(NamedTuple):
    """Of `canvas_attention`, in its order."""

    query: Tensor
    prefix_key: Tensor
    prefix_value: Tensor
    key: Tensor
    value: Tensor


def random_arguments(
    layer: Layer, tokens: int, prefix: int, dtype: torch.dtype, seed: int
) -> Arguments:
    """Queries of the size that the model's norm gives them, so that some keys stand out."""
    generator = torch.Generator(device()).manual_seed(seed)

    def heads(count: int, length: int, size: float) -> Tensor:
        shape = (1, count, length, layer.size)
        return (torch.randn(shape, generator=generator, device=device()) * size).to(dtype)

    return Arguments(
        heads(layer.heads, tokens, layer.size**-0.5),
        *(heads(layer.kv_heads, prefix, 1.0) for _ in range(2)),
        *(heads(layer.kv_heads, tokens, 1.0) for _ in range(2)),
    )


def measure_point(
    name: str, layer: Layer, tokens: int, prefix: int, bandwidth: float, o: argparse.Namespace
) -> list[Row]:
    """All forms for one kind of layer, one canvas, one prefix."""
    dtype = DTYPES[o.dtype]
    sets = [random_arguments(layer, tokens, prefix, dtype, o.seed + n) for n in range(o.sets)]
    plain = canvas_attention_reference(*(part.float() for part in sets[0]), window=layer.window)
    run = partial(canvas_attention, *sets[0], window=layer.window)
    refuse_if_red(f"canvas_attention {name}", plain.to(dtype), run)
    forms: dict[str, Callable[..., Tensor]] = {
        "kernel": canvas_attention,
        "twin": canvas_attention_reference,
    }
    if not o.without_compile:
        forms["compiled"] = torch.compile(canvas_attention_reference)
    seen = min(prefix, layer.window or prefix) + tokens
    element = sets[0].query.element_size()
    moved = 2 * sets[0].query.nbytes + 2 * layer.kv_heads * seen * layer.size * element
    rows = []
    for form, compute in forms.items():
        backend = Backend.TRITON if form == "kernel" else Backend.REFERENCE
        runs = [partial(compute, *given, window=layer.window) for given in sets]
        milliseconds = measure(runs, backend, o.repeats)
        shape = f"{name} prefix {prefix}"
        rows.append(
            row_of(
                "canvas_attention",
                form,
                "plain",
                o.dtype,
                tokens,
                shape,
                milliseconds,
                moved,
                bandwidth,
            )
        )
        show(rows[-1])
    return rows


@torch.no_grad()
def main() -> None:
    """Measure what the arguments say."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--prefixes", type=int, nargs="+", default=[1024, 4096, 16384])
    arguments.add_argument("--tiny", action="store_true", help="a small layer of either kind")
    arguments.set_defaults(weights=["plain"])
    options = arguments.parse_args()
    if options.weights != ["plain"]:
        arguments.error("attention has no weights")
    run(
        options,
        lambda bandwidth: (
            measure_point(name, layer, tokens, prefix, bandwidth, options)
            for name, layer in (_TINY if options.tiny else LAYERS).items()
            for prefix in options.prefixes
            for tokens in options.tokens
        ),
    )


if __name__ == "__main__":
    main()
