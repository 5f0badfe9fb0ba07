"""Which engine the settings ask for: the one place that knows all of them.

Each is imported only when it is chosen. `scheduler.py` calls what this gives.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dgemma_engine.errors import EngineUnavailable
from dgemma_engine.types import InfillEngine

from .settings import Settings

if TYPE_CHECKING:
    from .scheduler import OnDeath

ENGINES = ("process", "shared", "vllm")


def build_engine(settings: Settings, on_death: OnDeath, *, dtype: str = "auto") -> InfillEngine:
    """Build the engine that `settings.engine` names; blocks until it is there.

    Args:
        settings: `engine`, `engine_url`, `engine_key_variable`, `model` and `device` are read.
        on_death: called if the engine ends by itself.
        dtype: as for `dgemma_engine.load_engine`.
    Raises:
        EngineUnavailable: it cannot be had; the message says what to do.
        DGemmaError: as the engine's constructor.
    """
    if settings.engine == "vllm":
        return _existing_server(settings)
    if settings.engine == "shared":
        from dgemma_engine.shared.client import SharedEngine

        label = f"dgemma-lsp in {Path.cwd()}"
        return SharedEngine(settings.model, settings.device, dtype, on_death=on_death, label=label)
    from dgemma_engine.process import EngineProcess

    return EngineProcess(settings.model, settings.device, dtype, on_death=on_death)


def _existing_server(settings: Settings) -> InfillEngine:
    """The model is its name there; where it is a checkpoint folder, its tokenizer is read too."""
    if not settings.engine_url:
        raise EngineUnavailable(
            "engine 'vllm' needs the address of a server: set engineUrl, as in http://host:8000/v1"
        )
    try:
        module = importlib.import_module("dgemma_engine.vllm")
    except ImportError as error:
        raise EngineUnavailable(f"engine 'vllm' cannot be used here ({error})") from error
    folder = Path(settings.model).expanduser()
    key = os.environ.get(settings.engine_key_variable) or None
    tokenizer = folder if (folder / "tokenizer.json").is_file() else None
    engine: InfillEngine = module.VllmEngine(
        settings.engine_url, settings.model, key, tokenizer=tokenizer
    )
    return engine
