"""One timing slot a device: whoever times waits for whoever is timing, across processes and users."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
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
        self._waiting: threading.Thread | None = None

    def acquire(self, limit_s: float | None = None) -> bool:
        """Wait until the device is free; False: it is not free yet, and the next call goes on waiting.

        Who waits keeps its place in the queue between calls.

        Args:
            limit_s: seconds; None: however long it takes.

        Raises:
            RunError: no folder takes a lock.
        """
        if self._waiting is None:
            self._handle = self._open()
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self._waiting = threading.Thread(target=fcntl.flock, args=(self._handle, fcntl.LOCK_EX), daemon=True)
            self._waiting.start()
        self._waiting.join(limit_s)
        if self._waiting.is_alive():
            return False
        self._waiting = None
        return True

    def release(self) -> None:
        """Give the lock back; does nothing if it isn't held."""
        if self._waiting is not None:  # a lock that is still waited for can't be given up: closed under it, it would be kept
            self._waiting.join()
            self._waiting = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> int | None:
        """The process that has the lock which this one waits for; None: the system doesn't tell."""
        if self._handle is None:
            return None
        inode = os.fstat(self._handle).st_ino
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()  # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
                if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                    return int(words[4])
        return None

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
