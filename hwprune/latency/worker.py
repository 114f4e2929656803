"""The process in which candidates run, on this machine or, through ssh, on another.

A runtime may crash, hang or eat all memory on a candidate; here that ends this process and not the search. It
imports torch only for the runtimes that need it, so it starts in a fraction of a second. Commands come in as JSON lines on stdin,
answers go out as JSON lines on what was stdout; anything that a library prints goes to stderr.
One file because every command is a method of the one object that holds the loaded models.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwprune import runtimes
from hwprune.common.files import cache_folder
from hwprune.errors import described
from hwprune.latency import energy, fingerprint, micro, paired, sensors, varying
from hwprune.latency.availability import missing
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.device_lock import Slot
from hwprune.latency.micro import OWN
from hwprune.latency.samples import read_batches
from hwprune.records.target import Target
from hwprune.runtimes import Runner
from hwprune.version import VERSION

OWN_FAILED = "the runtime can't run the reference"
ENERGY_S = 1.0  # seconds for which a model runs while its energy is counted


class Worker:
    """Holds the loaded models by key. Commands are the methods ``do_...``."""

    def __init__(self) -> None:
        self._runners: dict[str, Runner] = {}
        self._loaded_bytes: dict[str, int | None] = {}
        self._before_bytes: dict[str, int | None] = {}
        self._slots: dict[str, Slot] = {}
        self._folder: Path | None = None
        self._own: dict[str, dict[str, paired.Timed]] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; an exception becomes an answer."""
        try:
            result: dict[str, Any] = getattr(self, f"do_{command['op']}")(**command["with"])
        except MemoryError:
            return {"error": "out of memory"}
        except Exception as error:  # runtimes raise their own types; all of them are the candidate's failure
            return {"error": described(error)}
        return {"result": result}

    # -- the machine -------------------------------------------------------------------------

    def do_check(self, target: dict[str, Any]) -> dict[str, Any]:
        """Why the target can't be measured here (an empty list: it can), and what is here."""
        return {"missing": missing(Target.from_json(target)), "isa": fingerprint.isa(), "saturates": fingerprint.saturates()}

    def do_identity(self, target: dict[str, Any]) -> dict[str, Any]:
        return fingerprint.identity(Target.from_json(target))

    def do_conditions(self, device: str) -> dict[str, Any]:
        return fingerprint.conditions(device)

    def do_prepare(self, runtime: str) -> dict[str, Any]:
        """Load the runtime's library, so that memory measured later is the model's."""
        runtimes.get(runtime).prepare()
        return {}

    def do_forget(self, path: str) -> dict[str, Any]:
        """Delete what was brought for a model that is not needed any more; only inside the folder of `do_folder`."""
        place = Path(path).resolve().parent
        if self._folder is not None and place.parent == self._folder.resolve():
            shutil.rmtree(place, ignore_errors=True)
        return {}

    def do_folder(self) -> dict[str, Any]:
        """A folder for files that another machine brings; it goes with this process."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="hwprune-bench-"))
        return {"folder": str(self._folder)}

    def do_acquire(self, device: str, limit_s: float | None = None, *, again: bool = False) -> dict[str, Any]:
        """Wait for the device's timing slot; ``held``: is it there now? ``holder``: the process that has it.

        ``again``: the last call has not got it, and this one goes on waiting.
        """
        slot = self._slots.setdefault(device, Slot(device))
        if not again:
            slot.release()
        held = slot.acquire(limit_s)
        return {"held": held, "holder": None if held else slot.holder()}

    def do_release(self, device: str) -> dict[str, Any]:
        if device in self._slots:
            self._slots[device].release()
        return {}

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- models ------------------------------------------------------------------------------

    def do_load(self, key: str, path: str, runtime: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Load a model; what the runtime made of it."""
        self._runners.pop(key, None)
        before = self._memory(runtime)
        self._runners[key] = _load(path, runtime, settings)
        self._loaded_bytes[key] = _difference(self._memory(runtime), before)
        self._before_bytes[key] = before
        return {}

    def do_convert(self, path: str, runtime: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Make what the runtime loads of a file, where it has a format of its own: before the device's slot is taken."""
        runtimes.get(runtime).convert(Path(path), _shapes(settings))
        return {}

    def do_convert_piece(self, folder: str, piece: str, runtime: str) -> dict[str, Any]:
        """The same for one of the small models of `do_micro`; what can't be converted is told there."""
        if piece in OWN and any(piece in own for name, own in self._own.items() if json.loads(name)[0] == runtime):
            return {}  # they are the same in every folder
        _, inputs = next(iter(read_batches(f"{folder}/{piece}.npz")))
        with contextlib.suppress(RuntimeError):
            runtimes.get(runtime).convert(Path(folder) / f"{piece}.onnx", tuple(array.shape for array in inputs))
        return {}

    def do_facts(self, key: str) -> dict[str, Any]:
        return self._runners[key].facts()

    def do_drop(self, key: str) -> dict[str, Any]:
        self._runners.pop(key, None)
        return {}

    def do_run(self, key: str, samples: str, out: str, first: int = 0, last: int | None = None, chunk: int = 0) -> dict[str, Any]:
        """Run the batches [first, last) of a samples file, ``chunk`` examples at a time (0: a batch); outputs go to ``out``."""
        runner = self._runners[key]
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for number, inputs in itertools.islice(read_batches(samples), first, last):
                for position, array in enumerate(_in_chunks(runner, inputs, chunk)):
                    with archive.open(f"{number}.{position:03d}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
        return {}

    # -- numbers -----------------------------------------------------------------------------

    def do_pair(
        self, a: str, b: str, samples: str, settings: dict[str, Any], device: str = "cpu", samples_of_b: str = ""
    ) -> dict[str, Any]:
        """Time ``a`` against ``b`` on the first batch of a samples file, or each on one of its own."""
        inputs, others = (next(iter(read_batches(path)))[1] for path in (samples, samples_of_b or samples))
        before = fingerprint.conditions(device)
        result = paired.measure(_timed(self._runners[a], inputs), _timed(self._runners[b], others), paired.Settings(**settings))
        return result.with_conditions(
            machine=(after := fingerprint.conditions(device)), throttled=throttled(before, after)
        ).to_json()

    def do_varying(
        self, systems: dict[str, dict[str, Any]], samples: str, count: int, clock: str, limit_s: float
    ) -> dict[str, Any]:
        """Seconds of single examples on each system; see `hwprune.latency.varying`."""
        calls = {name: self._system(**system) for name, system in systems.items()}
        inputs = varying.drawn(read_batches(samples), count)
        return {"seconds": varying.measure(calls, inputs, clock, limit_s)}

    def _system(self, steps: Sequence[str], decision: dict[str, Any] | None = None) -> Callable[[Sequence[Any]], object]:
        """One call of a model, or of two of which the second runs where the first is not sure."""
        runners = [self._runners[key] for key in steps]
        if decision is None:
            return runners[0].run
        first, second = runners
        decide = ExitRule(decision)

        def both(inputs: Sequence[Any]) -> object:
            outputs = first.run(inputs)
            return outputs if decide.sure(outputs).all() else second.run(decide.passed(inputs, outputs))

        return both

    def do_profile(self, key: str, samples: str, runs: int) -> dict[str, Any]:
        """Times of the operators, by the runtime's own profiler."""
        _, inputs = next(iter(read_batches(samples)))
        return {"operators": [operator.to_json() for operator in self._runners[key].profile(inputs, runs)]}

    def do_micro(
        self, folder: str, pieces: Sequence[str], runtime: str, settings: dict[str, Any], clock: str, rounds: int
    ) -> dict[str, Any]:
        """Time the small models NAME.onnx with inputs NAME.npz of a folder against ``reference``; see `hwprune.latency.micro`.

        A piece that can't be loaded or run gets its error instead of a number.
        """
        own = self._own.setdefault(json.dumps([runtime, settings, _kind_of(folder)]), {})
        timed: dict[str, paired.Timed] = {}
        errors: dict[str, str] = {}
        for name in (*OWN, *pieces):
            if name in own:
                timed[name] = own[name]
                continue
            try:
                _, inputs = next(iter(read_batches(f"{folder}/{name}.npz")))
                shapes = [list(array.shape) for array in inputs]
                timed[name] = _timed(_load(f"{folder}/{name}.onnx", runtime, {**settings, "shapes": shapes}), inputs)
                if name in OWN:
                    own[name] = timed[name]
            except Exception as error:  # the piece's failure
                errors[name] = described(error)
        reference, *nothing = OWN
        call = next((timed[name] for name in nothing if name in timed), None)
        if reference not in timed or call is None:
            raise RuntimeError(f"{OWN_FAILED}: {errors.get(reference) or errors[nothing[-1]]}")
        names = [name for name in pieces if name in timed]
        results, reference_s, call_s = micro.measure([timed[name] for name in names], timed[reference], call, clock, rounds)
        return {
            "pieces": {name: [piece.ratio, piece.half_width] for name, piece in zip(names, results, strict=True)},
            "errors": {name: text for name, text in errors.items() if name not in OWN},
            "reference_s": reference_s,
            "call_s": call_s,
        }

    def do_memory(self, key: str, samples: str, runtime: str) -> dict[str, Any]:
        """Bytes that loading took, and the most while it ran beyond what was in use before, as far as the system tells.

        A GPU's library keeps what it once took, so there it is what is in use after the runs.
        """
        _, inputs = next(iter(read_batches(samples)))
        if not runtimes.get(runtime).in_process:
            return {"loaded_bytes": None, "peak_bytes": None}
        reset = sensors.reset_peak()
        runner = self._runners[key]
        for _ in range(3):
            runner.run(inputs)
        on_gpu = runtimes.get(runtime).device == "cuda"
        peak = sensors.gpu_memory_used() if on_gpu else sensors.peak_bytes() if reset else None
        return {"loaded_bytes": self._loaded_bytes.get(key), "peak_bytes": _difference(peak, self._before_bytes.get(key))}

    def do_energy(self, key: str, samples: str, runtime: str) -> dict[str, Any]:
        """Joules of one run, from the counter of the whole CPU package, board or GPU; None where there is none."""
        found = energy.counter(runtimes.get(runtime).device)
        if found is None:
            return {"joules": None}
        _, read = found
        _, inputs = next(iter(read_batches(samples)))
        call = self._runners[key].bind(inputs)
        before, start, runs = read(), time.monotonic(), 0
        while time.monotonic() - start < ENERGY_S:
            call()
            runs += 1
        after = read()
        if before is None or after is None or after < before:  # the device fell silent, or its counter began anew
            return {"joules": None}
        return {"joules": (after - before) / runs}

    @staticmethod
    def _memory(runtime: str) -> int | None:
        return sensors.gpu_memory_used() if runtimes.get(runtime).device == "cuda" else sensors.resident_bytes()


def throttled(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Did the device slow itself down meanwhile?"""
    counted = after.get("throttle_count", 0) > before.get("throttle_count", 0)
    return counted or bool(before.get("gpu", {}).get("throttled")) or bool(after.get("gpu", {}).get("throttled"))


def _timed(runner: Runner, inputs: Sequence[np.ndarray[Any, Any]]) -> paired.Timed:
    return paired.Timed(runner.bind(inputs), runner.timer(inputs))


def _in_chunks(runner: Runner, inputs: list[np.ndarray[Any, Any]], chunk: int) -> list[np.ndarray[Any, Any]]:
    """Outputs of a batch that was run in parts along dim 0. Raises ValueError if inputs or outputs have no such dim in common."""
    sizes = {array.shape[0] if array.ndim else 0 for array in inputs}
    if not chunk or (sizes == {min(sizes)} and min(sizes) <= chunk):
        return runner.run(inputs)
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError("inputs of different batch sizes can't be run in parts")
    parts = []
    for start in range(0, sizes.pop(), chunk):
        part = [array[start : start + chunk] for array in inputs]
        parts.append(runner.run(part))
        if any(array.ndim == 0 or len(array) != len(part[0]) for array in parts[-1]):
            raise ValueError("an output has no batch dimension: the batch can't be run in parts")
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _load(path: str, runtime: str, settings: dict[str, Any]) -> Runner:
    shapes = _shapes(settings)
    cache = str(cache_folder() / "runtimes") if settings.get("cache") is None else settings["cache"]
    return runtimes.get(runtime).load(Path(path), runtimes.RuntimeSettings(**{**settings, "shapes": shapes, "cache": cache}))


def _kind_of(folder: str) -> str:
    """The type of numbers of a folder's own pieces, which is all that differs between those of two folders."""
    _, inputs = next(iter(read_batches(f"{folder}/{OWN[0]}.npz")))
    return str(inputs[0].dtype.name)


def _shapes(settings: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in settings.get("shapes", ()))


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else max(0, after - before)


def _watch(worker: Worker) -> None:
    """End the process when nobody is at the other end any more, even if a command hangs.

    Through ssh the parent lives on when the connection breaks, so its death tells nothing; a closed pipe does.
    """
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is always reported
    poll.poll()
    worker.close()
    os._exit(0)


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
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # so that CUDA and NVML count alike
    worker = Worker()
    threading.Thread(target=_watch, args=(worker,), daemon=True).start()
    print(json.dumps({"result": {"ready": os.getpid(), "version": VERSION}}), file=answers, flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)
    finally:
        worker.close()


if __name__ == "__main__":
    main()
