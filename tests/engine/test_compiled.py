"""The compiled pass says what the plain one says, and without it everything goes on."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dgemma_engine import ContextTooLong, Decoder, InfillRequest, RequestError, load_engine
from dgemma_engine import compiled as compiled_module
from dgemma_engine.checkpoint import load_checkpoint
from dgemma_engine.compiled import (
    CompiledStep,
    compile_in_background,
    largest_difference,
    why_not,
)
from dgemma_engine.infill import DiffusionEngine

from .tiny import build_model, save_checkpoint

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)
HOLE = InfillRequest("def area(w, h):\n    return ", "\n", max_tokens=6, num_tokens=6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DGEMMA_COMPILE", "1")
    return tmp_path / "cache" / "dgemma-lsp" / "compiled"


def left_to_right(engine: DiffusionEngine) -> tuple[tuple[int, ...], float]:
    result = engine.fill(
        InfillRequest(
            HOLE.prefix, HOLE.suffix, max_tokens=6, num_tokens=6, decoder=Decoder.LEFT_TO_RIGHT
        )
    )
    return result.token_ids, result.confidence


class FakeStep(CompiledStep):
    """A step that answers at once, off by so much."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self.num_calls = 0

    def of(self, model: torch.nn.Module) -> FakeStep:
        self.model = model
        return self

    def __call__(self, token_ids: torch.Tensor, cache: object) -> torch.Tensor:
        self.num_calls += 1
        self.model.compiled_step = None
        logits = self.model.next_token_logits(token_ids, cache)
        return logits + self.off


def test_without_a_compiler_it_stays_plain(tmp_path, monkeypatch, caplog):
    """One line says so, nothing is kept, and fills go on."""
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    monkeypatch.setattr(compiled_module.shutil, "which", lambda _: None)
    with caplog.at_level(logging.INFO, "dgemma_engine.compiled"):
        thread = compile_in_background(model, folder, 0.0)
        assert thread is not None
        thread.join(20)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "no C++ compiler" in caplog.text
    assert model.compiled_step is None


def test_what_failed_is_not_tried_again(tmp_path, own_cache, monkeypatch, caplog):
    """The compiler's words are kept for who asks, and the next start does not wait for it."""
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    tried = []

    def fail(checkpoint: Path, library: Path) -> str:
        tried.append(library)
        return "ld: no such thing"

    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled_module, "_compile_beside", fail)
    for _ in range(2):
        with caplog.at_level(logging.INFO, "dgemma_engine.compiled"):
            thread = compile_in_background(model, folder, 0.0)
            assert thread is not None
            thread.join(20)
    assert len(tried) == 1
    assert model.compiled_step is None
    (kept,) = own_cache.glob("*.failed")
    assert kept.read_text() == "ld: no such thing"
    assert "failed before" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(("off", "is_taken"), [(0.0, True), (0.5, False), (float("nan"), False)])
def test_only_what_agrees_is_taken(tmp_path, own_cache, monkeypatch, off, is_taken):
    """Code that says something else is thrown away."""
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    library = own_cache / f"{compiled_module._key(folder)}.so"
    own_cache.mkdir(mode=0o700, parents=True)
    library.write_bytes(b"")
    monkeypatch.setattr(compiled_module, "CompiledStep", lambda *_: FakeStep(off).of(model))
    thread = compile_in_background(model, folder, 0.0)
    assert thread is not None
    thread.join(20)
    assert (model.compiled_step is not None) is is_taken
    assert library.exists() is is_taken


def test_a_library_that_others_can_write_is_not_loaded(tmp_path, own_cache, monkeypatch, caplog):
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    (own_cache / f"{compiled_module._key(folder)}.so").write_bytes(b"")
    with caplog.at_level(logging.INFO, "dgemma_engine.compiled"):
        thread = compile_in_background(model, folder, 0.0)
        assert thread is not None
        thread.join(20)
    assert "not only yours" in caplog.text
    assert model.compiled_step is None


def test_a_fill_does_not_wait_for_the_compiler(tmp_path, monkeypatch):
    """While it compiles, the plain pass answers."""
    folder = save_checkpoint(tmp_path / "model")
    engine = load_engine(str(folder), device="cpu")
    assert isinstance(engine, DiffusionEngine)
    has_begun, may_end = threading.Event(), threading.Event()

    def compile_slowly(checkpoint: Path, library: Path) -> str:
        has_begun.set()
        may_end.wait(30)
        return "no"

    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled_module, "_compile_beside", compile_slowly)
    thread = compile_in_background(engine.model, folder, 0.0)
    assert thread is not None
    assert has_begun.wait(20)
    token_ids, _ = left_to_right(engine)
    assert len(token_ids) == 6
    assert thread.is_alive()
    assert "compiled" not in engine.info.loop
    may_end.set()
    thread.join(20)


def test_whom_it_is_for(monkeypatch):
    """Small models in float32 on a CPU; nobody where it is turned off."""
    model = build_model()
    assert why_not(model) is None
    assert "float32" in str(why_not(build_model().to(torch.bfloat16)))
    monkeypatch.setattr(compiled_module, "_MOST_PARAMETERS", 1)
    assert "parameters" in str(why_not(model))
    monkeypatch.setenv("DGEMMA_COMPILE", "0")
    assert compile_in_background(model, Path()) is None


def test_the_key_is_of_the_weights(tmp_path):
    """Other weights are other code."""
    folder = save_checkpoint(tmp_path / "model")
    first = compiled_module._key(folder)
    assert first == compiled_module._key(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert first != compiled_module._key(folder)


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_compiled_pass_is_the_plain_one(tmp_path, own_cache):
    """Logits, keys and values at prefixes shorter and longer than the window; fills; the errors.

    The library is there for the next start, old ones are not, and nothing else stays behind.
    """
    folder = save_checkpoint(tmp_path / "model")
    own_cache.mkdir(mode=0o700, parents=True)
    (own_cache / "old.so").touch()
    os.utime(own_cache / "old.so", (0, 0))
    engine = load_engine(str(folder), device="cpu")
    assert isinstance(engine, DiffusionEngine)
    model, plain = engine.model, left_to_right(engine)
    thread = compile_in_background(model, folder, 0.0)
    assert thread is not None
    thread.join()
    step = model.compiled_step
    assert step is not None, [file.read_text() for file in own_cache.glob("*.failed")]
    assert engine.info.loop.endswith("left to right compiled")
    assert sorted(file.suffix for file in own_cache.iterdir()) == [".lock", ".so"]
    assert not (own_cache / "old.so").exists()
    model.compiled_step = None
    assert largest_difference(model, step) < 1e-4
    model.compiled_step = step
    token_ids, confidence = left_to_right(engine)
    assert token_ids == plain[0]
    assert confidence == pytest.approx(plain[1], rel=1e-4)

    cache = model.prefill(torch.tensor([[5, 6, 7]]))
    with pytest.raises(RequestError):
        model.next_token_logits(torch.tensor([[model.config.vocab_size]]), cache)
    assert cache.length == 3
    most = model.config.max_position_embeddings
    full = model.prefill(torch.full((1, most), 5))
    with pytest.raises(ContextTooLong):
        model.next_token_logits(torch.tensor([[5]]), full)

    again = load_checkpoint(folder, "cpu")
    thread = compile_in_background(again, folder, 600.0)  # does not wait for what is there
    assert thread is not None
    thread.join(60)
    assert again.compiled_step is not None


@needs_compiler
def test_the_compiler_ends_with_who_started_it(tmp_path):
    """An editor that is closed leaves no compiler running."""
    folder = save_checkpoint(tmp_path / "model")
    library = tmp_path / "step.so"
    compiler = subprocess.Popen(
        [sys.executable, "-m", "dgemma_engine.compiling", str(folder), str(library)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert compiler.stdin is not None
    time.sleep(0.2)
    assert compiler.poll() is None
    compiler.stdin.close()
    assert compiler.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(compiler.pid, 0)
    assert not library.exists()
