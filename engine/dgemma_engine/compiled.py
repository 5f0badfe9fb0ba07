"""The encoder's pass over one token, compiled for this CPU: left to right is made of these.

In PyTorch it is some thousand operations, each too short to be worth its call. A process of its own
compiles it (`compiling.py`), once for a machine and a model; here it is loaded, held against the
plain pass, and taken from then on. Until then, and wherever that fails, the plain pass runs.
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
# Compiling takes 40 s of one core, at low priority: a fill or two are not worth it.
_WAIT_SECONDS = 20.0
_KEPT_SECONDS = 30 * 86400.0  # libraries that nobody loads any more; 18 MB each
# A larger model's pass is its matrices, and the library holds its weights a second time.
_MOST_PARAMETERS = 16_000_000
# Of the prefix: code for any number of tokens is not code for 0 or 1.
LEAST_TOKENS = 2
_SAMPLE_LENGTHS = (LEAST_TOKENS, 37, 600)
_LARGEST_DIFFERENCE = 1e-3  # of logits, which are within +-30; 1e-5 was measured


class CompiledStep:
    """`DiffusionGemma.next_token_logits` of one token, from a shared library.

    Args:
        library: as `compiling.py` wrote it on this machine.
        num_layers: of the model it was written for.
    """

    def __init__(self, library: Path, num_layers: int) -> None:
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run
        self._num_layers = num_layers

    def fits(self, token_ids: Tensor, cache: KVCache) -> bool:
        """Whether it is for so many tokens, and so long a prefix."""
        return tuple(token_ids.shape) == (1, 1) and cache.length >= LEAST_TOKENS

    def __call__(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """See `DiffusionGemma.next_token_logits`; the arguments are checked, and fit."""
        layers = range(self._num_layers)
        held = [cache.prefix(index, cache.length, 1) for index in layers]
        inputs = [token_ids, torch.tensor(cache.length)]
        inputs += [part.contiguous() for each in zip(*held, strict=True) for part in each]
        logits, *new = self._run(inputs)
        for index in layers:
            cache.write(index, new[index], new[index + self._num_layers])
        cache.advance(1)
        return logits


def compile_in_background(
    model: DiffusionGemma, checkpoint: Path, wait_seconds: float = _WAIT_SECONDS
) -> threading.Thread | None:
    """Give a model its `CompiledStep` when it is there: soon if it was compiled before.

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
    try:
        library = _library(checkpoint, wait_seconds)
        step = CompiledStep(library, len(model.layers))
        difference = largest_difference(model, step)
        if not difference <= _LARGEST_DIFFERENCE:
            library.unlink()
            raise RuntimeError(f"the compiled logits are off by {difference:.1e}")
    except Exception as error:  # whatever a compiler or a loader may come to
        _log.info("left to right is not compiled: %s", error)
        return
    model.compiled_step = step
    _log.info("left to right is compiled; its logits are off by %.0e at most", difference)


def largest_difference(model: DiffusionGemma, step: CompiledStep) -> float:
    """Between the plain pass and the compiled one, of logits and of the keys and values written.

    Args:
        model: which does not take the step yet.
        step: of the model.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for length in _SAMPLE_LENGTHS:
        if length >= model.config.max_position_embeddings:
            continue
        token_ids = torch.randint(model.config.vocab_size, (1, length + 1), generator=generator)
        found: list[list[Tensor]] = []
        for form in (None, step):
            cache = model.prefill(token_ids[:, :-1])
            token_id = token_ids[:, -1:]
            logits = (form or model.next_token_logits)(token_id, cache)
            last = [cache.prefix(index, length + 1, 1) for index in range(len(model.layers))]
            found.append([logits, *(part[:, :, -1] for pair in last for part in pair)])
        for plain, compiled in zip(*found, strict=True):
            largest = max(largest, float((plain - compiled).abs().nan_to_num(torch.inf).max()))
    return largest


def _library(checkpoint: Path, wait_seconds: float) -> Path:
    """The compiled pass of a checkpoint; compiled now if it was not before."""
    folder = _private_folder()
    library = folder / f"{_key(checkpoint)}.so"
    failed = library.with_suffix(".failed")
    if library.exists():
        os.utime(library)
        return library
    if failed.exists():
        raise RuntimeError(f"it failed before, see {failed}")
    if not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))):
        raise RuntimeError("there is no C++ compiler")
    time.sleep(wait_seconds)
    errors = _compile_beside(checkpoint, library)
    if not library.exists():
        failed.write_text(errors, encoding="utf-8")
        raise RuntimeError(f"the compiler failed, see {failed}")
    for file in folder.iterdir():  # of models, versions and machines that are no more
        if file.is_file() and file.stat().st_mtime < time.time() - _KEPT_SECONDS:
            file.unlink(missing_ok=True)
    return library


def _compile_beside(checkpoint: Path, library: Path) -> str:
    """Write a library, in a process that ends with this one; what it says of its errors."""
    with subprocess.Popen(
        [sys.executable, "-m", "dgemma_engine.compiling", str(checkpoint), str(library)],
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
