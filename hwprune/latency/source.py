"""The sources of a search's latencies: measured on the target, predicted from a stored table, or estimated from a data sheet.

Only the first may be called speedup without more words. The others exist for devices that are not at hand; their
runs write ``front.table.csv`` or ``front.estimated.csv``, never ``front.csv``.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Protocol, final

import onnx

from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import paired
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.paired import Paired, Settings
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.roofline import Roofline
from hwprune.latency.segments import Segment
from hwprune.latency.splitting import split
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target
from hwprune.runtimes.sparsity import of_model

MEASURED, TABLE, ESTIMATED = "measured", "table", "estimated"
GATE_SESSIONS = 4
"""Copies of the dense model that the gate measures against it."""
GATE_DEVIATION = 0.02
"""Root mean square of ln(ratio) of single sessions beyond which nothing can be ranked."""
GATE_LIMIT = 0.01
"""The dense model against a copy of itself may differ by this much; beyond, the machine is too noisy to rank by."""


class Pairing(Protocol):
    """What the gate needs of a bench; see `hwprune.latency.bench.Bench`."""

    def load(self, key: str, path: Path) -> None: ...

    def drop(self, key: str) -> None: ...

    def pair(self, a: str, b: str, samples: Path, settings: Settings) -> Paired: ...


class Source(abc.ABC):
    """Gives the latency of a candidate against the dense model."""

    label: str

    @abc.abstractmethod
    def dense(self, path: Path) -> Paired:
        """Take up the dense model; its latency, against itself."""

    @abc.abstractmethod
    def candidate(self, path: Path, *, brief: bool = False) -> Paired:
        """Latency of a candidate.

        Args:
            brief: a first look is enough.

        Raises:
            CandidateFailure: (stage ``measure``) it can't be run, or predicted.
        """


class Measured(Source):
    """Paired measurement in the bench, in which the dense model is loaded as ``dense`` and the candidate as ``candidate``."""

    label = MEASURED

    def __init__(self, bench: Bench, example: Path, settings: Settings) -> None:
        self.bench, self.example = bench, example
        self.settings = settings
        self._dense: Path | None = None

    def dense(self, path: Path) -> Paired:
        self._dense = path
        return self.gate()

    def candidate(self, path: Path, *, brief: bool = False) -> Paired:  # noqa: ARG002 - it is loaded already
        settings = self.settings.brief() if brief else self.settings
        try:
            return self.bench.pair("candidate", "dense", self.example, settings)
        finally:
            if self.bench.alive:
                self.bench.drop("candidate")

    def gate(self) -> Paired:
        """The dense model against new copies of itself: one result, with ``passed``.

        Its speedup is the geometric mean over the sessions, its interval that of the mean (Student's t over sessions). It fails
        if the mean is off by more than `GATE_LIMIT`, if the interval excludes 1, or if single sessions deviate by more than
        `GATE_DEVIATION`. What differs between sessions goes into `settings`, so that every later interval holds it.
        """
        found, self.settings = self.gate_of(self.bench)
        return found

    def gate_of(self, bench: Pairing) -> tuple[Paired, Settings]:
        """What `gate` gives on one bench, and the settings with the deviation between sessions that it found."""
        assert self._dense is not None
        alone = replace(self.settings, session_sd=0.0)
        sessions = []
        for _ in range(GATE_SESSIONS):
            bench.load("dense_copy", self._dense)
            sessions.append(bench.pair("dense_copy", "dense", self.example, alone))
            bench.drop("dense_copy")
        logs = [math.log(session.ratio) for session in sessions]
        deviation = paired.session_sd(logs)
        settings = replace(self.settings, session_sd=deviation)
        return over_sessions(sessions).with_conditions(session_sd=deviation, log_ratios=logs), settings


def over_sessions(sessions: Sequence[Paired]) -> Paired:
    """Independent sessions of the same two files as one result: the last one's, with their mean ratio and its interval.

    ``passed``: were these the dense model and copies of it (whose true ratio is 1), is the machine quiet enough?
    """
    from scipy.stats import t

    logs = [math.log(session.ratio) for session in sessions]
    mean, count = fmean(logs), len(logs)
    # Sessions seldom agree as well as four happen to: their spread is not taken for less than half of the usual one.
    spread = max(stdev(logs), paired.SESSION_SD / 2) if count > 1 else paired.SESSION_SD
    half = float(t.ppf(0.975, max(1, count - 1))) * spread / math.sqrt(count)
    off = math.sqrt(fmean(value**2 for value in logs))
    passed = abs(mean) <= GATE_LIMIT and abs(mean) <= half and off <= GATE_DEVIATION
    whole = sessions[-1].with_speedup(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    return whole.with_conditions(passed=passed)


class _Predicted(Source):
    """Predictions for models by their segments."""

    def __init__(
        self, target: Target, shapes: Sequence[Sequence[int]], convert: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    ) -> None:
        """``convert``: into the precision that the target's runtime takes; candidates' files here are in 32 bits."""
        self._target, self._convert = target, convert
        self._shapes = [tuple(shape) for shape in shapes]
        self._reference = (0.0, 0.0)

    @abc.abstractmethod
    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:
        """(seconds, standard deviation)."""

    def dense(self, path: Path) -> Paired:
        self._reference = self._predict(path)
        return self._against_dense(*self._reference)

    def candidate(self, path: Path, *, brief: bool = False) -> Paired:  # noqa: ARG002 - nothing is measured
        return self._against_dense(*self._predict(path))

    def _predict(self, path: Path) -> tuple[float, float]:
        try:
            model = onnx.load(str(path))
            if self._convert is not None:
                model = self._convert(model)
            return self._seconds(model, split(model, self._shapes))
        except UsageError as error:
            raise CandidateFailure("measure", f"its latency can't be predicted: {error}") from error

    def _against_dense(self, seconds: float, sd: float) -> Paired:
        dense, dense_sd = self._reference
        ratio = dense / seconds
        # The dense prediction's error is shared by all; what differs is bounded by both.
        spread = math.exp(1.96 * math.hypot(sd / seconds, dense_sd / dense)) if seconds != dense else 1.0
        conditions = {
            "clock": self.label, "wall_speedup": ratio, "contended": 0.0, "outliers": 0.0, "throttled": False, "converged": True,
            "quads": 1, "session_sd": 0.0, "log_ratios": [],
        }  # fmt: skip
        low, high = max(0.0, seconds - 1.96 * sd), seconds + 1.96 * sd
        return Paired(
            Measurement(ratio, "x", ratio / spread, ratio * spread, 1, conditions),
            Measurement(seconds, "s", low, high, 1, {"clock": self.label, "wall_s": seconds, "dense_s": dense}),
        )


@final
class FromTable(_Predicted):
    """Predictions from a table that was measured on the device.

    The table holds dense pieces. On a target that executes masks faster (2:4 on sparse tensor cores) it knows nothing of masked
    ones: such candidates fail with that reason, they are not taken for dense.
    """

    label = TABLE

    def __init__(
        self,
        table: LatencyTable,
        network: str,
        target: Target,
        shapes: Sequence[Sequence[int]],
        convert: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
    ) -> None:
        """Raises `UsageError` if the table is not the target's, or empty."""
        super().__init__(target, shapes, convert)
        check_table(table, target)
        self.model = LatencyModel(table, network)

    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:
        if self._target.why_not("2:4") is None and any(layout.fits and layout.groups for layout in of_model(model, 2, 4)):
            raise UsageError("it has 2:4 weights, which this target may execute faster; the table holds dense pieces only")
        prediction = self.model.predict(segments)
        return prediction.seconds, prediction.sd


def check_table(table: LatencyTable, target: Target) -> None:
    """Raises `UsageError` if a table holds nothing, or was not measured on what the target describes."""
    identity = table.identity
    wanted = {
        "runtime_name": target.runtime, "precision": target.precision, "threads": target.threads, "options": dict(target.options),
    }  # fmt: skip
    faults = [
        f"{key}: {identity.get(key)!r} in the table, {value!r} in the profile"
        for key, value in wanted.items()
        if identity.get(key) != value
    ]
    if not target.matches(str(identity.get("device"))):
        faults.insert(0, f"device: {identity.get('device')!r} in the table, {', '.join(target.device_match)} in the profile")
    if not table.entries:
        faults.append("it holds no measured segment")
    if faults:
        raise UsageError(f"{table.folder} is not a latency table of target {target.name}:", faults)


@final
class Estimated(_Predicted):
    """Roofline estimates from a profile's data sheet; without an error that could be known, so the interval is the value."""

    label = ESTIMATED

    def __init__(self, target: Target, shapes: Sequence[Sequence[int]]) -> None:
        """Raises `UsageError` if the profile lacks a figure."""
        super().__init__(target, shapes)
        self._roofline = Roofline(target)

    def _seconds(self, model: onnx.ModelProto, segments: list[Segment]) -> tuple[float, float]:
        sparse = self._target.why_not("2:4") is None
        fits = {layout.node: layout.fits for layout in of_model(model, 2, 4)} if sparse else {}
        return self._roofline.seconds(segments, fits), 0.0
