"""Measures models with a cache in both phases, in one process, beside copies of the dense model.

Who is loaded first in a process gets other memory. That difference stays as long as the process does, so that it is in all that
is measured there: SmolLM2's dense file, loaded a second time, generated 1 to 9 % faster than the first one of the same process.
A search would then find cuts that save little either worthless or a bargain. So the dense model is loaded again now and then as
candidates are, and their ratios are told against those of such copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

from hwprune.latency import paired
from hwprune.latency.bench import Bench
from hwprune.latency.fresh import settings_for
from hwprune.latency.paired import Paired
from hwprune.records.target import Target
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.phases import DECODE, FEWEST, LIMIT_S, PREFILL, Tokens, write_inputs

PHASES = (PREFILL, DECODE)
FIRST_COPIES, EVERY, LAST = 3, 6, 8
"""Copies of the dense model before anything else is measured, models after which there is another, and those that count."""
KEY, DENSE = "model", "dense"


class PhaseBench:
    """Latencies in both phases, each paired with the dense model.

    Args:
        dense: the dense model's file, and its cache.
        scratch: folder for inputs.
    """

    def __init__(self, target: Target, tokens: Tokens, dense: tuple[Path, CacheShape], scratch: Path) -> None:
        self._bench, self._tokens, self._scratch, self._dense = Bench(target), tokens, scratch, dense
        self._dense_inputs = self._inputs(DENSE, dense[1])
        self._settings = replace(settings_for(self._bench.clock), limit_s=LIMIT_S, fewest_quads=FEWEST)
        self._copies: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._since = 0

    def __enter__(self) -> PhaseBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.close()

    def measure(self, path: Path, shape: CacheShape) -> dict[str, Paired]:
        """Phase -> latency beside the dense one's.

        Raises:
            CandidateFailure: it can't be run.
        """
        if not self._bench.alive:  # at first, and where it has died: the dense model lies elsewhere now
            self._bench.load(DENSE, self._dense[0], keep=True)
            self._copies = {phase: [] for phase in PHASES}
        while len(self._copies[DECODE]) < FIRST_COPIES or self._since >= EVERY:
            for phase, found in self._pairs(*self._dense).items():
                self._copies[phase].append(math.log(found.ratio))
            self._since = 0
        self._since += 1
        return {phase: against_copies(found, self._copies[phase][-LAST:]) for phase, found in self._pairs(path, shape).items()}

    def _pairs(self, path: Path, shape: CacheShape) -> dict[str, Paired]:
        self._bench.load(KEY, path)
        inputs = self._inputs(KEY, shape)
        try:
            return {
                phase: self._bench.pair(KEY, DENSE, inputs[phase], self._settings, self._dense_inputs[phase]) for phase in PHASES
            }
        finally:
            self._bench.drop(KEY)

    def _inputs(self, key: str, shape: CacheShape) -> Mapping[str, Path]:
        counts = {PREFILL: (self._tokens.prompt, 0), DECODE: (1, self._tokens.past)}
        return {
            phase: write_inputs(shape.inputs(self._tokens.batch, count, past), self._scratch / f"{key}-{phase}.npz")
            for phase, (count, past) in counts.items()
        }


def against_copies(found: Paired, copies: list[float]) -> Paired:
    """A measurement beside the dense model as it was beside copies of it: what they have in common goes, how they differ stays.

    Args:
        copies: ln(ratio) of the dense model's copies.
    """
    common = median(copies)
    apart = paired.session_sd([copy - common for copy in copies])
    value = found.ratio / math.exp(common)
    # Inside this pair of sessions, between sessions, and what is not known of the copies.
    logs = [math.log(bound / found.ratio) for bound in (found.speedup.ci_low, found.speedup.ci_high)]
    half = 1.96 * apart * math.sqrt(1 + 1 / len(copies))
    low, high = (math.copysign(math.hypot(log, half), sign) for log, sign in zip(logs, (-1, 1), strict=True))
    return found.with_speedup(value, value * math.exp(low), value * math.exp(high))
