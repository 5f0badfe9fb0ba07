"""`dgemma-lsp quantize`: what is written loads, and what broke off is not there."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dgemma_engine import CheckpointError, ConfigError, convert, load_engine, load_model
from dgemma_engine.convert import quantize_checkpoint
from dgemma_engine.memory import HELD_AS
from dgemma_engine.tensor_files import ShardWriter

from . import quantised
from .quantised import save_quantised
from .test_stored_weights import COMPRESSED, all_linears, assert_same, experts
from .tiny import sample_request, save_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.mark.parametrize("quantization", HELD_AS)
def test_what_is_written_loads_as_if_quantised_on_the_way(
    quantization: str, source: Path, tmp_path: Path
) -> None:
    """Bit for bit, from several files, with everything that an engine needs."""
    target, told = tmp_path / "out", []
    quantize_checkpoint(
        source,
        target,
        quantization,
        "cpu",
        max_shard_bytes=40_000,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 2
    assert all(file.stat().st_size < 80_000 for file in target.glob("*.safetensors"))
    assert told[-1] == (len(told), len(told))
    model = load_model(str(target), dtype="float32")
    expected = load_model(str(source), dtype="float32", quantization=quantization)
    assert model.quantization == expected.quantization
    assert_same(model, expected)
    assert load_engine(str(target), device="cpu").fill(sample_request()).num_passes > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    written = json.loads((target / "config.json").read_text())
    assert written["quantization_config"] == {"quant_method": "dgemma", "format": quantization}


def test_what_is_quantised_already_stays_as_it_is(tmp_path: Path) -> None:
    """NVFP4 experts of a published checkpoint, whose gates and ups have scales of their own."""
    draw = quantised.nvfp4_of_compressed_tensors
    expected = save_quantised(tmp_path / "in", draw, experts, dict(COMPRESSED))
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", "int8", "cpu")
    model = load_model(str(tmp_path / "out"), dtype="float32")
    assert model.quantization == "int8 and nvfp4"
    held = model.layers[1].experts.gate_up_proj.dequantize(torch.float32)
    assert torch.allclose(held, expected.layers[1].experts.gate_up_proj, rtol=1e-6)


def test_one_file_where_one_is_enough(tmp_path: Path) -> None:
    """And blocks stay blocks."""
    sizes = {"moe_intermediate_size": 128, "intermediate_size": 160}
    files = {"config.json": {"quantization_config": {"quant_method": "fp8"}}}
    draw = quantised.fp8_by_blocks
    expected = save_quantised(tmp_path / "in", draw, all_linears, files, **sizes)
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", "fp8", "cpu")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    model = load_model(str(tmp_path / "out"), dtype="float32")
    assert model.quantization == "fp8_block"
    assert_same(model, expected)


class _Stop(BaseException):
    """As KeyboardInterrupt, which would end the tests."""


@pytest.mark.parametrize(
    ("stop", "expected", "message"),
    [
        (_Stop("stopped"), _Stop, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), ConfigError, r"GB free; choose another"),
        (OSError(errno.EIO, "Input/output error"), ConfigError, "cannot be written: Input"),
    ],
    ids=["interrupted", "full", "broken"],
)
def test_what_breaks_off_leaves_nothing(
    stop: BaseException,
    expected: type[BaseException],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a folder that looks whole nor half a one; while it is written it has no config."""
    add, seen = ShardWriter.add, []

    def add_some(self: ShardWriter, tensors: Any) -> None:
        add(self, tensors)
        seen.append([path for path in tmp_path.iterdir() if (path / "config.json").exists()])
        if len(seen) == 30:
            raise stop

    monkeypatch.setattr(ShardWriter, "add", add_some)
    with pytest.raises(expected, match=message):
        quantize_checkpoint(source, tmp_path / "out", "fp8", "cpu", max_shard_bytes=20_000)
    assert not any(seen)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_told_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that exists or has no parent, a source that is none, no space, no such format."""
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists already"):
        quantize_checkpoint(source, tmp_path / "there", "fp8")
    with pytest.raises(ConfigError, match=r"no folder .*nowhere to write out into"):
        quantize_checkpoint(source, tmp_path / "nowhere/out", "fp8")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        quantize_checkpoint(tmp_path / "absent", tmp_path / "out", "fp8")
    with pytest.raises(ConfigError, match="one of fp8, int8, int4, nvfp4"):
        quantize_checkpoint(source, tmp_path / "out", "int3")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ConfigError, match=r"out takes 0\.00 GB, and .* has 0\.00 GB free"):
        quantize_checkpoint(source, tmp_path / "out", "fp8")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
