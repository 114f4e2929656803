"""One timing slot a device: whoever times waits for whoever is timing, across processes and users."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from hwprune.common.files import cache_folder
from hwprune.errors import RunError

FOLDERS = ("/run/lock", "/dev/shm", "/tmp")  # noqa: S108 - shared by all users on purpose; nothing is read from the file
"""The places of locks: folders that every process of the machine sees, whatever its TMPDIR."""


class Slot:
    """An exclusive lock on a file; the system releases it when the process ends, however it ends."""

    def __init__(self, device: str, folders: Sequence[str | Path] = FOLDERS) -> None:
        safe = "".join(letter if letter.isalnum() else "-" for letter in device)
        self._paths = [Path(folder) / f"hwprune-timing-{safe}.lock" for folder in (*folders, cache_folder())]
        self._handle: int | None = None

    def acquire(self) -> None:
        """Wait until the device is free. Raises `RunError` if no folder takes a lock."""
        handle = self._open()
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle

    def release(self) -> None:
        """Give the lock back; does nothing if it isn't held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        for path in self._paths:
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | flags)  # another user's file can be locked too
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_RDONLY | os.O_CREAT | flags, 0o666)
                with contextlib.suppress(OSError):
                    os.fchmod(handle, 0o666)  # whatever the umask: others must be able to lock it
                return handle
        raise RunError(f"no file can be locked for timing; tried {', '.join(str(path.parent) for path in self._paths)}")
