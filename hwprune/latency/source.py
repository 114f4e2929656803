"""Where a search's latencies come from: measured on the target, predicted from a stored table, or estimated from a data sheet.

Only the first may be called speedup without more words. The others exist for devices that are not at hand; their
runs write ``front.table.csv`` or ``front.estimated.csv``, never ``front.csv``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import onnx

from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import paired
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.roofline import Roofline
from hwprune.latency.segments import Segment, split
from hwprune.latency.table import LatencyTable
from hwprune.runtimes.sparsity import of_model
from hwprune.target import Target

MEASURED, TABLE, ESTIMATED = "measured", "table", "estimated"
GATE_SESSIONS = 4
"""Copies of the dense model that the gate measures against it."""
GATE_LIMIT = 0.01
"""The dense model against a copy of itself may differ by this much; beyond, the machine is too noisy to rank by."""


class Source(abc.ABC):
    """Gives the latency of a candidate against the dense model, as `hwprune.latency.paired.Paired.to_json` does."""

    label: str

    @abc.abstractmethod
    def dense(self, path: Path) -> dict[str, Any]:
        """Take up the dense model; its latency, against itself."""

    @abc.abstractmethod
    def candidate(self, path: Path) -> dict[str, Any]:
        """A candidate's. Raises `CandidateFailure` (stage ``measure``)."""


@final
class Measured(Source):
    """Paired measurement in the bench, in which the dense model is loaded as ``dense`` and the candidate as ``candidate``."""

    label = MEASURED

    def __init__(self, bench: Bench, example: Path, settings: Settings) -> None:
        self.bench, self.example = bench, example
        self.settings = settings
        self._dense: Path | None = None

    def dense(self, path: Path) -> dict[str, Any]:
        self._dense = path
        results = self.gate()
        return results[len(results) // 2]

    def candidate(self, path: Path) -> dict[str, Any]:  # noqa: ARG002 - it is loaded already
        try:
            return self.bench.pair("candidate", "dense", self.example, self.settings)
        finally:
            if self.bench.alive:
                self.bench.drop("candidate")

    def gate(self, sessions: int = GATE_SESSIONS) -> list[dict[str, Any]]:
        """The dense model against new copies of itself, sorted by speedup.

        What differs between sessions goes into `settings`, so that every later interval holds it.
        """
        assert self._dense is not None
        alone = replace(self.settings, session_sd=0.0)
        results = []
        for _ in range(sessions):
            self.bench.load("twin", self._dense)
            results.append(self.bench.pair("twin", "dense", self.example, alone))
            self.bench.drop("twin")
        deviation = paired.session_sd([math.log(r["speedup"]) for r in results])
        self.settings = replace(self.settings, session_sd=deviation)
        return [_with_sessions(r, deviation) for r in sorted(results, key=lambda r: float(r["speedup"]))]


def _with_sessions(result: dict[str, Any], deviation: float) -> dict[str, Any]:
    """A measurement of two sessions with the sessions' deviation in its interval."""
    middle = -math.log(result["speedup"])
    low, high = paired.with_sessions(middle, -math.log(result["ci_high"]), -math.log(result["ci_low"]), deviation, 0.05)
    return {**result, "ci_low": math.exp(-high), "ci_high": math.exp(-low), "session_sd": deviation}


class _Predicted(Source):
    """Predictions for models by their segments."""

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        self._shapes = [tuple(shape) for shape in shapes]
        self._reference = (0.0, 0.0)

    @abc.abstractmethod
    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:
        """(seconds, standard deviation)."""

    def dense(self, path: Path) -> dict[str, Any]:
        self._reference = self._of(path)
        return self._answer(*self._reference)

    def candidate(self, path: Path) -> dict[str, Any]:
        return self._answer(*self._of(path))

    def _of(self, path: Path) -> tuple[float, float]:
        try:
            model = onnx.load(str(path))
            return self._seconds(model, split(model, self._shapes))
        except UsageError as error:
            raise CandidateFailure("measure", f"its latency can't be predicted: {error}") from error

    def _answer(self, seconds: float, sd: float) -> dict[str, Any]:
        dense, dense_sd = self._reference
        speedup = dense / seconds
        # The dense prediction's error is shared by all; what differs is bounded by both.
        spread = math.exp(1.96 * math.hypot(sd / seconds, dense_sd / dense)) if seconds != dense else 1.0
        return {
            "clock": self.label, "speedup": speedup, "ci_low": speedup / spread, "ci_high": speedup * spread,
            "latency_s": seconds, "latency_low_s": max(0.0, seconds - 1.96 * sd), "latency_high_s": seconds + 1.96 * sd,
            "dense_latency_s": dense, "quads": 1, "wall_speedup": speedup, "wall_latency_s": seconds, "contended": 0.0,
            "outliers": 0.0, "throttled": False, "converged": True, "session_sd": 0.0, "log_ratios": [],
        }  # fmt: skip


@final
class FromTable(_Predicted):
    """Predictions from a table that was measured on the device."""

    label = TABLE

    def __init__(self, table: LatencyTable, network: str, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__(shapes)
        self.model = LatencyModel(table, network)

    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:  # noqa: ARG002
        found = self.model.predict(segments)
        return found.seconds, found.sd


@final
class Estimated(_Predicted):
    """Roofline estimates from a profile's data sheet; without an error that could be known, so the interval is the value."""

    label = ESTIMATED

    def __init__(self, target: Target, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__(shapes)
        self._roofline = Roofline(target)

    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:
        fits = {layout.node: layout.fits for layout in of_model(model, 2, 4)}
        return self._roofline.seconds(segments, fits), 0.0
