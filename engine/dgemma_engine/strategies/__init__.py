"""How a request becomes a prompt and a canvas: one strategy per kind of checkpoint.

    MarkerStrategy   our own models
    ChatStrategy     instruction-tuned models
    LengthStrategy   any model; slower, and without an idea of its own where to end

Each knows text and token ids; running the canvas is `diffusion.py`'s part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..canvas import EOM_ID
from ..config import ModelConfig
from ..errors import CheckpointError
from ..tokenizer import Tokenizer
from ..turns import TURN_START
from .chat import ChatStrategy
from .lengths import LengthStrategy
from .markers import MarkerLayout, MarkerStrategy
from .plan import InfillPlan, InfillStrategy, JointPlan

__all__ = ["ChatStrategy", "InfillPlan", "InfillStrategy", "JointPlan", "choose_strategy"]


def choose_strategy(
    name: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
    infill_config: Mapping[str, Any],
    device: torch.device,
) -> InfillStrategy:
    """The strategy that suits a checkpoint, or the one asked for by name.

    Args:
        name: "auto", "markers", "chat" or "lengths". "auto" takes markers if the tokenizer has an
            end-of-middle token, chat if it has turn markers, else lengths.
        tokenizer: of the checkpoint.
        config: of the checkpoint.
        infill_config: the checkpoint's `infill_config.json`, or empty.
        device: where canvases are built.
    Raises:
        CheckpointError: the checkpoint lacks what the named strategy needs, or the name is unknown.
    """
    has_markers = tokenizer.token_id("<eom>") == EOM_ID
    has_turns = tokenizer.token_id(TURN_START) is not None
    if name == "auto":
        name = "markers" if has_markers else "chat" if has_turns else "lengths"
    if name == "markers" and has_markers:
        layout = MarkerLayout.from_json(infill_config)
        return MarkerStrategy(tokenizer, config, layout, device)
    if name == "chat" and has_turns:
        return ChatStrategy(tokenizer, config, device)
    if name == "lengths":
        return LengthStrategy(tokenizer, config, device)
    raise CheckpointError(
        f"strategy {name!r} does not suit this checkpoint: 'markers' needs a tokenizer with <eom>, "
        f"'chat' one with {TURN_START}, 'lengths' runs on any"
    )
