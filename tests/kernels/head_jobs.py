"""The kernels of head, attention, norms and sampler as they are launched for the 26B model.

Lists of jobs for `compile_only`: each list is one kernel at one size, its blocks from the best to
the smallest, of which a GPU takes the first that it can hold.
"""

from __future__ import annotations

import torch

from dgemma_kernels.canvas_attention.kernel import attention_configs
from dgemma_kernels.soft_embedding.kernel import soft_embedding_configs
from dgemma_kernels.triton_support import Blocks
from dgemma_kernels.vocab_head.kernel import head_configs

from .compile_only import Job

HIDDEN, VOCAB = 2816, 262144
PACKAGE = "dgemma_kernels"
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def head_jobs(num_rows: int, arch: int, weight: str = "*bf16") -> list[Job]:
    """With everything that a denoising step asks for: rules, draws and masses, and no logits."""
    signature = {
        **dict.fromkeys(("hidden", "masses"), "*bf16"),
        "weight": weight,
        **dict.fromkeys(("rows", "clamped_ids", "holes"), "*i64"),
        **dict.fromkeys(("banned", "first_allowed", "is_first"), "*u8"),
        **dict.fromkeys(("temperature", "draws", "tile_maximum", "tile_sum"), "*fp32"),
        **dict.fromkeys(("tile_moment", "tile_mass"), "*fp32"),
        **dict.fromkeys(("tile_argmax", "tile_sample"), "*i32"),
        **dict.fromkeys(("num_rows", "vocab_size", "num_tiles"), "i32"),
        **dict.fromkeys(("hidden_stride", "weight_stride"), "i32"),
    }
    fixed = {"logits": None, "D": HIDDEN, "SOFTCAP": 30.0, "ROUND": True}
    if weight == "*bf16":
        fixed["weight_scale"] = None
    else:
        signature["weight_scale"] = "*fp32"
    return [
        Job(
            f"{PACKAGE}.vocab_head.kernel:_head_tile_kernel",
            signature,
            {**fixed, "BLOCK_T": blocks.rows, "BLOCK_D": blocks.depth},
            **_options(blocks),
            divisible=("hidden_stride", "weight_stride", "vocab_size"),
            label=f"vocab_head {num_rows} rows {weight} {blocks}",
        )
        for blocks in head_configs(num_rows, divmod(arch, 10))
    ]


def head_merge_job() -> list[Job]:
    """2,048 tiles a row."""
    names = ("tile_maximum", "tile_sum", "tile_moment", "tile_mass", "draws", "maximum")
    return [
        Job(
            f"{PACKAGE}.vocab_head.kernel:_head_merge_kernel",
            {
                **dict.fromkeys((*names, "log_normalizer", "entropy", "mass_scale"), "*fp32"),
                **dict.fromkeys(("tile_argmax", "tile_sample"), "*i32"),
                **dict.fromkeys(("argmax", "sample"), "*i64"),
                "num_tiles": "i32",
            },
            {"BLOCK": 2048},
            num_warps=4,
        )
    ]


def attention_jobs(
    size: int, num_tokens: int, num_splits: int, *, causal: bool = False
) -> list[Job]:
    """Sliding layers have 8 key heads of 256 channels, full ones 2 of 512; 16 query heads both."""
    kv_heads = 8 if size == 256 else 2
    strides = [
        f"{name}_{axis}_stride"
        for name in ("query", "prefix_key", "prefix_value", "key", "value")
        for axis in ("batch", "head", "row")
    ]
    names = ("query", "prefix_key", "prefix_value", "key", "value")
    signature = {
        **dict.fromkeys(names, "*bf16"),
        **dict.fromkeys(("prefix_length", "canvas_length"), "*i32"),
        "output": "*fp32" if num_splits > 1 else "*bf16",
        **dict.fromkeys(("num_queries", "prefix_capacity", "canvas_capacity", "window"), "i32"),
        **dict.fromkeys(strides, "i32"),
    }
    fixed = {
        "G": kv_heads,
        "GROUP": 16 // kv_heads,
        "K": size,
        "NUM_SPLITS": num_splits,
        "HAS_WINDOW": size == 256,
        "CAUSAL": causal,
    }
    if num_splits > 1:
        signature["normalizer"] = "*fp32"
    else:
        fixed["normalizer"] = None
    return [
        Job(
            f"{PACKAGE}.canvas_attention.kernel:_canvas_attention_kernel",
            signature,
            {**fixed, "BLOCK_R": blocks.rows, "BLOCK_L": blocks.columns},
            **_options(blocks),
            divisible=tuple(strides),
            label=f"canvas_attention {size} {num_tokens} tokens {blocks}",
        )
        for blocks in attention_configs(size, num_tokens * 16 // kv_heads)
    ]


def soft_embedding_jobs(num_rows: int, *, from_logits: bool = False) -> list[Job]:
    """Of masses, or of float32 logits."""
    signature = {
        "masses": "*fp32" if from_logits else "*bf16",
        "table": "*bf16",
        "parts": "*fp32",
        **dict.fromkeys(("num_rows", "vocab_size", "hidden_size"), "i32"),
        **dict.fromkeys(("mass_stride", "table_stride", "split_size"), "i32"),
    }
    fixed = {}
    if from_logits:
        signature["log_normalizer"] = "*fp32"
    else:
        fixed["log_normalizer"] = None
    return [
        Job(
            f"{PACKAGE}.soft_embedding.kernel:_soft_embedding_kernel",
            signature,
            {
                **fixed,
                "BLOCK_T": blocks.rows,
                "BLOCK_D": blocks.columns,
                "BLOCK_V": blocks.depth,
            },
            **_options(blocks),
            divisible=("vocab_size", "hidden_size", "mass_stride", "table_stride", "split_size"),
            label=f"soft_embedding {num_rows} rows {blocks}",
        )
        for blocks in soft_embedding_configs(num_rows)
    ]


def small_jobs() -> list[list[Job]]:
    """Norms, rotation, sums of splits, the sampler's tail: one block size each."""
    row = {"D": HIDDEN, "BLOCK": 4096}
    return [
        head_merge_job(),
        [
            Job(
                f"{PACKAGE}.canvas_attention.kernel:_merge_splits_kernel",
                {"parts": "*fp32", "normalizers": "*fp32", "output": "*bf16", "num_rows": "i32"},
                {"NUM_SPLITS": 32, "K": 512},
            )
        ],
        [
            Job(
                f"{PACKAGE}.soft_embedding.kernel:_add_splits_kernel",
                {
                    "parts": "*fp32",
                    "mass_scale": "*fp32",
                    "output": "*bf16",
                    "embedding_scale": "fp32",
                    "num_rows": "i32",
                    "hidden_size": "i32",
                },
                {"NUM_SPLITS": 24, "BLOCK_D": 1024},
            )
        ],
        [
            Job(
                f"{PACKAGE}.rms_norm.kernel:_rms_norm_kernel",
                {
                    **dict.fromkeys(("hidden", "weight", "output"), "*bf16"),
                    "stride": "i32",
                    "eps": "fp32",
                },
                row,
                num_warps=8,
            )
        ],
        [
            Job(
                f"{PACKAGE}.residual_norm.kernel:_residual_norm_kernel",
                {
                    **dict.fromkeys(("residual", "hidden", "weight", "scalar"), "*bf16"),
                    **dict.fromkeys(("weight_1", "weight_2", "total"), "*bf16"),
                    **dict.fromkeys(("output_1", "output_2", "output_3"), "*bf16"),
                    "residual_stride": "i32",
                    "hidden_stride": "i32",
                    "eps": "fp32",
                },
                {**row, "weight_3": None},
                num_warps=8,
            )
        ],
        [_rope_job(256)],
        [_rope_job(512)],
        [_accept_job()],
    ]


def _rope_job(size: int) -> Job:
    kv_heads = 8 if size == 256 else 2
    strides = [
        f"{name}_{axis}_stride"
        for name in ("query", "key", "value", "key_target", "value_target")
        for axis in ("batch", "token", "head")
    ]
    pointers = ("query", "key", "value", "query_weight", "key_weight", "cos", "sin")
    targets = ("query_target", "key_target", "value_target")
    return Job(
        f"{PACKAGE}.qk_norm_rope.kernel:_qk_norm_rope_kernel",
        {
            **dict.fromkeys((*pointers, *targets), "*bf16"),
            **dict.fromkeys((*strides, "angle_batch_stride", "num_tokens"), "i32"),
            "eps": "fp32",
        },
        {"H": 16, "G": kv_heads, "K": size},
        num_warps=2,
    )


def _accept_job() -> Job:
    ids = ("token_ids", "previous_argmax", "candidates", "argmax", "fresh", "min_accepted")
    flags = ("was_finished", "hole_mask", "is_finished", "accepted")
    return Job(
        f"{PACKAGE}.entropy_accept.kernel:_entropy_accept_kernel",
        {
            **dict.fromkeys((*ids, "next_ids", "next_argmax"), "*i64"),
            **dict.fromkeys(flags, "*u8"),
            **dict.fromkeys(("previous_unchanged", "num_unchanged"), "*i32"),
            **dict.fromkeys(("entropy", "mean_entropy"), "*fp32"),
            "entropy_bound": "fp32",
            "confidence_threshold": "fp32",
            "stability_threshold": "i32",
        },
        {"M": 256, "BLOCK": 256},
        num_warps=8,
    )


def _options(blocks: Blocks) -> dict[str, int]:
    return {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
