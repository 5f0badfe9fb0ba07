"""The dtype is the one that was measured to be faster, and a close race changes nothing."""

from __future__ import annotations

import pytest
import torch

from dgemma_engine import infill, load_engine, run_form
from dgemma_engine.infill import DiffusionEngine
from dgemma_engine.run_form import fastest_dtype

from .tiny import build_model, save_checkpoint


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({torch.float32: 2.0, torch.bfloat16: 1.0}, torch.bfloat16),
        ({torch.float32: 1.1, torch.bfloat16: 1.0}, torch.float32),
        ({torch.float32: 1.0, torch.bfloat16: 9.0}, torch.float32),
    ],
)
def test_the_faster_form_wins_clearly_or_not_at_all(monkeypatch, seconds, expected):
    """A gain that noise could make is no reason to round more."""
    monkeypatch.setattr(run_form, "_seconds", lambda layer, _: seconds[layer.layer_scalar.dtype])
    model = build_model()
    assert fastest_dtype(model) is expected
    assert model.dtype is torch.float32, "measuring changed the model"


def test_both_forms_are_really_run():
    """Each takes time, on this machine as it is."""
    assert fastest_dtype(build_model()) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "bfloat16"), ("float32", "float32")])
def test_larger_models_run_in_the_faster_form(tmp_path, monkeypatch, dtype, expected):
    """Unless the caller says which; small ones stay in float32."""
    folder = str(save_checkpoint(tmp_path))
    monkeypatch.setattr(infill, "fastest_dtype", lambda _: torch.bfloat16)
    small = load_engine(folder, device="cpu", dtype=dtype)
    assert small.info.dtype == "float32"
    monkeypatch.setattr(infill, "_SINGLE_THREAD_PARAMETERS", 1)
    engine = load_engine(folder, device="cpu", dtype=dtype)
    assert isinstance(engine, DiffusionEngine)
    assert engine.info.dtype == expected
