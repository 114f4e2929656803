"""Latency that depends on the input: each of real inputs is timed on every system, in turn and in both directions.

A system is one model, or two of which the second runs where the first is not sure. What users of such a system pay is its mean
over the inputs that come, and what they wait for is its tail; both are told here beside the dense model on the same inputs.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.latency.paired import SESSION_SD
from hwprune.records.measurement import Measurement
from hwprune.runtimes.base import THREAD_CPU

Array = np.ndarray[Any, Any]
SEED = 0
RESAMPLED = 1000
WARMUP = 5


@dataclass(frozen=True, slots=True)
class Distribution:
    """Latency of one system over inputs.

    Attributes:
        seconds: (processes, inputs), each the median of its runs.
        mean: over inputs, with an interval over the inputs that might have come.
        speedup: mean dense latency over its mean, on the same inputs.
    """

    seconds: Array
    mean: Measurement
    speedup: Measurement

    def quantile(self, share: float) -> float:
        """Seconds that this share of the inputs does not exceed."""
        return float(np.quantile(_by_input(self.seconds), share))

    @property
    def worst(self) -> float:
        """Seconds of the slowest input; the median over processes, so that a hiccup of the machine is none of the model's."""
        return float(_by_input(self.seconds).max())

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean.to_json(), "speedup": self.speedup.to_json(), "p50_s": self.quantile(0.5),
            "p95_s": self.quantile(0.95), "worst_s": self.worst,
        }  # fmt: skip


def _by_input(seconds: Array) -> Array:
    """A process that was slow as a whole says nothing of the inputs."""
    return np.asarray(np.median(seconds, axis=0))


def speedup(seconds: Array, reference: Array) -> Measurement:
    """Mean of the reference over the mean, with an interval that holds other inputs and other processes.

    Inputs are drawn again for both together (a bootstrap); each process gives a ratio of its own, because a machine that is
    slow for a while is slow for both.

    Args:
        seconds, reference: (processes, inputs), of the same ones.
    """
    mine, theirs = _by_input(seconds), _by_input(reference)
    ratios = np.sort(reference.mean(axis=1) / seconds.mean(axis=1))
    ratio = float(np.median(ratios))
    places = np.random.default_rng(SEED).integers(0, len(mine), (RESAMPLED, len(mine)))
    logs = np.log(theirs[places].mean(axis=1) / mine[places].mean(axis=1) * mine.mean() / theirs.mean())
    low, high = (float(np.quantile(logs, q)) for q in (0.025, 0.975))
    low = math.hypot(low, max(math.log(ratio / ratios[0]), 1.96 * SESSION_SD))
    high = math.hypot(high, max(math.log(ratios[-1] / ratio), 1.96 * SESSION_SD))
    return Measurement(ratio, "x", ratio * math.exp(-low), ratio * math.exp(high), len(mine))


def drawn(batches: Iterable[tuple[str, Sequence[Array]]], count: int) -> list[list[Array]]:
    """So many examples of stored batches, each as a batch of one; the same ones every time, in their order."""
    examples = [[x[i : i + 1] for x in inputs] for _, inputs in batches for i in range(len(inputs[0]))]
    chosen = sorted(random.Random(SEED).sample(range(len(examples)), min(count, len(examples))))
    return [examples[place] for place in chosen]


def measure(
    calls: Mapping[str, Callable[[Sequence[Array]], object]], inputs: Sequence[Sequence[Array]], clock: str, limit_s: float
) -> dict[str, list[float]]:
    """Seconds of each input on each system, the median of its runs.

    Args:
        calls: name -> one run on one input.
        clock: ``thread_cpu`` or wall time.
        limit_s: time for all; every input is run at least twice on every system.
    """
    now = time.thread_time_ns if clock == THREAD_CPU else time.perf_counter_ns
    names = list(calls)
    for name in names:
        for one in inputs[:WARMUP]:
            calls[name](one)
    order = list(range(len(inputs)))
    shuffled = random.Random(SEED)
    found: dict[str, list[list[int]]] = {name: [[] for _ in inputs] for name in names}
    end = time.monotonic() + limit_s
    rounds = 0
    while rounds < 1 or (time.monotonic() < end and rounds < 32):
        shuffled.shuffle(order)
        for place in order:
            turn = (place + rounds) % len(names)
            first = names[turn:] + names[:turn]
            for name in (*first, *reversed(first)):
                start = now()
                calls[name](inputs[place])
                found[name][place].append(now() - start)
        rounds += 1
    return {name: [float(np.median(times)) * 1e-9 for times in places] for name, places in found.items()}


def distributions(processes: Sequence[Mapping[str, Sequence[float]]], dense: str = "dense") -> dict[str, Distribution]:
    """What several processes have measured, as one distribution for each system."""
    seconds = {name: np.asarray([process[name] for process in processes]) for name in processes[0]}
    found = {}
    for name, own in seconds.items():
        by_input = _by_input(own)
        places = np.random.default_rng(SEED).integers(0, len(by_input), (RESAMPLED, len(by_input)))
        low, high = np.quantile(by_input[places].mean(axis=1), [0.025, 0.975])
        mean = Measurement(float(by_input.mean()), "s", float(low), float(high), len(by_input))
        one = Measurement(1.0, "x", 1.0, 1.0, len(by_input))
        found[name] = Distribution(own, mean, one if name == dense else speedup(own, seconds[dense]))
    return found
