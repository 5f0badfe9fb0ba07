"""The compiled pass says what the plain one says, and without it everything goes on."""

from __future__ import annotations

import dataclasses
import json
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
from safetensors.torch import load_file

from dgemma_engine import ContextTooLong, Decoder, InfillRequest, RequestError, load_engine
from dgemma_engine import compiled as compiled_module
from dgemma_engine.cache import KVCache
from dgemma_engine.checkpoint import load_checkpoint
from dgemma_engine.compiled import CompiledPass, CompiledStep, Form, compile_in_background, why_not
from dgemma_engine.compiling import _Pass, hold_bytes
from dgemma_engine.infill import DiffusionEngine
from dgemma_engine.layers import Linear, held_weights
from dgemma_engine.model import DiffusionGemma
from dgemma_engine.quantization import QUANT_METHOD, save_int8

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


DECODERS = (Decoder.LEFT_TO_RIGHT, Decoder.DIFFUSION)


def fill(engine: DiffusionEngine, decoder: Decoder) -> tuple[tuple[int, ...], float]:
    result = engine.fill(dataclasses.replace(HOLE, decoder=decoder))
    return result.token_ids, result.confidence


def save_in_bytes(folder: Path, target: Path) -> Path:
    """The same model as `training.pack` stores it."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    save_int8(tensors, target, 1 << 30)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": QUANT_METHOD}
    (target / "config.json").write_text(json.dumps(config))
    return target


class FakeStep(CompiledStep):
    """A step that answers at once, off by so much."""

    def __init__(self, model: DiffusionGemma, off: float) -> None:
        self._model, self._off = model, off

    def __call__(self, token_ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        return self._model.next_token_logits(token_ids, cache) + self._off


class FakePass(CompiledPass):
    """A pass that is the plain one, but for canvases, which are off by so much."""

    def __init__(self, model: DiffusionGemma, off: float) -> None:
        self._model, self._off = model, off
        self._layers = range(len(model.layers))

    def _call(self, inputs: list[torch.Tensor], cache: KVCache, length: int) -> list[torch.Tensor]:
        held = [cache.prefix(index, length, 1) for index in self._layers]
        whole = _Pass(self._model)
        logits, *new = whole(*inputs, [k for k, _ in held], [v for _, v in held])
        return [logits + self._off * inputs[-1], *new]


def test_without_a_compiler_it_stays_plain(tmp_path, monkeypatch, caplog):
    """A line for each says so, nothing is kept, and fills go on."""
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    monkeypatch.setattr(compiled_module.shutil, "which", lambda _: None)
    with caplog.at_level(logging.INFO, "dgemma_engine.compiled"):
        thread = compile_in_background(model, folder, 0.0)
        assert thread is not None
        thread.join(20)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert caplog.text.count("no C++ compiler") == 2
    assert model.compiled_step is None


def test_what_failed_is_not_tried_again(tmp_path, own_cache, monkeypatch, caplog):
    """The compiler's words are kept for who asks, and the next start does not wait for it."""
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    tried = []

    def fail(form: Form, checkpoint: Path, library: Path) -> str:
        tried.append(form)
        return "ld: no such thing"

    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled_module, "_compile_beside", fail)
    for _ in range(2):
        with caplog.at_level(logging.INFO, "dgemma_engine.compiled"):
            thread = compile_in_background(model, folder, 0.0)
            assert thread is not None
            thread.join(20)
    assert tried == [Form.STEP, Form.PASS]
    assert model.compiled_step is model.compiled_pass is None
    assert [kept.read_text() for kept in own_cache.glob("*.failed")] == ["ld: no such thing"] * 2
    assert "failed before" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(("off", "is_taken"), [(0.0, True), (0.5, False), (float("nan"), False)])
def test_only_what_agrees_is_taken(tmp_path, own_cache, monkeypatch, off, is_taken):
    """Code that says something else is thrown away."""
    folder = save_checkpoint(tmp_path / "model")
    model, plain = load_checkpoint(folder, "cpu"), load_checkpoint(folder, "cpu")
    key = compiled_module._key(folder)
    libraries = [own_cache / f"{key}-{form.value}.so" for form in Form]
    own_cache.mkdir(mode=0o700, parents=True)
    for library in libraries:
        library.write_bytes(b"")
    fakes = {Form.STEP: FakeStep(plain, off), Form.PASS: FakePass(plain, off)}
    kinds = {form: lambda *_, form=form: fakes[form] for form in Form}
    monkeypatch.setattr(compiled_module, "_KINDS", kinds)
    thread = compile_in_background(model, folder, 0.0)
    assert thread is not None
    thread.join(20)
    expected = (fakes[Form.STEP], fakes[Form.PASS]) if is_taken else (None, None)
    assert (model.compiled_step, model.compiled_pass) == expected
    assert [library.exists() for library in libraries] == [is_taken, is_taken]


def test_passes_go_where_they_fit(tmp_path, monkeypatch):
    """All but a first token, a lone one, and several prefixes; the plain pass has the rest."""
    folder = save_checkpoint(tmp_path / "model")
    model, plain = load_checkpoint(folder, "cpu"), load_checkpoint(folder, "cpu")
    model.compiled_pass = FakePass(plain, 0.5)
    ids = torch.arange(6, 18)[None]
    cache, own = model.prefill(ids), plain.prefill(ids)
    canvas, slots = ids.repeat(2, 1), torch.tensor([[2, 3, 5]]).repeat(2, 1)
    for asked in (None, slots):
        difference = model.denoise_logits(canvas, cache, None, asked) - plain.denoise_logits(
            canvas, own, None, asked
        )
        torch.testing.assert_close(difference, torch.full_like(difference, 0.5))
    alone = model.denoise_logits(ids[:, :1], cache)
    torch.testing.assert_close(alone, plain.denoise_logits(ids[:, :1], own))
    twice = [each.prefill(canvas) for each in (model, plain)]
    torch.testing.assert_close(
        model.denoise_logits(canvas, twice[0]), plain.denoise_logits(canvas, twice[1])
    )
    torch.testing.assert_close(
        model.continuation_logits(canvas, cache, 9), plain.continuation_logits(canvas, own, 9)
    )
    torch.testing.assert_close(
        model.next_token_logits(ids, cache), plain.next_token_logits(ids, own)
    )
    assert cache.length == own.length == 24


def test_a_library_that_others_can_write_is_not_loaded(tmp_path, own_cache, monkeypatch, caplog):
    folder = save_checkpoint(tmp_path / "model")
    model = load_checkpoint(folder, "cpu")
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    (own_cache / f"{compiled_module._key(folder)}-step.so").write_bytes(b"")
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

    def compile_slowly(form: Form, checkpoint: Path, library: Path) -> str:
        has_begun.set()
        may_end.wait(30)
        return "no"

    monkeypatch.setattr(compiled_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled_module, "_compile_beside", compile_slowly)
    thread = compile_in_background(engine.model, folder, 0.0)
    assert thread is not None
    assert has_begun.wait(20)
    token_ids, _ = fill(engine, Decoder.LEFT_TO_RIGHT)
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
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_in_bytes", [False, True])
def test_what_is_compiled_is_the_plain_pass(tmp_path, own_cache, is_in_bytes):
    """Logits, keys and values at prefixes shorter and longer than the window; fills; the errors.

    The libraries are there for the next start, old ones are not, and nothing else stays behind.
    """
    folder = save_checkpoint(tmp_path / "model")
    if is_in_bytes:
        folder = save_in_bytes(folder, tmp_path / "int8")
    own_cache.mkdir(mode=0o700, parents=True)
    (own_cache / "old.so").touch()
    os.utime(own_cache / "old.so", (0, 0))
    engine = load_engine(str(folder), device="cpu")
    assert isinstance(engine, DiffusionEngine)
    model = engine.model
    plain = [fill(engine, decoder) for decoder in DECODERS]
    thread = compile_in_background(model, folder, 0.0)
    assert thread is not None
    thread.join()
    step, whole = model.compiled_step, model.compiled_pass
    errors = [file.read_text() for file in own_cache.glob("*.failed")]
    assert step is not None, errors
    assert whole is not None, errors
    assert engine.info.loop.endswith("step and pass compiled")
    assert sorted(file.suffix for file in own_cache.iterdir()) == [".lock", ".lock", ".so", ".so"]
    again = load_checkpoint(folder, "cpu")
    assert step.largest_difference(again) < 1e-4
    assert whole.largest_difference(again) < 1e-4
    for decoder, (token_ids, confidence) in zip(DECODERS, plain, strict=True):
        compiled = fill(engine, decoder)
        assert compiled[0] == token_ids
        assert compiled[1] == pytest.approx(confidence, rel=1e-4)

    cache = model.prefill(torch.tensor([[5, 6, 7]]))
    with pytest.raises(RequestError):
        model.next_token_logits(torch.tensor([[model.config.vocab_size]]), cache)
    assert cache.length == 3
    most = model.config.max_position_embeddings
    full = model.prefill(torch.full((1, most), 5))
    with pytest.raises(ContextTooLong):
        model.next_token_logits(torch.tensor([[5]]), full)

    thread = compile_in_background(again, folder, 600.0)  # does not wait for what is there
    assert thread is not None
    thread.join(60)
    assert again.compiled_step is not None
    assert again.compiled_pass is not None


def test_bytes_are_held_as_they_were_stored(tmp_path):
    """A checkpoint in 8 bits is multiplied in 8 bits: to rounding the same; others stay."""
    folder = save_checkpoint(tmp_path / "model")
    stored = save_in_bytes(folder, tmp_path / "int8")
    plain, held = load_checkpoint(stored, "cpu", "float32"), load_checkpoint(stored, "cpu")
    hold_bytes(held)
    assert held.quantization == "int8"
    num_linear = sum(1 for module in plain.modules() if type(module) is Linear)
    # Without the router of each layer, and with its two stacks of experts.
    assert sum(1 for _ in held_weights(held)) == num_linear + len(plain.layers)
    ids = torch.arange(6, 26)[None]
    logits = [each.next_token_logits(ids, each.new_cache(1)) for each in (plain, held)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    model = load_checkpoint(folder, "cpu", "float32")
    hold_bytes(model)
    assert model.quantization is None


@needs_compiler
def test_the_compiler_ends_with_who_started_it(tmp_path):
    """An editor that is closed leaves no compiler running."""
    folder = save_checkpoint(tmp_path / "model")
    library = tmp_path / "step.so"
    compiler = subprocess.Popen(
        [sys.executable, "-m", "dgemma_engine.compiling", "step", str(folder), str(library)],
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
