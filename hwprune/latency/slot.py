"""One timing slot a device: whoever times waits for whoever is timing, across processes and users."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


class Slot:
    """An exclusive lock on a file; the system releases it when the process ends, however it ends."""

    def __init__(self, device: str, folder: Path | None = None) -> None:
        safe = "".join(letter if letter.isalnum() else "-" for letter in device)
        self._path = (folder or Path(tempfile.gettempdir())) / f"hwprune-timing-{safe}.lock"
        self._handle: int | None = None

    def acquire(self) -> None:
        """Wait until the device is free."""
        handle = self._open()
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle

    def release(self) -> None:
        """Does nothing if it isn't held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # another user's file can be locked too
        return handle
