"""How long a product with one weight takes, of what the memory allows.

    python kernels/benchmarks/bench_linear.py [--shapes 4096x2816 2816x8192] [--csv results.csv]

By default the dense weights of a layer of the 26B, rows x columns. The kernel is compared with its
twin first. "plain" is measured by the kernel too, which the engine does not use for it.
"""

from __future__ import annotations

import argparse
from functools import partial

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

from dgemma_kernels.backend import Backend, attempt
from dgemma_kernels.linear import linear_reference
from dgemma_kernels.linear.kernel import linear_triton
from dgemma_kernels.testing import Weight, random_weight, stored
from dgemma_kernels.weights import WeightFormat

# Queries, keys and values of a sliding layer, its output, gate and up of the dense network, down.
_SHAPES = ["8192x2816", "2816x4096", "4224x2816", "2816x2112"]


def kernel(hidden: Tensor, weight: Weight) -> Tensor:
    """The kernel for any weight, plain ones too; it raises where it does not fit."""
    run = partial(linear_triton, hidden, weight)
    return attempt("linear", None, run, partial(linear_reference, hidden, weight))


def measure_point(
    tokens: int, shape: str, weights: str, bandwidth: float, o: argparse.Namespace
) -> list[Row]:
    """All forms at one number of tokens, one shape and one form of weights."""
    rows_of_weight, columns = (int(size) for size in shape.split("x"))
    generator = torch.Generator(device()).manual_seed(o.seed)
    dtype = DTYPES[o.dtype]
    hidden = torch.randn(tokens, columns, generator=generator, device=device()).to(dtype)
    format = None if weights == "plain" else WeightFormat(weights)
    sets = [
        stored(random_weight((rows_of_weight, columns), dtype, generator, device()), format)
        for _ in range(o.sets)
    ]
    plain = sets[0] if isinstance(sets[0], Tensor) else sets[0].dequantize(torch.float32)
    expected = linear_reference(hidden.float(), plain.float()).to(dtype)
    refuse_if_red(f"linear {weights}", expected, partial(kernel, hidden, sets[0]))
    forms = {"kernel": kernel, "twin": linear_reference}
    if not o.without_compile:
        forms["compiled"] = torch.compile(linear_reference)
    moved = sets[0].nbytes + hidden.nbytes + expected.nbytes
    rows = []
    for form, compute in forms.items():
        backend = Backend.TRITON if form == "kernel" else Backend.REFERENCE
        milliseconds = measure(
            [partial(compute, hidden, weight) for weight in sets], backend, o.repeats
        )
        rows.append(
            row_of("linear", form, weights, o.dtype, tokens, shape, milliseconds, moved, bandwidth)
        )
        show(rows[-1])
    return rows


@torch.no_grad()
def main() -> None:
    """Measure what the arguments say."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--shapes", nargs="+", default=_SHAPES, help="rows x columns")
    arguments.set_defaults(sets=16)
    options = arguments.parse_args()
    run(
        options,
        lambda bandwidth: (
            measure_point(tokens, shape, weights, bandwidth, options)
            for shape in options.shapes
            for weights in options.weights
            for tokens in options.tokens
        ),
    )


if __name__ == "__main__":
    main()
