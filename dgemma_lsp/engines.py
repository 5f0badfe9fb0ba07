"""Which engine the settings ask for: the one place that knows all of them.

Each is imported only when it is chosen. `scheduler.py` calls what this gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dgemma_engine.errors import EngineUnavailable
from dgemma_engine.types import InfillEngine

from .settings import Settings

if TYPE_CHECKING:
    from .scheduler import OnDeath


def build_engine(settings: Settings, on_death: OnDeath, *, dtype: str = "auto") -> InfillEngine:
    """Build the engine that `settings.engine` names; blocks until it is there.

    Args:
        settings: `engine` and what begins with it, `model`, `device` and `quantization` are read.
        on_death: called if the engine ends by itself.
        dtype: as for `dgemma_engine.load_engine`.
    Raises:
        EngineUnavailable: it cannot be had; the message says what to do.
        DGemmaError: as the engine's constructor.
    """
    if settings.engine == "vllm":
        return _existing_server(settings)
    quantization = None if settings.quantization == "none" else settings.quantization
    if settings.engine == "shared":
        from dgemma_engine.shared.client import SharedEngine

        label = f"dgemma-lsp in {Path.cwd()}"
        return SharedEngine(
            settings.model, settings.device, dtype, quantization, on_death=on_death, label=label
        )
    from dgemma_engine.process import EngineProcess

    return EngineProcess(settings.model, settings.device, dtype, quantization, on_death=on_death)


def _existing_server(settings: Settings) -> InfillEngine:
    """The model is its name there, or a folder with the tokenizer of what is served."""
    if not settings.engine_url:
        raise EngineUnavailable(
            "engine 'vllm' needs the address of a server: set engineUrl, as in http://host:8000/v1"
        )
    from dgemma_engine.vllm import VllmEngine

    variable = settings.engine_key_variable
    folder = Path(settings.model).expanduser()
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return VllmEngine(
        settings.engine_url,
        "" if has_tokenizer else settings.model,
        os.environ.get(variable) or None,
        tokenizer=folder if has_tokenizer else None,
        level=settings.engine_level,
        key_source=f"the environment variable {variable}",
    )
