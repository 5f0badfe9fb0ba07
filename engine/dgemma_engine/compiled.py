"""A small model's passes, compiled for this CPU: one token, and all else.

In PyTorch a pass is some thousand operations, most of them too short to be worth their call. A
process of its own compiles it (`compiling.py`), once for a machine and a model; here it is loaded,
held against the plain pass, and taken from then on. Until then, and wherever that fails, the plain
pass runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

import dgemma_kernels

from .cache import KVCache
from .model import DiffusionGemma
from .tensor_files import tensor_files

_log = logging.getLogger(__name__)

# Set to "0" nothing is compiled, and nothing compiled is loaded; for debugging.
_VARIABLE = "DGEMMA_COMPILE"
# Compiling takes two minutes of one core, at low priority: a fill or two are not worth it.
_WAIT_SECONDS = 20.0
_KEPT_SECONDS = 30 * 86400.0  # libraries that nobody loads any more; 6 and 18 MB
# A larger model's pass is its matrices, and its library holds its weights a second time.
_MOST_PARAMETERS = 16_000_000
# Of the prefix: code for any number of tokens is not code for 0 or 1.
LEAST_TOKENS = 2
_SAMPLE_LENGTHS = (LEAST_TOKENS, 37, 600)
_LARGEST_DIFFERENCE = 1e-3  # of logits, which are within +-30; 1e-5 was measured


class Form(str, Enum):
    """What is compiled: the encoder over one token; the encoder, or canvases, over more."""

    STEP = "step"
    PASS = "pass"


class _Compiled:
    """A shared library; `compiling.py` says what it takes and gives.

    Args:
        library: as `compiling.py` wrote it on this machine.
        num_layers: of the model it was written for.
    """

    def __init__(self, library: Path, num_layers: int) -> None:
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run
        self._layers = range(num_layers)

    def largest_difference(self, model: DiffusionGemma) -> float:
        """From the plain passes, of logits and of the keys and values written.

        Args:
            model: which does not take this one yet.
        """
        largest = 0.0
        for plain, compiled in self._samples(model, torch.Generator().manual_seed(0)):
            assert plain.shape == compiled.shape, (plain.shape, compiled.shape)
            largest = max(largest, float((plain - compiled).abs().nan_to_num(torch.inf).max()))
        return largest

    def _samples(
        self, model: DiffusionGemma, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What the model says and what the library says, many times."""
        raise NotImplementedError

    def _call(self, inputs: list[Tensor], cache: KVCache, length: int) -> list[Tensor]:
        """The logits, and new keys and values, of what is behind `length` tokens of a cache."""
        held = [cache.prefix(index, length, 1) for index in self._layers]
        inputs += [part.contiguous() for each in zip(*held, strict=True) for part in each]
        outputs: list[Tensor] = self._run(inputs)
        return outputs

    def _extend(self, cache: KVCache, new: list[Tensor]) -> None:
        for index in self._layers:
            cache.write(index, new[index], new[index + len(self._layers)])
        cache.advance(new[0].shape[2])


class CompiledStep(_Compiled):
    """`DiffusionGemma.next_token_logits` of one token."""

    def fits(self, token_ids: Tensor, cache: KVCache) -> bool:
        """Whether it is for so many tokens, and so long a prefix."""
        return tuple(token_ids.shape) == (1, 1) and cache.length >= LEAST_TOKENS

    def __call__(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """See `DiffusionGemma.next_token_logits`; the arguments are checked, and fit."""
        logits, *new = self._call([token_ids, torch.tensor(cache.length)], cache, cache.length)
        self._extend(cache, new)
        return logits

    def _samples(
        self, model: DiffusionGemma, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for length in _sample_lengths(model):
            ids = _random_ids(model, generator, 1, length + 1)
            caches = [model.prefill(ids[:, :-1]) for _ in range(2)]
            token_id = ids[:, -1:]
            yield model.next_token_logits(token_id, caches[0]), self(token_id, caches[1])
            yield from _last_written(caches, 1)


class CompiledPass(_Compiled):
    """The model's other passes over tokens or canvases that are embedded, (B, S, D)."""

    def fits(self, hidden: Tensor, cache: KVCache, length: int | None = None) -> bool:
        """Whether it is for so many tokens, behind so many (None: all) of a cache."""
        num_held = cache.length if length is None else length
        return cache.batch_size == 1 and num_held >= LEAST_TOKENS and hidden.shape[1] > 1

    def encode(self, hidden: Tensor, cache: KVCache) -> Tensor:
        """Of one row: extend the cache, and say (1, V) what may follow the last token."""
        last = torch.tensor([[hidden.shape[1] - 1]])
        logits, *new = self._pass(hidden, cache, cache.length, last, is_canvas=False)
        self._extend(cache, new)
        return logits[:, 0]

    def continuations(self, hidden: Tensor, cache: KVCache, num_cached: int) -> Tensor:
        """See `DiffusionGemma.continuation_logits`."""
        return self._pass(hidden, cache, num_cached, None, is_canvas=False)[0]

    def canvases(self, hidden: Tensor, cache: KVCache, slots: Tensor | None) -> Tensor:
        """See `DiffusionGemma.denoise_logits`."""
        return self._pass(hidden, cache, cache.length, slots, is_canvas=True)[0]

    def _pass(
        self,
        hidden: Tensor,
        cache: KVCache,
        length: int,
        slots: Tensor | None,
        *,
        is_canvas: bool,
    ) -> list[Tensor]:
        if slots is None:
            slots = torch.arange(hidden.shape[1]).repeat(len(hidden), 1)
        inputs = [hidden.contiguous(), torch.tensor(length), slots.contiguous()]
        return self._call([*inputs, torch.tensor(is_canvas)], cache, length)

    def _samples(
        self, model: DiffusionGemma, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for length in _sample_lengths(model):
            prefix = _random_ids(model, generator, 1, length)
            caches = [model.prefill(prefix) for _ in range(2)]
            cache = caches[0]
            for shape in ((1, 2), (1, 9), (3, 5)):
                rows = _random_ids(model, generator, *shape)
                if length > LEAST_TOKENS:
                    plain = model.continuation_logits(rows, cache, length - 1)
                    yield plain, self.continuations(model.embed(rows), cache, length - 1)
                for slots in (None, torch.arange(1, shape[1]).repeat(shape[0], 1)):
                    plain = model.denoise_logits(rows, cache, None, slots)
                    yield plain, self.canvases(model.embed_canvas(rows, None), cache, slots)
            new = _random_ids(model, generator, 1, 7)
            yield model.next_token_logits(new, cache), self.encode(model.embed(new), caches[1])
            yield from _last_written(caches, 7)


def _sample_lengths(model: DiffusionGemma) -> list[int]:
    """Of prefixes: shorter and longer than the window, that have room for what comes behind."""
    most = model.config.max_position_embeddings - 16
    return [length for length in _SAMPLE_LENGTHS if length <= most]


def _random_ids(model: DiffusionGemma, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def _last_written(caches: Sequence[KVCache], num_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The last tokens' keys and values of two caches, layer by layer."""
    for index in range(caches[0].num_layers):
        pairs = [cache.prefix(index, cache.length, 1) for cache in caches]
        for plain, compiled in zip(*pairs, strict=True):
            yield plain[:, :, -num_tokens:], compiled[:, :, -num_tokens:]


_KINDS: dict[Form, type[_Compiled]] = {Form.STEP: CompiledStep, Form.PASS: CompiledPass}


def compile_in_background(
    model: DiffusionGemma, checkpoint: Path, wait_seconds: float = _WAIT_SECONDS
) -> threading.Thread | None:
    """Give a model its compiled passes as they are there: soon if they were compiled before.

    Args:
        model: as it will stay.
        checkpoint: the folder it was loaded from.
        wait_seconds: before anything is compiled.
    Returns:
        the thread that does it; None where there is nothing to gain.
    """
    if why_not(model) is not None:
        return None
    thread = threading.Thread(
        target=_compile, args=(model, checkpoint, wait_seconds), name="compile", daemon=True
    )
    thread.start()
    return thread


def why_not(model: DiffusionGemma) -> str | None:
    """What keeps a model from being compiled; None if nothing does."""
    if os.environ.get(_VARIABLE) == "0":
        return f"{_VARIABLE} is 0"
    if os.name != "posix" or model.device.type != "cpu":
        return "only CPUs under Linux and macOS"
    if model.dtype is not torch.float32 or model.quantization is not None:
        return "only weights in float32"
    if model.num_parameters > _MOST_PARAMETERS:
        return f"more than {_MOST_PARAMETERS:,} parameters"
    return None


def _compile(model: DiffusionGemma, checkpoint: Path, wait_seconds: float) -> None:
    not_before = time.monotonic() + wait_seconds
    for form, kind in _KINDS.items():
        try:
            library = _library(form, checkpoint, not_before)
            compiled = kind(library, len(model.layers))
            difference = compiled.largest_difference(model)
            if not difference <= _LARGEST_DIFFERENCE:
                library.unlink()
                raise RuntimeError(f"the compiled logits are off by {difference:.1e}")
        except Exception as error:  # whatever a compiler or a loader may come to
            _log.info("the %s is not compiled: %s", form.value, error)
            continue
        setattr(model, f"compiled_{form.value}", compiled)
        _log.info("the %s is compiled; its logits are off by %.0e at most", form.value, difference)


def _library(form: Form, checkpoint: Path, not_before: float) -> Path:
    """A compiled pass of a checkpoint; compiled now, or at that time, if it was not before."""
    folder = _private_folder()
    library = folder / f"{_key(checkpoint)}-{form.value}.so"
    failed = library.with_suffix(".failed")
    if library.exists():
        os.utime(library)
        return library
    if failed.exists():
        raise RuntimeError(f"it failed before, see {failed}")
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))):
        raise RuntimeError("there is no C++ compiler")
    time.sleep(max(0.0, not_before - time.monotonic()))
    errors = _compile_beside(form, checkpoint, library)
    if not library.exists():
        failed.write_text(errors, encoding="utf-8")
        raise RuntimeError(f"the compiler failed, see {failed}")
    for file in folder.iterdir():  # of models, versions and machines that are no more
        if file.is_file() and file.stat().st_mtime < time.time() - _KEPT_SECONDS:
            file.unlink(missing_ok=True)
    return library


def _compile_beside(form: Form, checkpoint: Path, library: Path) -> str:
    """Write a library, in a process that ends with this one; what it says of its errors."""
    with subprocess.Popen(
        [sys.executable, "-m", "dgemma_engine.compiling", form.value, checkpoint, library],
        stdin=subprocess.PIPE,  # its end tells the process that this one is gone
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as compiler:
        assert compiler.stderr is not None
        errors = compiler.stderr.read()
        compiler.wait()
    return errors.decode("utf-8", "replace")


def _private_folder() -> Path:
    """Where libraries are kept, in the user's cache: what others can write is not loaded."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dgemma-lsp" / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise RuntimeError(f"{folder} is not only yours to write")
    return folder


def _key(checkpoint: Path) -> str:
    """Of all that the compiled code depends on: weights, our code, torch, this CPU."""
    digest = hashlib.sha256(f"{torch.__version__} {sys.version} {_cpu()}".encode())
    sources = [
        file
        for package in (Path(__file__).parent, Path(dgemma_kernels.__file__).parent)
        for file in package.rglob("*.py")
    ]
    for file in (*sorted(sources), checkpoint / "config.json", *sorted(tensor_files(checkpoint))):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """The CPU and what it can do, where the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return f"{torch.backends.cpu.get_cpu_capability()} {sorted(own)}"
