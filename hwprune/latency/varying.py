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
        speedup: mean dense latency over its mean, on the same inputs.
        mean: seconds, with an interval over inputs and processes.
    """

    seconds: Array
    speedup: Measurement
    mean: Measurement

    def quantile(self, share: float) -> float:
        """Seconds that this share of the inputs does not exceed."""
        return float(np.quantile(np.median(self.seconds, axis=0), share))

    @property
    def worst(self) -> float:
        """Seconds of the slowest input; its median over the processes, so that a hiccup of the machine is none of the model's."""
        return float(np.median(self.seconds, axis=0).max())

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean.to_json(), "speedup": self.speedup.to_json(), "p50_s": self.quantile(0.5),
            "p95_s": self.quantile(0.95), "worst_s": self.worst,
        }  # fmt: skip


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
    """What several processes have measured, as one distribution for each system.

    The interval of a speedup holds that other inputs might have come (a bootstrap over inputs, dense and system together) and
    what differs between processes.
    """
    seconds = {name: np.asarray([process[name] for process in processes]) for name in processes[0]}
    reference = seconds[dense]
    count = reference.shape[1]
    drawn = np.random.default_rng(SEED).integers(0, count, (RESAMPLED, count))
    found = {}
    for name, own in seconds.items():
        ratio = float(reference.mean() / own.mean())
        by_input = reference.mean(axis=0)[drawn].mean(axis=1) / own.mean(axis=0)[drawn].mean(axis=1)
        logs = np.log(by_input / ratio)
        by_process = np.log(reference.mean(axis=1) / own.mean(axis=1) / ratio)
        low, high = (float(np.quantile(logs, q)) for q in (0.025, 0.975))
        low = -math.hypot(low, min(float(by_process.min()), -1.96 * SESSION_SD))
        high = math.hypot(high, max(float(by_process.max()), 1.96 * SESSION_SD))
        if name == dense:
            low = high = 0.0
        mean = float(own.mean())
        mean_logs = np.quantile(np.log(own.mean(axis=0)[drawn].mean(axis=1) / mean), [0.025, 0.975])
        found[name] = Distribution(
            own,
            Measurement(ratio, "x", ratio * math.exp(low), ratio * math.exp(high), count),
            Measurement(mean, "s", mean * math.exp(float(mean_logs[0])), mean * math.exp(float(mean_logs[1])), count),
        )
    return found
