"""The process in which candidates run.

A runtime may crash, hang or eat all memory on a candidate; here that ends this process and not the search. It
imports no torch, so it starts in a fraction of a second. Commands come in as JSON lines on stdin, answers go out
as JSON lines on what was stdout; anything that a library prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hwprune import runtimes
from hwprune.latency import paired
from hwprune.runtimes import Runner


class Worker:
    """Holds the loaded models by key."""

    def __init__(self) -> None:
        self._runners: dict[str, Runner] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; an exception becomes an answer."""
        try:
            result: dict[str, Any] = getattr(self, f"do_{command['op']}")(**command["with"])
        except MemoryError:
            return {"error": "out of memory"}
        except Exception as error:  # runtimes raise their own types; all of them are the candidate's failure
            text = str(error).strip().splitlines() or [""]
            return {"error": f"{type(error).__name__}: {text[0]}"}
        return {"result": result}

    def do_load(self, key: str, path: str, runtime: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        self._runners.pop(key, None)
        self._runners[key] = runtimes.get(runtime).load(Path(path), threads, options)
        return {}

    def do_drop(self, key: str) -> dict[str, Any]:
        self._runners.pop(key, None)
        return {}

    def do_run(self, key: str, samples: str, out: str) -> dict[str, Any]:
        """Run every batch of a samples file; outputs go to ``out``."""
        runner = self._runners[key]
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for number, inputs in read_batches(samples):
                for position, array in enumerate(runner.run(inputs)):
                    with archive.open(f"{number}.{position:03d}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
        return {}

    def do_pair(self, a: str, b: str, samples: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Time ``a`` against ``b`` on the first batch of a samples file."""
        _, inputs = next(iter(read_batches(samples)))
        result = paired.measure(self._runners[a].bind(inputs), self._runners[b].bind(inputs), paired.Settings(**settings))
        return result.to_json()


def read_batches(path: str) -> Iterator[tuple[str, list[np.ndarray[Any, Any]]]]:
    """(batch number, its inputs) of an evaluation samples file."""
    with np.load(path, allow_pickle=False) as stored:
        names: dict[str, list[str]] = {}
        for name in sorted(stored.files):
            number, _, kind = name.partition(".")
            if kind.startswith("input"):
                names.setdefault(number, []).append(name)
        for number, members in names.items():
            yield number, [stored[member] for member in members]


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere end of input ends the worker
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _limit_memory(limit: int) -> None:
    """Limit the data of this process (heap and private mappings), so that a candidate gets MemoryError and not the machine."""
    if limit and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    _die_with_parent()
    _limit_memory(int(os.environ.get("HWPRUNE_MEMORY_LIMIT", "0")))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    print(json.dumps({"result": {"ready": os.getpid()}}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
