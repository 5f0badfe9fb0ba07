"""The model that ships in the package: complete, small enough, and what it says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from dgemma_engine import HoleKind, InfillRequest, load_engine, load_model
from dgemma_engine.infill import CHECKPOINTS_FOLDER, DEFAULT_CHECKPOINT, DiffusionEngine
from dgemma_engine.stored_model import our_name_to_stored
from dgemma_engine.tokenizer import Tokenizer

from .oracle import TINY_VISION

FOLDER = CHECKPOINTS_FOLDER / DEFAULT_CHECKPOINT
PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return "
SUFFIX = "\n\n\nprint(read(os.path.join('a', 'b')))\n"


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    loaded = load_engine("default", device="cpu")
    assert isinstance(loaded, DiffusionEngine)
    return loaded


def test_files_are_complete_and_small() -> None:
    """Configs, weights, tokenizer and card are there; no file is over 16 MiB."""
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert all(path.stat().st_size < 16 * 2**20 for path in FOLDER.iterdir())


def test_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    """The shipped weights are a DiffusionGemma: transformers runs them and agrees."""
    config = json.loads((FOLDER / "config.json").read_text())
    config["vision_config"] = TINY_VISION  # transformers always builds one; the text path has none
    config.pop("quantization_config", None)  # ours; transformers gets the weights as they run here
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load_model(str(FOLDER), device="cpu", dtype="float32")
    tensors = {our_name_to_stored(name): tensor for name, tensor in ours.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    oracle = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path, config=DiffusionGemmaConfig.from_pretrained(tmp_path), dtype=torch.float32
    ).eval()
    prefix = torch.tensor([Tokenizer.load(FOLDER).encode(PREFIX)])
    canvas = torch.randint(0, ours.config.vocab_size, (1, 64))
    with torch.no_grad():
        expected = oracle(input_ids=prefix, decoder_input_ids=canvas).logits
        actual = ours.denoise_logits(canvas, ours.prefill(prefix))
    assert (expected - actual).abs().max() < 1e-3  # logits of a trained model are around 20


def test_a_hole_is_filled(engine: DiffusionEngine) -> None:
    """A hole gets text that fits on a line, the same for the same seed."""
    request = InfillRequest(PREFIX, SUFFIX, language_id="python", seed=1)
    first, again = engine.fill(request), engine.fill(request)
    assert first.text == again.text
    assert first.token_ids
    assert "\n" not in first.text
    assert engine.info.strategy == "markers"


def test_the_model_has_learned(engine: DiffusionEngine) -> None:
    """Its first tokens are those of code: told from random weights by how likely they are."""
    request = InfillRequest(PREFIX, SUFFIX, HoleKind.BLOCK, language_id="python")
    result = engine.fill(request)
    # A random model of 4096 tokens is at 1 / 4096 before the temperature, and never near this.
    assert sum(result.token_confidences) / len(result.token_confidences) > 0.2
