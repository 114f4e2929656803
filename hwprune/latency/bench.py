"""The search's side of the worker process: start it, ask it, survive it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hwprune.errors import CandidateFailure, RunError
from hwprune.latency.paired import Settings
from hwprune.target import Target


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command of a candidate may take: wall seconds, and bytes of the worker's data (0: no limit)."""

    seconds: float = 120.0
    memory: int = 0


class Bench:
    """A worker process that measures on a target; it is started again after a crash.

    Models are known by key; ``load`` with the same key replaces one. After a crash everything that was loaded
    with ``keep=True`` (the dense model) is loaded again.
    """

    def __init__(self, target: Target, limits: Limits | None = None) -> None:
        self._target = target
        self._limits = limits or Limits()
        self._process: subprocess.Popen[str] | None = None
        self._stderr: Any = None
        self._buffer = b""
        self._kept: dict[str, Path] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- commands ----------------------------------------------------------------------------

    def load(self, key: str, path: Path, keep: bool = False) -> None:
        """Load a model. Raises `CandidateFailure` (stage ``run``)."""
        self._ask("run", "load", self._load_arguments(key, path))
        if keep:
            self._kept[key] = path

    def drop(self, key: str) -> None:
        self._ask("run", "drop", {"key": key})

    def run(self, key: str, samples: Path, out: Path) -> None:
        """Run every batch of ``samples``; outputs go to ``out``. Raises `CandidateFailure` (stage ``run``)."""
        self._ask("run", "run", {"key": key, "samples": str(samples), "out": str(out)})

    def pair(self, a: str, b: str, samples: Path, settings: Settings) -> dict[str, Any]:
        """Paired latency, as `Paired.to_json`. Raises `CandidateFailure` (stage ``measure``)."""
        arguments = {"a": a, "b": b, "samples": str(samples), "settings": settings.to_json()}
        return self._ask("measure", "pair", arguments)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._stderr.close()
        self._process = None

    # -- the process -------------------------------------------------------------------------

    def _load_arguments(self, key: str, path: Path) -> dict[str, Any]:
        return {
            "key": key,
            "path": str(path),
            "runtime": self._target.runtime,
            "threads": self._target.threads,
            "options": dict(self._target.options),
        }

    def _ask(self, stage: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._exchange(stage, operation, arguments)

    def _start(self) -> None:
        self.close()
        root = str(Path(__file__).resolve().parents[2])
        threads = str(self._target.threads)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "HWPRUNE_MEMORY_LIMIT": str(self._limits.memory),
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hwprune.latency.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the search; it ends the worker itself
        )
        try:
            self._receive("run")
            for key, path in self._kept.items():
                self._exchange("run", "load", self._load_arguments(key, path))
        except CandidateFailure as failure:
            raise RunError(f"the measuring process can't start or load the dense model: {failure.reason}") from failure

    def _exchange(self, stage: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CandidateFailure(stage, self._obituary()) from None
        answer = self._receive(stage)
        if "error" in answer:
            raise CandidateFailure(stage, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, stage: str) -> dict[str, Any]:
        """The next answer line, or a `CandidateFailure` when time is up or the process died."""
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + self._limits.seconds
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.close()
                    raise CandidateFailure(stage, f"took longer than {self._limits.seconds:g} s")
                chunk = os.read(pipe, 1 << 16)
                if not chunk:
                    raise CandidateFailure(stage, self._obituary())
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _obituary(self) -> str:
        """Why the process died; it is cleared away."""
        assert self._process is not None
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code < 0:
            name = signal.Signals(-code).name
            text = f"the measuring process was killed by {name}"
            if -code == signal.SIGKILL:
                text += " (by the system, when memory ran out?)"
        else:
            text = f"the measuring process ended with exit code {code}"
        limit = f"; its memory limit is {self._limits.memory} bytes" if self._limits.memory else ""
        return f"{text}{limit}{': ' + lines[-1] if lines else ''}"
