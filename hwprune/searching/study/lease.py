"""Who works on a trial: a heartbeat in the trial's system attributes, so that a dead worker's trial is given to another.

Optuna's own heartbeat exists only for database storages and inside `optimize`. A heartbeat here is a counter: whoever watches it
counts the silence on its own clock, so machines whose clocks differ or jump agree. On the same machine a process that is gone is
known to be dead at once, and one that is there is waited for longer: the machine may be so busy that nothing beats.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEASE = "hwprune:lease"
"""System attribute of a trial."""
SILENCE_S = 60.0
"""Without a heartbeat for so long, a worker counts as dead."""
HUNG_S = 600.0
"""A process of the same machine that has not beaten for so long is stopped or dead-locked. If it wakes up, it finds that its
trial was finished by another, and stores nothing."""
BEAT_S = 10.0


@functools.cache
def place() -> str:
    """Identifies the machine since it booted, and the process numbers' space in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return os.uname().nodename


def started(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def own(beat: int = 0) -> dict[str, Any]:
    """This process's lease."""
    return {"host": os.uname().nodename, "place": place(), "pid": os.getpid(), "started": started(os.getpid()), "beat": beat}


def same(a: dict[str, Any] | None, b: dict[str, Any] | None) -> bool:
    """Are two leases, at whatever beat, the same process's?"""
    keys = ("place", "pid", "started")
    return a is not None and b is not None and all(a.get(key) == b.get(key) for key in keys)


@dataclass(slots=True)
class Watch:
    """Judges leases.

    Args:
        silence_s: see `SILENCE_S`.
        clock: monotonic seconds.
        hung_s: see `HUNG_S`.
    """

    silence_s: float = SILENCE_S
    clock: Callable[[], float] = time.monotonic
    hung_s: float = HUNG_S
    _seen: dict[Hashable, tuple[Any, float]] = field(default_factory=dict)

    def alive(self, trial: Hashable, lease: dict[str, Any] | None) -> bool:
        """Is somebody working on the trial?"""
        patience = self.silence_s
        if lease is not None and lease.get("place") == place() and lease.get("pid"):
            if lease["pid"] == os.getpid() and lease.get("started") == started(os.getpid()):
                return True
            now = started(int(lease["pid"]))
            if now is None or now != lease.get("started"):
                return False
            patience = self.hung_s
        word = None if lease is None else (lease.get("place"), lease.get("pid"), lease.get("beat"))
        before = self._seen.get(trial)
        if before is None or before[0] != word:
            self._seen[trial] = (word, self.clock())
            return True
        return self.clock() - before[1] < patience


@contextlib.contextmanager
def beating(write: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Renew this process's lease while the block runs. A failing write is tried again at the next beat."""
    done = threading.Event()

    def run() -> None:
        beat = 0
        while not done.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(Exception):  # the storage may be away for a moment; the trial's own writes will tell
                write(own(beat))

    thread = threading.Thread(target=run, daemon=True, name="hwprune-lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
