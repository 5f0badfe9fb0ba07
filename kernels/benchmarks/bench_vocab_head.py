"""How long the vocabulary head takes, of what the memory allows.

    python kernels/benchmarks/bench_vocab_head.py [--weights plain int8] [--csv results.csv]

By default at the sizes of the 26B, with all that a denoising step asks for: statistics, one draw a
row, and masses for the next pass. The kernel is compared with its twin first, in float32 logits:
where both round them to bfloat16, one rounds up what the other rounds down.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

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

from dgemma_kernels import vocab_head
from dgemma_kernels.backend import Backend
from dgemma_kernels.testing import Weight, random_weight, stored
from dgemma_kernels.vocab_head.reference import HeadOutput, vocab_head_reference
from dgemma_kernels.weights import WeightFormat

_LOGIT_SIZE = 5.0  # the deviation of random logits: some tokens then stand out, as in text
_PARITY_TOKENS = 64  # float32 logits of more rows than these fill the memory

Head = Callable[..., HeadOutput]


def refuse_if_any_is_red(name: str, hidden: Tensor, weight: Weight, given: dict[str, Any]) -> None:
    """Statistics, draws and probabilities against the twin's."""
    part = hidden[:_PARITY_TOKENS]
    exact = {**given, "draws": given["draws"][:_PARITY_TOKENS], "round_logits": False}
    expected = vocab_head_reference(part, weight, **exact)
    parts: tuple[Callable[[HeadOutput], Tensor], ...] = (
        lambda head: head.maximum,
        lambda head: head.log_normalizer,
        lambda head: head.entropy,
        _probabilities,
    )
    for of in parts:
        refuse_if_red(name, of(expected), partial(_part_of, of, part, weight, exact))


def _part_of(
    of: Callable[[HeadOutput], Tensor], hidden: Tensor, weight: Weight, given: dict[str, Any]
) -> Tensor:
    return of(vocab_head(hidden, weight, **given))


def _probabilities(head: HeadOutput) -> Tensor:
    assert head.masses is not None
    assert head.mass_scale is not None
    return (head.masses.float() * head.mass_scale[:, None]).to(head.masses.dtype)


def measure_point(tokens: int, weights: str, bandwidth: float, o: argparse.Namespace) -> list[Row]:
    """All forms at one number of rows and one form of weights."""
    generator = torch.Generator(device()).manual_seed(o.seed)
    dtype = DTYPES[o.dtype]
    hidden = torch.randn((tokens, o.size), generator=generator, device=device())
    hidden = (hidden * _LOGIT_SIZE).to(dtype)
    format = None if weights == "plain" else WeightFormat(weights)
    shape = (o.vocab, o.size)
    sets = [stored(random_weight(shape, dtype, generator, device()), format) for _ in range(o.sets)]
    draws = torch.rand((tokens, 2), generator=generator, device=device())
    degree = torch.full((1,), 0.6, device=device())
    given = {"softcap": 30.0, "temperature": degree, "draws": draws, "keep_masses": True}
    refuse_if_any_is_red(f"vocab_head {weights}", hidden, sets[0], given)
    forms: dict[str, Head] = {"kernel": vocab_head, "twin": vocab_head_reference}
    if not o.without_compile:
        forms["compiled"] = torch.compile(vocab_head_reference)
    moved = sets[0].nbytes + hidden.nbytes + tokens * o.vocab * hidden.element_size()
    rows = []
    for form, compute in forms.items():
        backend = Backend.TRITON if form == "kernel" else Backend.REFERENCE
        runs = [partial(_entropy_of, compute, hidden, weight, given) for weight in sets]
        milliseconds = measure(runs, backend, o.repeats)
        size = f"{o.vocab}x{o.size}"
        rows.append(
            row_of(
                "vocab_head", form, weights, o.dtype, tokens, size, milliseconds, moved, bandwidth
            )
        )
        show(rows[-1])
    return rows


def _entropy_of(compute: Head, hidden: Tensor, weight: Weight, given: dict[str, Any]) -> Tensor:
    return compute(hidden, weight, **given).entropy


@torch.no_grad()
def main() -> None:
    """Measure what the arguments say."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--vocab", type=int, default=262144)
    arguments.add_argument("--size", type=int, default=2816, help="channels")
    arguments.set_defaults(weights=["plain", "int8", "fp8"])
    options = arguments.parse_args()
    run(
        options,
        lambda bandwidth: (
            measure_point(tokens, weights, bandwidth, options)
            for weights in options.weights
            for tokens in options.tokens
        ),
    )


if __name__ == "__main__":
    main()
