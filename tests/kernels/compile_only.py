"""Kernels compiled for GPUs that are not there: what they need of shared memory and registers.

    compile_kernel(job, arch=90) -> Compiled(shared_bytes, registers, spills)

Triton compiles for any architecture with the ptxas in its own wheel. It cannot in a process where
TRITON_INTERPRET was set at its import, so a process of its own does it, by this file's `main`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ARCHS = (80, 89, 90, 120)
# What one block may have, in bytes: CUDA programming guide, "Technical Specifications per Compute
# Capability".
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}


@dataclass(frozen=True)
class Job:
    """One kernel with all that is fixed when it is compiled.

    Attributes:
        kernel: "module:name".
        signature: Triton's type of each argument that is no constexpr, such as "*bf16" or "i32".
        constexprs: the others. A dtype is written as "tl.bfloat16".
        divisible: names of integers that are multiples of 16; pointers are so always.
    """

    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    label: str = field(default="")


@dataclass(frozen=True)
class Compiled:
    """What a kernel needs on one architecture."""

    shared_bytes: int
    registers: int
    spills: int  # bytes
    matrix_instruction: str  # "wgmma", "mma.sync" or "none"


def compile_kernel(job: Job, arch: int) -> Compiled:
    """One kernel for one architecture."""
    return compile_kernels([(job, arch)])[0]


def compile_kernels(jobs: Sequence[tuple[Job, int]]) -> list[Compiled]:
    """Several in one process, which saves its start.

    Raises:
        RuntimeError: with the compiler's words, if one does not compile.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    request = json.dumps([[asdict(job), arch] for job, arch in jobs])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        input=request,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Compiled(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _compile(job: Job, arch: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = job.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    constexprs = {key: _constant(value) for key, value in job.constexprs.items()}
    position = {argument: (index,) for index, argument in enumerate(kernel.arg_names)}
    assert set(position) == {*job.signature, *constexprs}, (
        f"{job.kernel}: {set(position) ^ {*job.signature, *constexprs}}"
    )
    source = ASTSource(
        fn=kernel,
        signature={
            argument: job.signature.get(argument, "constexpr") for argument in kernel.arg_names
        },
        constexprs={position[key]: value for key, value in constexprs.items()},
        attrs={
            position[key]: [["tt.divisibility", 16]]
            for key, kind in job.signature.items()
            if kind.startswith("*") or key in job.divisible
        },
    )
    # As in `Blocks.options`: the default of fp_fusion depends on Triton's version, and it warns.
    options = {
        "num_warps": job.num_warps,
        "num_stages": job.num_stages,
        "enable_fp_fusion": True,
    }
    with contextlib.redirect_stdout(io.StringIO()) as said:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers = re.search(r"Used (\d+) registers", said.getvalue())
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said.getvalue())
    assert registers, said.getvalue()
    assert spills, said.getvalue()
    ptx = compiled.asm["ptx"]
    return Compiled(
        compiled.metadata.shared,
        int(registers.group(1)),
        int(spills.group(1)) + int(spills.group(2)),
        next((name for name in ("wgmma", "mma.sync") if name in ptx), "none"),
    )


def _constant(value: Any) -> Any:
    import triton.language as tl

    if isinstance(value, str) and value.startswith("tl."):
        return getattr(tl, value.removeprefix("tl."))
    return value


def main() -> None:
    """Read [[job, arch], ...] from the standard input; write what each needs as one line."""
    from triton import knobs

    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    results = []
    for fields, arch in json.load(sys.stdin):
        try:
            results.append(asdict(_compile(Job(**fields), arch)))
        except Exception as error:
            label = fields["label"] or fields["kernel"]
            raise SystemExit(f"{label} for sm_{arch}: {type(error).__name__}: {error}") from error
    print(json.dumps(results))


if __name__ == "__main__":
    main()
