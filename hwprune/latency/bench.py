"""The search's side of the worker process: start it, ask it, survive it; on this machine or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hwprune import runtimes
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency.host import Host, LocalHost
from hwprune.latency.micro import OWN
from hwprune.latency.paired import Paired, Settings, combine_one
from hwprune.latency.worker_process import BenchLimits, WorkerProcess
from hwprune.records.target import Target

Limits = BenchLimits
"""The name of earlier versions."""
SLOT_S = 3600.0
"""Seconds to wait until others have finished timing on the device."""
PATIENT_S = 2.0
"""Seconds of waiting after which it is told, and how often it is looked at again."""
Waiting = Callable[[str], None]
"""Told why a measurement has to wait; told nothing (an empty text) when it goes on."""


class Bench:
    """A worker process that measures on a target; it is started again after a crash.

    Models are known by key; ``load`` with the same key replaces one. After a crash everything that was loaded
    with ``keep=True`` (the dense model) is loaded again.
    """

    def __init__(
        self,
        target: Target,
        limits: BenchLimits | None = None,
        host: Host | None = None,
        shapes: Sequence[Sequence[int]] = (),
        waiting: Waiting = lambda _text: None,
    ) -> None:
        """Nothing is started before the first command.

        Args:
            host: where the process runs; default: here.
            shapes: of the inputs that are timed, for runtimes that compile for shapes.
            waiting: told when another process is timing on the device.
        """
        self._waiting = waiting
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
        self._process = WorkerProcess(self._host, target.threads, self._limits)
        self._kept: dict[str, Path] = {}
        self._places: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Is the process there? After a crash it is started again by the next command."""
        return self._process.alive

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

    def load(
        self, key: str, path: Path, *, keep: bool = False, threads: int | None = None, shapes: Sequence[Sequence[int]] = ()
    ) -> None:
        """Load a model; with ``keep`` again after a crash. Raises `CandidateFailure` (stage ``run``).

        ``threads``, ``shapes``: others than the target's (for outputs that are not timed) and those of all models.
        """
        self._awake()
        arguments = self._load_arguments(key, path)
        others = ({"threads": threads} if threads else {}) | ({"shapes": [list(x) for x in shapes]} if shapes else {})
        arguments["settings"] = {**self._settings, **others}
        self._convert("convert", {name: arguments[name] for name in ("path", "runtime", "settings")})
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

    def pair(self, a: str, b: str, samples: Path, settings: Settings, samples_of_b: Path | None = None) -> Paired:
        """Paired latency of ``a`` (the candidate) and ``b`` (dense), alone on the device.

        Args:
            samples: inputs of the first batch of a samples file.
            samples_of_b: inputs of ``b``, where they have other shapes (a cache of fewer heads); default: the same.

        Raises:
            CandidateFailure: (stage ``measure``) it can't be run.
        """
        self._awake()
        arguments = {"a": a, "b": b, "samples": self._host.put(samples), "settings": settings.to_json()}
        if samples_of_b is not None:
            arguments["samples_of_b"] = self._host.put(samples_of_b)
        return Paired.from_json(self._exclusive("pair", {**arguments, "device": self._target.device}))

    def combine(self, parts: Mapping[str, Paired]) -> Paired:
        """One result of those of several targets; see `hwprune.latency.fleet`."""
        return combine_one(parts)

    def varying(self, systems: Mapping[str, Any], samples: Path, count: int, limit_s: float) -> dict[str, list[float]]:
        """Seconds of ``count`` single examples on each system (see `hwprune.latency.varying`), within about ``limit_s``.

        ``systems``: name -> ``steps`` (keys of one loaded model, or of two) and ``decision`` (of two).
        """
        self._awake()
        more = {"samples": self._host.put(samples), "count": count, "clock": self.clock, "limit_s": limit_s}
        return dict(self._exclusive("varying", {"systems": dict(systems), **more}, self._limits.seconds + 3 * limit_s)["seconds"])

    def profile(self, key: str, samples: Path, runs: int = 20) -> list[dict[str, Any]]:
        """Times of a loaded model's operators, by the runtime's own profiler; empty if it has none."""
        self._awake()
        answer = self._exclusive("profile", {"key": key, "samples": self._host.put(samples), "runs": runs})
        operators: list[dict[str, Any]] = answer["operators"]
        return operators

    def micro(self, folder: Path, pieces: Sequence[str], rounds: int) -> dict[str, Any]:
        """Times of small models in a folder; see `hwprune.latency.worker.Worker.do_micro`."""
        self._awake()
        place = self._host.put(folder)
        for piece in (*OWN, *pieces) if self._runtime.convert_s else ():
            self._convert("convert_piece", {"folder": place, "piece": piece, "runtime": self._target.runtime})
        arguments = {
            "folder": place, "pieces": list(pieces), "runtime": self._target.runtime,
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

    def _convert(self, operation: str, arguments: Mapping[str, Any]) -> None:
        """Make a runtime's own format of a file, if it has one: outside the timing slot, and with a limit of its own.

        Raises:
            CandidateFailure: (stage ``convert``) the converter refuses it.
        """
        if self._runtime.convert_s:
            self._ask("convert", operation, arguments, self._limits.seconds + self._runtime.convert_s)

    def _exclusive(self, operation: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """One command while nobody else times on the device; waiting does not count as the candidate's time."""
        device = {"device": self._target.device}
        self._acquire()
        try:
            answer = self._ask("measure", operation, arguments, limit)
        except CandidateFailure:
            if self.alive:
                self._ask("measure", "release", device)
            raise
        except BaseException:  # Ctrl-C: the answer is still to come, and would be taken for the next one's
            self.close()
            raise
        self._ask("measure", "release", device)
        return answer

    def _acquire(self) -> None:
        """Get the device's timing slot. Raises `CandidateFailure`: others have kept it for an hour."""
        deadline, told = time.monotonic() + SLOT_S, False
        while True:
            arguments = {"device": self._target.device, "limit_s": PATIENT_S, "again": told}
            answer = self._ask("measure", "acquire", arguments)
            if answer["held"]:
                break
            holder = f"process {answer['holder']}" if answer["holder"] else "another process"
            self._waiting(f"waiting for {holder}, which is timing on {self._target.device}")
            told = True
            if time.monotonic() > deadline:
                self.close()
                raise CandidateFailure("measure", f"{holder} has been timing on {self._target.device} for an hour")
        if told:
            self._waiting("")

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _load_arguments(self, key: str, path: Path) -> dict[str, Any]:
        return {"key": key, "path": self._host.put(path), "runtime": self._target.runtime, "settings": self._settings}

    def _awake(self) -> None:
        """Start the process if it is not there, and load again what is to stay."""
        if self.alive:
            return
        try:
            self._process.start()
            self._places.clear()
            for key, path in self._kept.items():
                self._process.ask("run", "load", self._load_arguments(key, path))
        except CandidateFailure as failure:
            raise RunError(f"the measuring process can't start or load the dense model: {failure.reason}") from failure

    def _ask(self, stage: str, operation: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        self._awake()
        return self._process.ask(stage, operation, arguments, limit)
