"""The diffusion engine: text or token ids in and out.

Knows no LSP, no editor, and no file path except a checkpoint's folder. Importing this package does
not import torch; `load_engine` and `load_model` do, when called.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

# Errors
from .errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    ContextTooLong,
    DGemmaError,
    EngineUnavailable,
    HolesTooFarApart,
    OutOfMemory,
    RequestError,
)

# Requests and results
from .types import (
    Alternative,
    CancellationToken,
    Decoder,
    DraftStep,
    DraftToken,
    EngineInfo,
    HoleKind,
    InfillEngine,
    InfillRequest,
    InfillResult,
    JointRequest,
    JointResult,
    ManyClientEngine,
    OnJointStep,
    OnStep,
    StopReason,
    Timings,
)

if TYPE_CHECKING:
    from .machine import Memory
    from .model import DiffusionGemma
    from .survey import Survey
    from .timing import Bench

__all__ = [
    "Alternative",
    "CancellationToken",
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "ContextTooLong",
    "DGemmaError",
    "Decoder",
    "DraftStep",
    "DraftToken",
    "EngineInfo",
    "EngineUnavailable",
    "HoleKind",
    "HolesTooFarApart",
    "InfillEngine",
    "InfillRequest",
    "InfillResult",
    "JointRequest",
    "JointResult",
    "ManyClientEngine",
    "OnJointStep",
    "OnStep",
    "OutOfMemory",
    "RequestError",
    "StopReason",
    "Timings",
    "load_bench",
    "load_engine",
    "load_model",
    "memory_of_this_machine",
    "quantize_checkpoint",
    "survey_checkpoint",
]


def load_engine(
    model: str = "default",
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
) -> ManyClientEngine:
    """Load a checkpoint and the infill strategy that suits it.

    Args:
        model: "default" for the small model in this package, else a checkpoint folder in the
            Hugging Face layout.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "bfloat16", "float16".
        quantization: "fp8", "int8", "int4" or "nvfp4" to hold the large matrices in fewer bits
            than they are stored in; None to hold them as they are stored.
    Raises:
        EngineUnavailable: torch is not installed, or the device is not there.
        OutOfMemory: the model does not fit on the device; the message says what would.
        CheckpointError: the folder is not a checkpoint this engine can run.
        ConfigError: an unknown dtype or quantization.
    """
    _require_torch()
    from .infill import build_engine

    return build_engine(model, device, dtype, quantization)


def load_model(
    path: str, device: str = "auto", dtype: str = "auto", quantization: str | None = None
) -> DiffusionGemma:
    """Load a checkpoint's parameters, without tokenizer or infill strategy.

    Args and errors as for `load_engine`; `path` is always a folder.
    """
    _require_torch()
    from .checkpoint import load_checkpoint

    return load_checkpoint(path, device, dtype, quantization)


def quantize_checkpoint(
    source: str,
    target: str,
    quantization: str,
    device: str = "auto",
    max_shard_bytes: int = 4_000_000_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint in fewer bits; see `convert.quantize_checkpoint`."""
    _require_torch()
    from .convert import quantize_checkpoint as convert

    convert(source, target, quantization, device, max_shard_bytes, on_progress)


def survey_checkpoint(path: str) -> Survey:
    """What a checkpoint folder is, by its headers; see `survey.Survey`.

    Args:
        path: as for `load_engine`.
    Raises:
        CheckpointError: the folder is not a checkpoint this engine can run.
    """
    _require_torch()
    from .infill import checkpoint_folder
    from .survey import survey

    return survey(checkpoint_folder(path))


def memory_of_this_machine() -> list[Memory]:
    """The computer's own memory, if the system says, and every GPU's that torch can use."""
    from .machine import gpu_memory, main_memory

    own = main_memory()
    try:
        _require_torch()
    except EngineUnavailable:
        return [own] if own else []
    return [*([own] if own else []), *gpu_memory()]


def load_bench(
    model: str = "default",
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    seconds: float = 120.0,
) -> Bench:
    """Load a model as `load_engine` does, to be timed for so many seconds; see `timing.Bench`."""
    _require_torch()
    from .infill import build_engine
    from .timing import Bench, Plan

    engine = build_engine(model, device, dtype, quantization)
    return Bench(engine.model, Plan(seconds=seconds))


def _require_torch() -> None:
    # Threads that spin while they wait starve each other on a busy machine: a fill of 0.12 s took
    # 29 s beside one other program. Has an effect only if torch is not loaded yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch  # noqa: F401  (only asked whether it is there)
    except ImportError as error:
        raise EngineUnavailable(
            f"torch cannot be imported ({error}). Install it: pip install 'torch>=2.9,<2.14' "
            "(see the README for a CPU-only build)."
        ) from error
