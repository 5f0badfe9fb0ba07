"""How long the soft embedding takes, of what the memory allows.

    python kernels/benchmarks/bench_soft_embedding.py [--tokens 64 256] [--csv results.csv]

By default at the sizes of the 26B. The kernel starts from the masses that the head has kept, as in
a denoising step, and is compared with its twin first. The twin and its compiled form are timed from
float32 logits, which is what a plain engine has; "kernel, logits" starts from these too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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

from dgemma_kernels import soft_embedding
from dgemma_kernels.backend import Backend
from dgemma_kernels.soft_embedding.reference import soft_embedding_reference

_LOGIT_SIZE = 5.0  # the deviation of random logits: some tokens then stand out, as in text


def measure_point(tokens: int, bandwidth: float, o: argparse.Namespace) -> list[Row]:
    """All forms at one number of rows."""
    generator = torch.Generator(device()).manual_seed(o.seed)
    dtype = DTYPES[o.dtype]
    logits = torch.randn((tokens, o.vocab), generator=generator, device=device()) * _LOGIT_SIZE
    masses = logits.exp().to(dtype)
    scale = 1.0 / masses.float().sum(dim=-1)
    tables = [
        torch.randn((o.vocab, o.size), generator=generator, device=device()).to(dtype)
        for _ in range(o.sets)
    ]
    expected = soft_embedding_reference(masses, scale, tables[0])
    refuse_if_red("soft_embedding", expected, partial(soft_embedding, masses, scale, tables[0]))
    forms: dict[str, tuple[Callable[..., Tensor], Tensor, Tensor | None]] = {
        "kernel": (soft_embedding, masses, scale),
        "kernel, logits": (soft_embedding, logits, None),
        "twin": (soft_embedding_reference, logits, None),
    }
    if not o.without_compile:
        forms["compiled"] = (torch.compile(soft_embedding_reference), logits, None)
    rows = []
    for form, (compute, given, given_scale) in forms.items():
        backend = Backend.TRITON if form.startswith("kernel") else Backend.REFERENCE
        runs = [partial(compute, given, given_scale, table) for table in tables]
        milliseconds = measure(runs, backend, o.repeats)
        moved = tables[0].nbytes + given.nbytes + expected.nbytes
        shape = f"{o.vocab}x{o.size}"
        rows.append(
            row_of(
                "soft_embedding",
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
    arguments.add_argument("--vocab", type=int, default=262144)
    arguments.add_argument("--size", type=int, default=2816, help="channels")
    arguments.set_defaults(weights=["plain"])
    options = arguments.parse_args()
    if options.weights != ["plain"]:
        arguments.error("the table is timed plain only")
    run(
        options,
        lambda bandwidth: (measure_point(tokens, bandwidth, options) for tokens in options.tokens),
    )


if __name__ == "__main__":
    main()
