"""The search's side of the worker process: start it, ask it, survive it; on this machine or another."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hwprune import runtimes
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency.host import Host, LocalHost
from hwprune.latency.paired import Paired, Settings
from hwprune.records.target import Target
from hwprune.version import VERSION

START_S = 120.0
"""How long the process may take to start; more than any candidate's step on a loaded machine."""
SLOT_S = 3600.0
"""How long to wait until others have finished timing on the device."""


@dataclass(frozen=True, slots=True)
class BenchLimits:
    """What one command of a candidate may take: wall seconds, and bytes of the worker's data (0: no limit)."""

    seconds: float = 120.0
    memory: int = 0


class Bench:
    """A worker process that measures on a target; it is started again after a crash.

    Models are known by key; ``load`` with the same key replaces one. After a crash everything that was loaded
    with ``keep=True`` (the dense model) is loaded again.
    """

    def __init__(
        self, target: Target, limits: BenchLimits | None = None, host: Host | None = None, shapes: Sequence[Sequence[int]] = ()
    ) -> None:
        """Nothing is started before the first command.

        Args:
            host: where the process runs; default: here.
            shapes: of the inputs that are timed, for runtimes that compile for shapes.
        """
        self._target = target
        self._limits = limits or BenchLimits()
        self._host = (host or LocalHost()).place()
        self._runtime = runtimes.get(target.runtime)
        self._settings: dict[str, Any] = {
            "threads": target.threads,
            "precision": target.precision,
            "options": dict(target.options),
            "shapes": [list(shape) for shape in shapes],
        }
        self._process: subprocess.Popen[str] | None = None
        self._stderr: Any = None
        self._buffer = b""
        self._kept: dict[str, Path] = {}
        self._places: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Is the process there? After a crash it is started again by the next command."""
        return self._process is not None and self._process.poll() is None

    @property
    def here(self) -> bool:
        """Does it run on this machine?"""
        return isinstance(self._host, LocalHost)

    @property
    def clock(self) -> str:
        """The clock that ranks on this target."""
        return self._runtime.clock(runtimes.RuntimeSettings(threads=self._target.threads, options=self._target.options))

    # -- the machine -------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """``missing``: why the target can't be measured there; ``isa`` and ``saturates``: see `hwprune.latency.fingerprint`.

        Raises:
            RunError: the process can't be started.
        """
        return self._ask("run", "check", {"target": self._target.to_json()})

    def identity(self) -> dict[str, Any]:
        """See `hwprune.latency.fingerprint.identity`; of the machine that measures."""
        return self._ask("run", "identity", {"target": self._target.to_json()})

    def conditions(self) -> dict[str, Any]:
        return self._ask("run", "conditions", {"device": self._target.device})

    # -- models ------------------------------------------------------------------------------

    def load(self, key: str, path: Path, keep: bool = False, threads: int | None = None) -> None:
        """Load a model. Raises `CandidateFailure` (stage ``run``).

        Args:
            keep: load it again after a crash.
            threads: others than the target's, for outputs that are not timed.
        """
        self._awake()
        arguments = self._load_arguments(key, path)
        if threads is not None:
            arguments["settings"] = {**self._settings, "threads": threads}
        self._ask("run", "load", arguments)
        before, self._places[key] = self._places.get(key), arguments["path"]
        if keep:
            self._kept[key] = path
        if before is not None and before not in self._places.values() and self._host.forget(before):
            self._ask("run", "forget", {"path": before})

    def drop(self, key: str) -> None:
        self._ask("run", "drop", {"key": key})
        place = self._places.pop(key, None)
        if place is not None and place not in self._places.values() and self._host.forget(place):
            self._ask("run", "forget", {"path": place})

    def prepare(self) -> None:
        """Load the runtime's library, so that memory measured later is the model's."""
        self._ask("run", "prepare", {"runtime": self._target.runtime})

    def run(self, key: str, samples: Path, out: Path, first: int = 0, last: int | None = None, chunk: int = 0) -> None:
        """Run the batches [first, last) of ``samples``; outputs go to ``out``.

        Args:
            chunk: examples run at a time; 0: a whole batch.

        Raises:
            CandidateFailure: (stage ``run``) it crashed, or the batches can't be run in parts.
        """
        self._awake()
        remote = self._host.out(out)
        part = {"first": first, "last": last, "chunk": chunk}
        self._ask("run", "run", {"key": key, "samples": self._host.put(samples), "out": remote, **part})
        self._host.get(remote, out)

    def facts(self, key: str) -> dict[str, Any]:
        """What the runtime made of a loaded model (provider, kernels)."""
        return self._ask("run", "facts", {"key": key})

    # -- numbers -----------------------------------------------------------------------------

    def pair(self, a: str, b: str, samples: Path, settings: Settings) -> Paired:
        """Paired latency of ``a`` (the candidate) and ``b`` (dense), alone on the device.

        Raises:
            CandidateFailure: (stage ``measure``) it can't be run.
        """
        self._awake()
        arguments = {"a": a, "b": b, "samples": self._host.put(samples), "settings": settings.to_json()}
        return Paired.from_json(self._exclusive("pair", {**arguments, "device": self._target.device}))

    def profile(self, key: str, samples: Path, runs: int = 20) -> list[dict[str, Any]]:
        """Times of a loaded model's operators, by the runtime's own profiler; empty if it has none."""
        self._awake()
        answer = self._exclusive("profile", {"key": key, "samples": self._host.put(samples), "runs": runs})
        found: list[dict[str, Any]] = answer["operators"]
        return found

    def micro(self, folder: Path, pieces: Sequence[str], rounds: int) -> dict[str, Any]:
        """Times of small models in a folder; see `hwprune.latency.worker.Worker.do_micro`."""
        self._awake()
        arguments = {
            "folder": self._host.put(folder), "pieces": list(pieces), "runtime": self._target.runtime,
            "settings": self._settings, "clock": self.clock, "rounds": rounds,
        }  # fmt: skip
        return self._exclusive("micro", arguments)

    def memory(self, key: str, samples: Path) -> dict[str, Any]:
        """``loaded_bytes`` and ``peak_bytes`` of a loaded model, None where the system doesn't tell."""
        self._awake()
        return self._ask("measure", "memory", {"key": key, "samples": self._host.put(samples), "runtime": self._target.runtime})

    def energy(self, key: str, samples: Path) -> float | None:
        """Joules of one run of a loaded model, or None where nothing counts them."""
        self._awake()
        arguments = {"key": key, "samples": self._host.put(samples), "runtime": self._target.runtime}
        joules: float | None = self._exclusive("energy", arguments)["joules"]
        return joules

    def _exclusive(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One command while nobody else times on the device; waiting does not count as the candidate's time."""
        device = {"device": self._target.device}
        self._ask("measure", "acquire", device, SLOT_S)
        try:
            answer = self._ask("measure", operation, arguments)
        except CandidateFailure:
            if self.alive:
                self._ask("measure", "release", device)
            raise
        except BaseException:  # Ctrl-C: the answer is still to come, and would be taken for the next one's
            self.close()
            raise
        self._ask("measure", "release", device)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._stderr.close()
        self._process = None

    # -- the process -------------------------------------------------------------------------

    def _load_arguments(self, key: str, path: Path) -> dict[str, Any]:
        return {"key": key, "path": self._host.put(path), "runtime": self._target.runtime, "settings": self._settings}

    def _awake(self) -> None:
        if not self.alive:
            self._start()

    def _ask(self, stage: str, operation: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        self._awake()
        return self._exchange(stage, operation, arguments, limit)

    def _start(self) -> None:
        self.close()
        command, environment = self._host.command(self._target.threads, self._limits.memory)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._buffer = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the search; it ends the worker itself
        )
        try:
            version = self._greeting()
            if version != VERSION:
                self.close()
                raise UsageError(f"{self._host.label} has hwprune {version}, this is {VERSION}: both must be the same")
            self._host.started(lambda: str(self._exchange("run", "folder", {})["folder"]))
            self._places.clear()
            for key, path in self._kept.items():
                self._exchange("run", "load", self._load_arguments(key, path))
        except CandidateFailure as failure:
            raise RunError(f"the measuring process can't start or load the dense model: {failure.reason}") from failure

    def _greeting(self) -> str:
        """The worker's version. What a login prints before is skipped."""
        for _ in range(1000):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return str(self._receive("run", START_S)["result"]["version"])
        self.close()
        raise RunError(f"{self._host.label} answers, but not as hwprune does")

    def _exchange(self, stage: str, operation: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CandidateFailure(stage, self._obituary()) from None
        answer = self._receive(stage, limit or self._limits.seconds)
        if "error" in answer:
            raise CandidateFailure(stage, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, stage: str, limit: float) -> dict[str, Any]:
        """The next answer line, or a `CandidateFailure` when time is up or the process died."""
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self.close()
                    raise CandidateFailure(stage, f"took longer than {limit:g} s")
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
        if better := self._host.why_dead(code, lines[-1] if lines else ""):
            raise RunError(better)
        if code < 0:
            name = signal.Signals(-code).name
            text = f"the measuring process was killed by {name}"
            if -code == signal.SIGKILL:
                text += " (by the system, when memory ran out?)"
        else:
            text = f"the measuring process ended with exit code {code}"
        limit = f"; its memory limit is {self._limits.memory} bytes" if self._limits.memory else ""
        return f"{text}{limit}{': ' + lines[-1] if lines else ''}"
