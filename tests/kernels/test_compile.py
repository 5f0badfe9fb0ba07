"""Kernels compile for the GPUs that we name, and fit into them, though none is here.

For the sizes of the 26B. The first configuration of each kernel is the one that runs where it fits:
it must not spill on any of these, and must fit into the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from dgemma_kernels.weight_tile import PLAIN, blocks_for
from dgemma_kernels.weights import WeightFormat

from .compile_only import ARCHS, SHARED_LIMIT, Compiled, Job, compile_kernels

_MODULE = "dgemma_kernels.moe_experts.kernel"
_HIDDEN, _INNER, _EXPERTS, _TOP_K = 2816, 704, 128, 8
_FORMATS = [PLAIN, *(format.value for format in WeightFormat)]
_DATA = {
    PLAIN: ("*bf16", "*bf16", "*bf16"),
    "int8": ("*u8", "*fp32", "*fp32"),
    "fp8": ("*fp8e4nv", "*fp32", "*fp32"),
    "fp8_block": ("*fp8e4nv", "*fp32", "*fp32"),
    "int4": ("*u8", "*bf16", "*bf16"),
    "nvfp4": ("*u8", "*u8", "*fp32"),
}


def weight_signature(format: str, arch: int) -> dict[str, str]:
    """sm_80 has no instruction for e4m3 and gets it as bytes."""
    data, *scales = _DATA[format]
    if data == "*fp8e4nv" and arch < 89:
        data = "*u8"
    return dict(zip(("data", "group_scale", "row_scale"), (data, *scales), strict=True))


def run_of(format: str, columns: int) -> int:
    """`split` of a prepared weight with so many columns; 0 where there is none."""
    if format not in ("int4", "nvfp4"):
        return 0
    return next(size for size in (128, 64, 32) if columns % size == 0)


def stride_of(format: str, columns: int) -> int:
    return columns // 2 if run_of(format, columns) else columns


def expert_jobs(format: str, rows: int, arch: int) -> Iterator[Job]:
    """The gate-up and the down kernel, with the configuration that is tried first."""
    order = dict.fromkeys(("row_of_slot", "expert_of_block", "num_blocks"), "*i32")
    common = {"D": _HIDDEN, "F": _INNER, "FORMAT": format, "DTYPE": "tl.bfloat16", "ROWS": rows}
    blocks = blocks_for(format, run_of(format, _HIDDEN), torch.bfloat16, rows, 2)[0]
    yield Job(
        f"{_MODULE}:_gate_up_kernel",
        {
            "hidden": "*bf16",
            **weight_signature(format, arch),
            "activated": "*bf16",
            **order,
            "stride_hidden": "i32",
        },
        {
            **common,
            "TOP_K": _TOP_K,
            "STRIDE": stride_of(format, _HIDDEN),
            "COLUMNS": blocks.columns,
            "DEPTH": blocks.depth,
        },
        blocks.num_warps,
        blocks.num_stages,
        ("stride_hidden",),
        f"gate_up {format} {rows} rows",
    )
    blocks = blocks_for(format, run_of(format, _INNER), torch.bfloat16, rows, 1)[0]
    yield Job(
        f"{_MODULE}:_down_kernel",
        {
            "activated": "*bf16",
            **weight_signature(format, arch),
            "expert_weight": "*fp32",
            "expert_output": "*bf16",
            **order,
        },
        {
            **common,
            "STRIDE": stride_of(format, _INNER),
            "COLUMNS": blocks.columns,
            "DEPTH": blocks.depth,
        },
        blocks.num_warps,
        blocks.num_stages,
        label=f"down {format} {rows} rows",
    )


def small_jobs() -> Iterator[Job]:
    """The kernels around the products."""
    yield Job(
        f"{_MODULE}:_route_kernel",
        {
            "scores": "*bf16",
            "per_expert_scale": "*bf16",
            "index": "*i64",
            "weight": "*fp32",
            "num_tokens": "i32",
        },
        {"TOP_K": 8, "TOP_K_PADDED": 8, "E": _EXPERTS, "E_PADDED": 128, "ROWS": 4},
        num_stages=1,
        label="route",
    )
    order = dict.fromkeys(("row_of_slot", "expert_of_block", "num_blocks"), "*i32")
    yield Job(
        f"{_MODULE}:_sort_kernel",
        {"expert_index": "*i64", **order, "count": "i32"},
        {"E": _EXPERTS, "E_PADDED": 128, "ROWS": 16, "CHUNK": 1024},
        num_stages=1,
        label="sort",
    )
    yield Job(
        f"{_MODULE}:_combine_kernel",
        {"expert_output": "*bf16", "output": "*bf16"},
        {"TOP_K": _TOP_K, "D": _HIDDEN, "COLUMNS": 512, "DTYPE": "tl.bfloat16"},
        num_stages=1,
        label="combine",
    )
    yield Job(
        "dgemma_kernels.linear.kernel:_sum_kernel",
        {"sums": "*fp32", "output": "*bf16", "count": "i32"},
        {"SPLITS": 4, "DTYPE": "tl.bfloat16", "COLUMNS": 1024},
        num_stages=1,
        label="sum",
    )
    yield Job(
        "dgemma_kernels.gated_mlp.kernel:_gated_sum_kernel",
        {"gate": "*fp32", "up": "*fp32", "activated": "*bf16", "count": "i32"},
        {"GATE_SPLITS": 4, "UP_SPLITS": 4, "DTYPE": "tl.bfloat16", "COLUMNS": 1024},
        num_stages=1,
        label="gated sum",
    )


def check(jobs: list[tuple[Job, int]]) -> list[Compiled]:
    """All fit and none spills; the message names every one that does not."""
    results = compile_kernels(jobs)
    bad = [
        f"{job.label} sm_{arch}: {result}"
        for (job, arch), result in zip(jobs, results, strict=True)
        if result.spills or result.shared_bytes > SHARED_LIMIT[arch]
    ]
    assert not bad, "\n".join(bad)
    return results


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_experts_compile_for_every_architecture() -> None:
    """One form an architecture; on sm_90 the products run on its own matrix instruction."""
    forms = dict(zip(ARCHS, ("int8", "int4", "fp8", "nvfp4"), strict=True))
    jobs = [([*expert_jobs(format, 16, arch)][1], arch) for arch, format in forms.items()]
    instructions = [result.matrix_instruction for result in check(jobs)]
    assert instructions == ["mma.sync", "mma.sync", "wgmma", "mma.sync"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_experts_compile_in_every_form(rows: int) -> None:
    """Both products, all forms, all architectures."""
    check(
        [
            (job, arch)
            for format in _FORMATS
            for arch in ARCHS
            for job in expert_jobs(format, rows, arch)
        ]
    )


@pytest.mark.slow
def test_small_kernels_compile_for_every_architecture() -> None:
    """Routing, sorting, summing."""
    check([(job, arch) for job in small_jobs() for arch in ARCHS])


def linear_jobs(format: str, rows: int, arch: int) -> Iterator[Job]:
    """A product whose K is a multiple of a step, and one, split, whose K is not."""
    for columns, splits in ((_HIDDEN, 1), (2112, 4)):
        split = run_of(format, columns)
        blocks = blocks_for(format, split, torch.bfloat16, rows, 1)[0]
        output = "bf16" if splits == 1 else "fp32"
        yield Job(
            "dgemma_kernels.linear.kernel:_linear_kernel",
            {
                "hidden": "*bf16",
                **weight_signature(format, arch),
                "sums": f"*{output}",
                "num_tokens": "i32",
                "stride_hidden": "i32",
            },
            {
                "N": _HIDDEN,
                "K": columns,
                "STRIDE": stride_of(format, columns),
                "FORMAT": format,
                "DTYPE": "tl.bfloat16",
                "OUTPUT": "tl.bfloat16" if splits == 1 else "tl.float32",
                "SPLITS": splits,
                "ROWS": rows,
                "COLUMNS": blocks.columns,
                "DEPTH": blocks.depth,
            },
            blocks.num_warps,
            blocks.num_stages,
            ("stride_hidden",),
            f"linear {format} {rows} rows, {splits} splits",
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rows", [16, 64])
def test_linear_compiles_in_every_form(rows: int) -> None:
    """All forms but the plain one, which is left to torch; all architectures."""
    check(
        [
            (job, arch)
            for format in _FORMATS[1:]
            for arch in ARCHS
            for job in linear_jobs(format, rows, arch)
        ]
    )
