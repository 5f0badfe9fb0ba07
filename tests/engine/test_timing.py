"""The benchmarks run, on a CPU in small, and their floors are what has to be read."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgemma_engine.config import ModelConfig
from dgemma_engine.layers import held_weights
from dgemma_engine.memory import HELD_AS, weight_bytes
from dgemma_engine.timing import Bench, Plan, encoder_bytes, pass_bytes, touched_experts

from .tiny import build_model

SCRIPT = Path(__file__).parents[2] / "engine/benchmarks/full_size.py"


@pytest.fixture(scope="module")
def full_size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_row_is_timed() -> None:
    """Prefills, passes, fills and the protocol; what the model cannot do is left out."""
    plan = Plan((32, 64, 128), (20, 60, 5000), protocol_prefix=60, repeats=2, seconds=60.0)
    bench = Bench(build_model(), plan)
    rows = list(bench.rows())
    assert {row.what for row in rows} == {
        *("prefill", "incremental prefill", "pass", "fill", "protocol"),
    }
    assert {row.prefix for row in rows} == {20, 60}
    assert {row.canvas for row in rows if row.what == "pass"} == {32, 64}
    assert all(0 < row.ms_low <= row.ms <= row.ms_high for row in rows)
    assert all(row.floor_ms > 0 for row in rows)
    assert bench.left_out == []


def test_the_loop_on_the_device_is_timed_beside() -> None:
    """Later passes at every canvas, first ones with new tokens and without, and fills by it."""
    plan = Plan((32, 64), (60,), protocol_prefix=60, repeats=2, seconds=60.0)
    rows = list(Bench(build_model(), plan, on_device=True).rows())
    assert [row.canvas for row in rows if row.what == "pass, eager"] == [32, 64]
    without, together = (
        next(row for row in rows if row.what == f"first pass{added}, eager")
        for added in ("", " and 16 new tokens")
    )
    assert without.floor_ms <= together.floor_ms
    assert {"fill", "protocol"} < {row.what for row in rows}
    assert {row.prefix for row in rows} == {60}


def test_when_the_time_is_over_the_rest_is_left_out() -> None:
    """And named."""
    bench = Bench(build_model(), Plan((32,), (20,), repeats=1, seconds=0.0))
    assert list(bench.rows()) == []
    assert bench.left_out == ["prefix 20: the time was over"]


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was timed before it stays."""
    bench = Bench(build_model(), Plan((32,), (20, 60), repeats=1, seconds=60.0))

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows = []
    for row in bench.rows():
        rows.append(row)
        if row.prefix == 60:
            monkeypatch.setattr(bench.model, "denoise_logits", run_out)
    assert [row.what for row in rows if row.prefix == 60] == ["prefill", "incremental prefill"]
    assert {row.prefix for row in rows} == {20, 60}
    assert bench.left_out == ["the rest of prefix 60: out of memory"]


def test_a_floor_is_what_has_to_be_read() -> None:
    """All weights but the experts that nothing goes to, the embedding twice, and the cache."""
    model = build_model()
    whole = sum(tensor.nbytes for tensor in model.state_dict().values())
    embedding = model.embed_tokens.weight.nbytes
    # In float32: two sliding layers of 2 heads of 8, up to 23 tokens; one full of 1 head of 16.
    cached = 4 * 2 * (2 * 2 * 8 * 23 + 16 * 100)
    assert touched_experts(model, 10_000) == 1.0
    assert touched_experts(model, 1) == 0.5
    assert pass_bytes(model, 10_000, 100) == whole + embedding + cached
    assert encoder_bytes(model, 10_000, 0) == whole - embedding
    experts = sum(
        tensor.nbytes for name, tensor in model.state_dict().items() if ".experts." in name
    )
    assert pass_bytes(model, 1, 0) == whole + embedding - experts / 2


def test_the_full_size_is_the_published_one(full_size: ModuleType) -> None:
    """The dimensions whose memory is reckoned; a tiny model has the same kinds of layers."""
    full = ModelConfig.from_json(full_size.build_config(is_tiny=False))
    tiny = ModelConfig.from_json(full_size.build_config(is_tiny=True))
    assert weight_bytes(full, None) == 2 * 25_250_986_812
    assert len({layer.is_sliding for layer in tiny.layers}) == 2
    assert len({layer.head_dim for layer in tiny.layers}) == 2


@pytest.mark.parametrize("quantization", HELD_AS)
def test_random_models_are_held_as_they_would_be(full_size: ModuleType, quantization: str) -> None:
    """Quantised stack by stack, and of the same numbers for the same seed."""
    config = ModelConfig.from_json(full_size.build_config(is_tiny=True))
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    model = full_size.build_model(config, cpu, dtype, quantization)
    held = sum(weight.nbytes for weight in held_weights(model))
    held += sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held == weight_bytes(config, quantization)
    again = full_size.build_model(config, cpu, dtype, quantization)
    canvas, prompt = torch.arange(32)[None], torch.arange(50)[None]
    first, second = (m.denoise_logits(canvas, m.prefill(prompt)) for m in (model, again))
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [pytest.param("bf16", "plain", marks=pytest.mark.slow), ("nvfp4", "fp8 and nvfp4")],
)
def test_the_script_runs_beside_transformers(
    quantization: str,
    weights: str,
    full_size: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the same weights the same logits; a table is printed and the CSV grows."""
    path = tmp_path / "results/full_size.csv"
    plan = dataclasses.replace(full_size.TINY_PLAN, prefixes=(100,))
    monkeypatch.setattr(full_size, "TINY_PLAN", plan)
    arguments = ["full_size.py", "--tiny", "--device", "cpu", "--format", quantization]
    monkeypatch.setattr(sys, "argv", [*arguments, "--csv", str(path)])
    full_size.main()
    shown = capsys.readouterr().out
    differences = [line for line in shown.splitlines() if "logits differ by" in line]
    assert len(differences) == 2
    assert all(float(line.split()[-4]) < 1e-4 for line in differences)
    assert "| pass, transformers | 64 | 100 | 1 |" in shown
    assert "| protocol | 64 | 100 | 16 |" in shown
    assert "| first pass and 16 new tokens, eager | 64 | 100 | 1 |" in shown
    written = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(written.splitlines()))
    assert {row["weights"] for row in rows} == {weights}
    full_size.append(path, [], {})
    assert path.read_text(encoding="utf-8") == written, "the heading is written once"
