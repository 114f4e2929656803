"""Imposes shapes and patterns on a model and measures what they cost on the target; the weights don't matter.

Per unit: the segments of the network that the unit runs through, at several keep counts, as micro-graphs on the target's
runtime. For the whole model: the runtime's own profile, and for each pattern a version with the most of it, measured
against dense: the upper bound of what any search can gain by that pattern.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from hwprune import runtimes
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import DENSE, LatencyTable, save_inputs
from hwprune.latency.paired import Settings
from hwprune.latency.predictor import LatencyModel, measure_until_certain
from hwprune.latency.segments import Segment
from hwprune.latency.source import Measured
from hwprune.layers.labels import labels
from hwprune.layers.units import Unit, ties
from hwprune.onnx_files import to_onnx
from hwprune.probe.attribution import attribute
from hwprune.probe.cut_segments import POINTS, CutSegments, random_counts, staircase_of, touched
from hwprune.probe.findings import Probe, Step, UnitProbe
from hwprune.probe.pattern_models import PatternModels
from hwprune.probe.staircase import counts_for, detected_multiple, window
from hwprune.pruning.pruner import Pruner
from hwprune.records.target import Target

WINDOW = 48
"""Widths, one by one, in which the channel multiple is looked for."""
WINDOW_ROUNDS = 21
"""More than for a staircase: here neighbours are compared."""
CERTAIN = 0.04
"""Relative standard deviation up to which the regressor's word is taken for a step of a staircase."""
WHOLES, WHOLES_OF_A_TABLE = 12, 30
"""Random cuts of the whole model that are measured; more for a table that will serve on other machines."""


Progress = Callable[[str, int, int], None]
"""(what, done, total)."""


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def probe(
    pruner: Pruner, target: Target, bench: Bench, table: LatencyTable, progress: Progress = quiet, wholes: int = WHOLES
) -> Probe:
    """Measure on the target. The table is filled, and kept where it lives.

    Args:
        wholes: how many random cuts of the whole model are measured, for predictions from the table.

    Raises:
        UsageError: the target's runtime doesn't run ONNX files, or the model's shapes can't be inferred.
        RunError: the dense model can't be run.
    """
    _needs_onnx(target)
    with tempfile.TemporaryDirectory(prefix="hwprune-probe-") as name:
        return _Probing(pruner, target, bench, table, Path(name), wholes, progress).go()


def _needs_onnx(target: Target) -> None:
    file = runtimes.get(target.runtime).file
    if not file.endswith(".onnx"):
        raise UsageError(
            f"target {target.name} runs {file} files, which can't be taken apart into pieces: "
            "probe works with runtimes of ONNX files"
        )


class _Probing:
    def __init__(
        self, pruner: Pruner, target: Target, bench: Bench, table: LatencyTable, folder: Path, wholes: int, progress: Progress
    ) -> None:
        self.wholes = wholes
        self.pruner, self.target, self.bench, self.table = pruner, target, bench, table
        self.folder, self.progress = folder, progress
        self.model = LatencyModel(table, pruner.fingerprint)
        self.pieces = CutSegments(pruner, runtimes.get(target.runtime).precision_of_file(target.precision))

    def go(self) -> Probe:
        self.progress("measuring the dense model", 0, 1)
        dense = self._write("dense", self.pieces.cut({}))
        example = self.folder / "example.npz"
        save_inputs(example, [x.numpy() for x in self.pruner.workload.example_inputs])
        source = Measured(self.bench, example, Settings(clock=self.bench.clock))
        try:
            self.bench.load("dense", dense, keep=True)
            itself = source.dense(dense)
            operators = self.bench.profile("dense", example)
        except CandidateFailure as failure:
            raise RunError(f"the dense model can't be measured: {failure.reason}") from failure
        segments = self.pieces.segments(onnx.load(str(dense)))
        self.table.fill(self.bench, segments, lambda done, total: self.progress("timing the dense layers", done, total))
        half = (itself.latency.ci_high - itself.latency.ci_low) / 2
        result = Probe(
            self.pruner.workload.name,
            self.target.name,
            "measured",
            dict(self.table.identity),
            itself.dense_latency_s,
            half,
            1,
            {},
        )
        result.operators, result.profile_covers, shares = attribute(operators, segments)
        shares = shares or self._own_shares(segments)
        result.multiple_from = self._multiples()
        result.multiple = max(result.multiple_from.values(), default=1)
        result.units = self._units(segments, shares, result.dense_s)
        result.shapes = [list(shape) for shape in self.pieces.shapes]
        result.patterns = PatternModels(
            self.pruner, self.target, self.bench, self.pieces, self.table.identity, self.folder, self.progress
        ).measure_all(source)
        self._calibrate(source, segments, itself.dense_latency_s)
        result.warnings = self._warnings(result, segments)
        return result

    def _own_shares(self, segments: Sequence[Segment]) -> dict[str, float]:
        """Shares of the time by the pieces' own times, where the runtime's profile can't be told by layers."""
        model = self.model
        total = sum(model.segment(segment)[0] for segment in segments)
        return {segment.name: model.segment(segment)[0] / total for segment in segments}

    # -- units -------------------------------------------------------------------------------

    def _units(self, dense: Sequence[Segment], shares: Mapping[str, float], dense_s: float) -> list[UnitProbe]:
        """The staircase of each axis; axes that are alike share one."""
        alike = ties(self.pruner.units)
        first: dict[str, str] = {}
        plans = []
        for unit in self.pieces.axes():
            kind = alike.get(unit.name, unit.name)
            like = first.setdefault(kind, unit.name)
            variants: list[tuple[int, list[Segment]]] = []
            note = ""
            # Units that are alike have the same segments at the same counts; the table knows them already.
            for count in counts_for(unit.size, POINTS, self.pieces.step(unit, unit.size)):
                try:
                    variants.append((count, self._cut_segments(unit, count)))
                except (CandidateFailure, UsageError) as error:
                    note = f"{count} kept: {error}"
            plans.append((unit, None if like == unit.name else like, variants, note))
            self.progress("cutting", len(plans), len(self.pieces.axes()))
        # Every other count is measured; those between are predicted where that is certain enough, else measured too.
        sure = [segment for _, _, variants, _ in plans for _, segments in variants[::-2] for segment in segments]
        self.table.fill(self.bench, sure, lambda done, total: self.progress("timing the staircases", done, total))
        model = self.model
        rest = [(u, segments) for u, _, variants, _ in plans for _, segments in variants[-2::-2]]
        dense_signatures = {segment.signature for segment in dense}
        for number, (_, segments) in enumerate(rest):
            self.progress("timing what can't be predicted", number, len(rest))
            measure_until_certain(
                model, [segment for segment in segments if segment.signature not in dense_signatures], self.bench, CERTAIN
            )
        return [self._unit(*plan, dense, shares, dense_s) for plan in plans]

    def _cut_segments(self, unit: Unit, count: int) -> list[Segment]:
        return self.pieces.segments(self.pieces.cut({unit.name: count} if count < unit.size else {}))

    def _unit(
        self,
        unit: Unit,
        like: str | None,
        variants: Sequence[tuple[int, list[Segment]]],
        note: str,
        dense: Sequence[Segment],
        shares: Mapping[str, float],
        dense_s: float,
    ) -> UnitProbe:
        model, pieces = self.model, dict(variants)
        names = touched(pieces) if unit.size in pieces else set()
        total = sum(model.segment(segment)[0] for segment in dense)
        scale = dense_s / total if total else 1.0  # the fused network over the sum of its pieces, which run alone
        steps = []
        for count, segments in variants:
            parts = [model.segment(segment) for segment in segments if segment.name in names]
            seconds = sum(part[0] for part in parts)
            half = 1.96 * float(np.sqrt(sum(part[1] ** 2 for part in parts)))
            source = "measured" if all(part[2] for part in parts) else "predicted"
            saved = scale * (total - sum(model.segment(segment)[0] for segment in segments))
            steps.append(Step(count, seconds, half, dense_s / max(dense_s - saved, 1e-9), source))
        share = sum(shares.get(name, 0.0) for name in names)
        label = labels(self.pruner.units.values())[unit.name]
        return UnitProbe(unit.name, unit.role, unit.size, share, tuple(steps), like, note, label)

    def _multiples(self) -> dict[str, int]:
        """The channel multiple, found width by width on one axis of each kind of layer."""
        nearest_64: dict[str, Unit] = {}
        for unit in self.pieces.axes():
            if unit.role in ("channel", "neuron", "hidden") and unit.size >= 32:
                kind = unit.role
                if kind not in nearest_64 or abs(unit.size - 64) < abs(nearest_64[kind].size - 64):
                    nearest_64[kind] = unit
        multiples = {}
        for unit in nearest_64.values():
            counts = [k for k in window(unit.size, WINDOW) if k >= 1]
            pieces = {}
            for count in counts:
                try:
                    pieces[count] = self._cut_segments(unit, count)
                except (CandidateFailure, UsageError):
                    continue
            flat = [segment for segments in pieces.values() for segment in segments]
            self.table.fill(
                self.bench,
                flat,
                lambda done, total: self.progress("looking for the channel multiple", done, total),
                WINDOW_ROUNDS,
            )
            model = self.model
            times = staircase_of(pieces, model) if unit.size in pieces else {}
            if len(times) >= 16 and all(seconds > 0 for seconds in times.values()):
                multiples[unit.name] = detected_multiple(times)
        return multiples

    # -- whole models ------------------------------------------------------------------------

    def _calibrate(self, source: Measured, dense: Sequence[Segment], dense_s: float) -> None:
        """Random cuts of the whole model, measured: from them the latency model learns what fusion does to the sum."""
        network = self.pruner.fingerprint
        dense_s = self.table.dense_s(network, dense_s)  # whole models are ratios to the table's own dense
        self.table.observe(network, DENSE, dense, dense_s, 0.0)
        axes = self.pieces.axes()
        for number in range(self.wholes):
            self.progress("measuring random cuts of the whole model", number, self.wholes)
            counts = random_counts(
                axes, self.pieces, self.target.multiple(str(self.table.identity.get("isa", "default"))), number
            )
            try:
                path = self._write("random", self.pieces.cut(counts))
                self.bench.load("candidate", path)
                result = source.candidate(path)
                segments = self.pieces.segments(onnx.load(str(path)))
            except (CandidateFailure, UsageError):
                continue
            self.table.fill(self.bench, segments)
            seconds = dense_s / result.ratio
            half = seconds * (result.speedup.ci_high - result.speedup.ci_low) / 2 / result.ratio
            self.table.observe(network, f"random {number}", segments, seconds, half)
        self.table.write()

    def _write(self, name: str, model: onnx.ModelProto) -> Path:
        return to_onnx.save_onnx(model, self.folder / f"{name}.onnx")

    # -- warnings ----------------------------------------------------------------------------

    def _warnings(self, result: Probe, dense: Sequence[Segment]) -> list[str]:
        texts = []
        bounds = [p.speedup["value"] for p in result.patterns if p.speedup is not None]
        floor = 1 / max(bounds, default=1.0)
        if floor > 0.5:
            texts.append(
                f"The smallest version measured still takes {100 * floor:.0f} % of the dense latency: fixed costs (launches, "
                "data movement, layers that can't be cut) dominate, and pruning can't remove them. Try a larger batch."
            )
        model = self.model
        rates = {s.name: (2 * s.macs / model.segment(s)[0], s) for s in dense if s.macs}
        best = max((rate for rate, _ in rates.values()), default=0.0)
        slow = [s for rate, s in rates.values() if rate < 0.1 * best]
        time_slow = sum(model.segment(s)[0] for s in slow) / max(sum(model.segment(s)[0] for s in dense), 1e-12)
        if slow and time_slow > 0.1:
            texts.append(
                f"{len(slow)} layers with {100 * time_slow:.0f} % of the time compute at less than a tenth of the best layer's "
                f"rate ({best / 1e9:.3g} GFLOP/s): they wait for memory or for launches, so fewer "
                "channels save less than their share."
            )
        light = sum(model.segment(s)[0] for s in dense if not s.macs) / max(sum(model.segment(s)[0] for s in dense), 1e-12)
        if light > 0.3:
            texts.append(
                f"{100 * light:.0f} % of the time is in operators without weights (normalisation, softmax, data movement)."
            )
        if self.table.errors:
            texts.append(f"{len(self.table.errors)} pieces can't run alone on this runtime; their times are predicted.")
        return texts
