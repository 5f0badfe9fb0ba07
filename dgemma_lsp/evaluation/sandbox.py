"""Run a program that a model wrote, in a process that can do little.

A child process with its own empty folder, isolated from the user's environment and packages, with
limits on time, memory, file size and processes; without a network where the system lets an ordinary
user take it away. It keeps an honest mistake from doing harm. It is no wall against malice: whoever
runs unknown models' code on data that matters puts a container around all of this.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_MEMORY_BYTES = 1 << 30
_FILE_BYTES = 1 << 20

# Sets the limits in the child itself: code between fork and exec is not safe beside threads.
_GUARD = """
import sys
path, seconds, memory, file_size = sys.argv[1], *map(int, sys.argv[2:])
try:
    import resource
    for name, limit in (("CPU", seconds + 1), ("AS", memory), ("FSIZE", file_size), ("CORE", 0)):
        kind = getattr(resource, "RLIMIT_" + name)
        resource.setrlimit(kind, (limit, limit))
except ImportError:
    pass
with open(path, encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
"""


@cache
def network_guard() -> tuple[str, ...]:
    """The command that takes the network away, or nothing where there is none that works."""
    command = ("unshare", "--user", "--map-root-user", "--net")
    if shutil.which(command[0]) is None:
        return ()
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


def protections() -> str:
    """What guards a run on this machine, as a sentence."""
    guards = ["a process and a folder of its own", "a time limit"]
    if sys.platform != "win32":
        guards.append("limits on memory and file size")
    guards.append("no network" if network_guard() else "the network NOT taken away")
    return ", ".join(guards)


def passes(program: str, seconds: float = 10.0) -> bool:
    """Whether a program ends by itself, in time and without an error.

    Args:
        program: Python source.
        seconds: wall time, then it and its children are killed.
    """
    with tempfile.TemporaryDirectory(prefix="dgemma-eval-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8", errors="surrogatepass")
        limits = (max(1, round(seconds)), _MEMORY_BYTES, _FILE_BYTES)
        child = subprocess.Popen(
            [*network_guard(), sys.executable, "-I", "-c", _GUARD, path, *map(str, limits)],
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": folder, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return child.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and all that it started."""
    try:
        if sys.platform == "win32":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
