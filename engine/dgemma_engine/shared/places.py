"""Where shared engines are found, and that nobody else can get there.

One folder of the user's own holds, for each combination of model, device and number format, a
socket, the locks of who holds it and who starts it, and a log. Nothing here talks to an engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import stat
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import EngineUnavailable
from .wire import PROTOCOL

HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and sys.platform != "win32"
_HAS_OWNERS = hasattr(os, "geteuid")
# The kernel's limit on the path of a socket, its ending included: 108 on Linux, 104 on macOS.
_LONGEST_SOCKET_PATH = 103
_LOG_BYTES = 1 << 20  # a longer log becomes the old one when an engine starts


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one shared engine, in a private folder; `name` tells engines apart."""

    folder: Path
    name: str

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.sock"

    @property
    def address(self) -> Path:
        """Port and token, where there is no Unix socket."""
        return self.folder / f"{self.name}.tcp"

    @property
    def held(self) -> Path:
        """Locked by the engine as long as it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def starting(self) -> Path:
        """Locked by the client that starts an engine."""
        return self.folder / f"{self.name}.starting"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def http(self) -> Path:
        """The address where it speaks HTTP, if it does."""
        return self.folder / f"{self.name}.http"

    @property
    def http_token(self) -> Path:
        """What a tool has to know to speak HTTP with any of this user's engines."""
        return self.folder / "http-token"

    def open_log(self) -> IO[bytes]:
        """The log, to append to."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.old"))
        return open(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def absolute_model(model: str) -> str:
    """A checkpoint folder as every process names it, whatever folder it runs in."""
    return model if model == "default" else str(Path(model).expanduser().resolve())


def place_of(
    model: str, device: str = "auto", dtype: str = "auto", quantization: str | None = None
) -> Place:
    """Where the shared engine of this model, device and number format is, or would be.

    Raises:
        EngineUnavailable: the folder is not private, or its path too long for a socket.
    """
    key = json.dumps([PROTOCOL, absolute_model(model), device, dtype, quantization])
    place = Place(private_folder(), hashlib.sha256(key.encode()).hexdigest()[:16])
    if HAS_UNIX_SOCKETS and len(os.fsencode(place.socket)) > _LONGEST_SOCKET_PATH:
        raise EngineUnavailable(
            f"{place.socket} is too long for a socket ({_LONGEST_SOCKET_PATH} bytes); set "
            "XDG_RUNTIME_DIR to a shorter folder of your own"
        )
    return place


def private_folder() -> Path:
    """The user's own folder for sockets, made if need be.

    It is in XDG_RUNTIME_DIR, else in the user's cache.

    Raises:
        EngineUnavailable: it belongs to somebody else, others can open or replace it, or it cannot
            be made.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        folder = Path(runtime) / "dgemma-lsp"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "dgemma-lsp" / "run"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "dgemma-lsp" / "run"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _check_private(folder)
    except OSError as error:
        raise EngineUnavailable(
            f"{folder} cannot be used for the shared engine's socket ({error.strerror})"
        ) from error
    return folder


def _check_private(folder: Path) -> None:
    if not _HAS_OWNERS:  # Windows: the folder is in the user's profile
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _not_private(folder, "is not a folder")
    if found.st_uid != os.geteuid():
        raise _not_private(folder, f"belongs to another user (id {found.st_uid})")
    if found.st_mode & 0o077:
        raise _not_private(folder, f"can be opened by others (mode {found.st_mode & 0o777:o})")
    above = folder.parent.stat()
    is_shared = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if above.st_uid not in (0, os.geteuid()) or is_shared:
        raise _not_private(folder.parent, "lets others replace what is in it")


def _not_private(folder: Path, why: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"{folder} {why}; the shared engine reads your code and needs a folder of your own: "
        f"remove it, or run chmod 700 {folder}"
    )


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a Unix socket; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or connection.family != socket.AF_UNIX:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return int(uid)


def is_own(uid: int | None) -> bool:
    """Whether a peer is this user, as far as the system tells."""
    return uid is None or uid == os.geteuid()


def write_private(path: Path, text: str) -> None:
    """Put a file in its place that nobody else can read."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


class FileLock:
    """A lock that ends with its process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Whether it was to be had within `timeout` seconds."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        end = time.monotonic() + timeout
        while not _lock(descriptor):
            if time.monotonic() >= end:
                os.close(descriptor)
                return False
            time.sleep(0.02)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let it go; the file stays, for who waits has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
