"""Head, attention, norms and sampler for GPUs that are not there: nothing spills, all fits."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from .compile_only import ARCHS, SHARED_LIMIT, Compiled, Job, compile_kernels
from .head_jobs import attention_jobs, head_jobs, small_jobs, soft_embedding_jobs


def kernels(arch: int) -> list[list[Job]]:
    """Canvases of 256 and 64 slots; each kernel's blocks from the best to the smallest."""
    return [
        head_jobs(256, arch),
        head_jobs(64, arch),
        head_jobs(32, arch),
        head_jobs(64, arch, "*i8"),
        *([head_jobs(64, arch, "*fp8e4nv")] if arch >= 89 else []),
        attention_jobs(256, num_tokens=64, num_splits=2),
        attention_jobs(256, num_tokens=256, num_splits=1),
        attention_jobs(512, num_tokens=64, num_splits=8),
        attention_jobs(512, num_tokens=256, num_splits=1),
        attention_jobs(256, num_tokens=16, num_splits=4, causal=True),
        attention_jobs(512, num_tokens=64, num_splits=8, causal=True),
        soft_embedding_jobs(256),
        soft_embedding_jobs(64),
        soft_embedding_jobs(64, from_logits=True),
        *small_jobs(),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arch", ARCHS)
def test_what_a_gpu_takes_fits_and_spills_nothing(arch: int) -> None:
    """Of each kernel the first blocks that the shared memory holds; some blocks always do."""
    left = {index: jobs for index, jobs in enumerate(kernels(arch))}
    taken: dict[int, Compiled] = {}
    while left:
        found = compile_kernels([(jobs[0], arch) for jobs in left.values()])
        after = {}
        for (index, jobs), result in zip(left.items(), found, strict=True):
            if result.shared_bytes <= SHARED_LIMIT[arch]:
                assert result.spills == 0, f"{jobs[0].label or jobs[0].kernel}: {result}"
                taken[index] = result
            else:
                assert jobs[1:], f"{jobs[0].label or jobs[0].kernel} has no smaller blocks"
                after[index] = jobs[1:]
        left = after
    assert len(taken) == len(kernels(arch))
