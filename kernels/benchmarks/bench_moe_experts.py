"""How long the experts of one layer take, of what the memory allows.

    python kernels/benchmarks/bench_moe_experts.py [--weights fp8 int4] [--csv results.csv]

By default at the sizes of the 26B. Tokens are routed at random, which touches as many experts as
can be; real text touches fewer: --touched. The kernel is compared with its twin first.
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

from dgemma_kernels import moe_experts
from dgemma_kernels.backend import Backend
from dgemma_kernels.moe_experts import moe_experts_reference
from dgemma_kernels.testing import ExpertArguments, expert_arguments
from dgemma_kernels.weights import WeightFormat


def expected_of(arguments: ExpertArguments) -> Tensor:
    """The twin's result in float32, rounded once."""
    full = [w.float() if isinstance(w, Tensor) else w for w in arguments[3:]]
    hidden, index, share = arguments[:3]
    return moe_experts_reference(hidden.float(), index, share, *full).to(hidden.dtype)


def bytes_moved(arguments: ExpertArguments) -> int:
    """The weights of the experts that are touched, activations in and out."""
    experts = int(arguments.gate_up_proj.shape[0])
    touched = int(arguments.expert_index.unique().numel())
    weights = sum(weight.nbytes for weight in arguments[3:])
    return weights * touched // experts + 2 * arguments.hidden.nbytes


def measure_point(tokens: int, weights: str, bandwidth: float, o: argparse.Namespace) -> list[Row]:
    """All forms at one number of tokens and one form of weights."""
    sets = [
        expert_arguments(
            tokens,
            size=o.size,
            inner_size=o.inner_size,
            experts=o.experts,
            top_k=o.top_k,
            dtype=DTYPES[o.dtype],
            format=None if weights == "plain" else WeightFormat(weights),
            touched=o.touched,
            device=device(),
            seed=o.seed + number,
        )
        for number in range(o.sets)
    ]
    refuse_if_red(f"moe_experts {weights}", expected_of(sets[0]), partial(moe_experts, *sets[0]))
    forms = {"kernel": moe_experts, "twin": moe_experts_reference}
    if not o.without_compile:
        forms["compiled"] = torch.compile(moe_experts_reference)
    shape = f"E{o.experts} D{o.size} F{o.inner_size} A{o.top_k}"
    rows = []
    for form, compute in forms.items():
        backend = Backend.TRITON if form == "kernel" else Backend.REFERENCE
        runs = [partial(compute, *arguments) for arguments in sets]
        milliseconds = measure(runs, backend, o.repeats)
        moved = sum(bytes_moved(arguments) for arguments in sets) // len(sets)
        rows.append(
            row_of(
                "moe_experts", form, weights, o.dtype, tokens, shape, milliseconds, moved, bandwidth
            )
        )
        show(rows[-1])
    return rows


@torch.no_grad()
def main() -> None:
    """Measure what the arguments say."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--size", type=int, default=2816, help="D")
    arguments.add_argument("--inner-size", type=int, default=704, help="F")
    arguments.add_argument("--experts", type=int, default=128, help="E")
    arguments.add_argument("--top-k", type=int, default=8, help="A")
    arguments.add_argument("--touched", type=int, help="route to so many experts only")
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
