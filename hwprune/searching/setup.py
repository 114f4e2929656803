"""Preparing a search or a worker: the device, the model, the dense measurements, the space, what is known of its choices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hwprune import patterns, runtimes
from hwprune.common import formatting
from hwprune.common.files import Table
from hwprune.common.memory import memory_limit
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench
from hwprune.latency.fleet import FleetBench, FleetMeasured
from hwprune.latency.host import Host
from hwprune.latency.paired import Settings
from hwprune.latency.source import Estimated, FromTable, Measured, Source
from hwprune.latency.worker_process import BenchLimits
from hwprune.onnx_files import to_onnx
from hwprune.pruning.database import default_root
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.searching import operator_gate
from hwprune.searching.evaluating import pattern_filter
from hwprune.searching.evaluating.dense import EXAMPLE, Baseline
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.progress import Progress
from hwprune.searching.recording import Fingerprint
from hwprune.searching.resolved_job import ResolvedJob
from hwprune.searching.sampling.savings import Savings, note_on_unsearched
from hwprune.searching.sampling.search_model import SearchModel, build_model
from hwprune.searching.space import exactness, fitting
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.thorough import calibration_note, with_thorough_compensation
from hwprune.searching.study.attributes import COMPENSATION, REFUSED_KINDS, STARTED, SWEPT_MASKS
from hwprune.searching.study.store import Store
from hwprune.searching.time_plan import LEAST_TRIALS, PREPARATION
from hwprune.workload import data_checks, running_statistics
from hwprune.workload.workload import Workload


class Setup:
    """Makes the parts that a search and its workers need, in the order in which they need them.

    Attributes:
        notes: what the user should know, in whole sentences.
        started: when the search began, by the monotonic clock.
        refused: kind of cut -> why a target does not take it.
        swept_masks: units whose masks are not solved for exactly, because that would take too long.
    """

    def __init__(self, resolved: ResolvedJob, workload: Workload, run: Path, progress: Progress) -> None:
        self.resolved, self.job = resolved, resolved.job
        self.workload, self.run, self.progress = workload, run, progress
        # Of another machine's memory nothing is known here; its own system ends what takes too much.
        own_memory = 0 if self.job.remote else three_quarters_of_memory()
        self.limits = BenchLimits(self.job.trial_timeout_s, self.job.memory_limit or own_memory)
        self.shapes = [tuple(x.shape) for x in workload.example_inputs]
        self.notes: list[str] = []
        self.swept_masks: list[str] = []
        self.refused: dict[str, str] = {}
        self.started = time.monotonic()

    @property
    def used_s(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.started

    def late(self) -> bool:
        """Has preparing taken its share of the time that was given?"""
        return bool(self.job.time_s) and self.used_s > PREPARATION * self.job.time_s

    def announce(self) -> None:
        """Before anything takes long: what a limit of time limits."""
        if self.job.time_s:
            limit, prepared = (formatting.duration(seconds) for seconds in (self.job.time_s, PREPARATION * self.job.time_s))
            training = " Training and quantising the finalists come on top." if self.job.training or self.job.precisions else ""
            self.progress.note(
                f"The whole search is planned for {limit}: preparation takes at most {prepared} where it can be shortened, "
                f"and the last part is for measuring the front again. At least {formatting.some(self.least_trials, 'trial')} "
                f"follow in any case.{training}"
            )

    def prepared(self) -> None:
        """Tell what preparing has taken of a limit of time."""
        limit, used = self.job.time_s, self.used_s
        if not limit:
            return
        if used < limit:
            word = f"Prepared in {formatting.duration(used)}; {formatting.duration(limit - used)} are left."
        else:
            word = (
                f"Preparation took {formatting.duration(used)}, all of the {formatting.duration(limit)} given: only "
                f"{formatting.some(self.least_trials, 'trial')} follow. Most of what was prepared is kept: with the same time, "
                "--resume has all of it for trials."
            )
            self.notes.append(word)
        self.progress.note(word)

    @property
    def least_trials(self) -> int:
        """Trials that are evaluated whatever the time."""
        return min(LEAST_TRIALS, self.job.trials) if self.job.trials else LEAST_TRIALS

    def bench(self, machine: Host) -> Bench:
        if self.resolved.others:
            return FleetBench(
                self.resolved.targets, self.resolved.weights, self.limits, machine, self.shapes, self.progress.waiting
            )
        return Bench(self.resolved.runs_on, self.limits, machine, self.shapes, self.progress.waiting)

    def source(self, bench: Bench, pruner: Pruner, example: Path | None = None) -> Source:
        place = example or self.run / "baseline" / EXAMPLE
        target = self.resolved.target
        if self.job.estimate:
            return Estimated(target, self.shapes)
        if self.resolved.table is not None:
            precision = runtimes.get(target.runtime).precision_of_file(target.precision)
            convert = None if precision == "fp32" else partial(to_onnx.converted, precision=precision)
            return FromTable(self.resolved.table, pruner.fingerprint, target, self.shapes, convert)
        settings = Settings(clock=bench.clock)
        return FleetMeasured(bench, place, settings) if isinstance(bench, FleetBench) else Measured(bench, place, settings)

    def identify(self, machine: Host) -> Fingerprint:
        """Whose numbers these are."""
        conditions = fingerprint.conditions()
        if self.resolved.table is not None:
            identity = {**self.resolved.table.identity, "source": "table", "table": self.resolved.table.digests()}
            return Fingerprint(identity, conditions, str(identity.get("isa", "default")))
        if self.job.estimate:
            target = self.resolved.target
            identity = {"target": target.name, "source": "estimated", "roofline": dict(target.roofline)}
            return Fingerprint(identity, conditions, "default")
        with self.bench(machine) as bench:
            return Fingerprint(bench.identity(), bench.conditions(), bench.check()["isa"])

    def trace(self) -> Pruner:
        self.progress.stage("tracing the model")
        data_checks.check_weights(self.workload)
        root = Path(self.job.database) if self.job.database else default_root()
        pruner = Pruner(self.workload, root, self.progress.calibrated, self.late)
        if pruner.untraceable:
            self.notes.append(f"Only mask patterns were searched: {pruner.untraceable}")
        return pruner

    def measure_dense(self, evaluator: Evaluator) -> Baseline:
        self.progress.stage("measuring the dense model")
        baseline = evaluator.dense.prepare(evaluator.source)
        share = formatting.is_share(baseline.metric.value, higher_is_better=evaluator.metric.higher_is_better)
        self.progress.scale(share=share, usual=formatting.usual_limit(baseline.metric.value, share=share))
        split = evaluator.dense.validation
        if word := data_checks.how_read(evaluator.metric, split.dense, split.targets):
            self.notes.append(word)
            self.progress.note(word)
        if word := data_checks.unlike_example(self.workload):
            self._warn(word)
        doubt = data_checks.doubt(evaluator.metric, baseline.metric, split.dense, split.targets)
        if doubt:
            self._warn(doubt)
        return baseline

    def compare_splits(self, evaluator: Evaluator, baseline: Baseline) -> None:
        """Warn where the dense model scores otherwise on test than on validation; for the search, not for each worker."""
        test = evaluator.dense.first_test_score()
        if test is not None and (word := data_checks.apart(evaluator.metric, baseline.metric, test)):
            self._warn(word)

    def look_at_batch_norms(self, evaluator: Evaluator) -> None:
        """Say so where the dense model would be better with the calibration data's statistics."""
        if self.late() or not running_statistics.batch_norms(self.workload.model):
            return
        self.progress.stage("comparing batch-norm statistics")
        split = evaluator.dense.validation
        if word := running_statistics.advice(self.workload, evaluator.metric, split.file, split.dense, split.targets):
            self._warn(word)

    def _warn(self, word: str) -> None:
        self.notes.append(word)
        self.progress.note(f"Warning: {word}")

    def pattern_speedups(self, evaluator: Evaluator, store: Store | None) -> dict[str, Measurement]:
        """What each mask pattern gains on the target; measured once a study."""
        stored = None if store is None else store.read("gains")
        if stored is not None:
            return {name: Measurement.from_table(Table(value, f"gain of {name}")) for name, value in stored.items()}
        space = self.resolved.space_file
        units = evaluator.pruner.units.values()
        tokens = sorted({unit.role for unit in units if unit.tokens is not None and unit.role in space.roles})
        if not (space.patterns or tokens) or not runtimes.get(self.resolved.runs_on.runtime).file.endswith(".onnx"):
            return {}
        self.progress.stage("measuring what the mask patterns gain at most")
        names = [*space.patterns, *tokens]
        return pattern_filter.pattern_speedups(evaluator, names, max(space.mask_sparsities, default=0.5))

    def refused_kinds(self, pruner: Pruner, bench: Bench, store: Store | None) -> None:
        """Try one sample of every kind of cut on targets that convert; what is refused is left out of the space.

        Args:
            store: of a study that has tried already, so that all who work on it mean the same by a recipe.
        """
        if not self.resolved.measured or pruner.untraceable:
            return
        if store is not None and store.read(STARTED):
            self.refused = dict(store.read(REFUSED_KINDS) or {})
            return
        roles = self.resolved.space_file.roles
        self.refused = operator_gate.refused_kinds(pruner, bench, self.resolved.targets, roles, self.progress.stage)
        for kind, reason in self.refused.items():
            self._warn(f"{kind} cuts are left out: {reason}")

    def fit_space(
        self, pruner: Pruner, pattern_speedups: Mapping[str, Measurement], device: Fingerprint, store: Store | None
    ) -> SearchSpace:
        """The space of the job for this model and target.

        Args:
            store: of a study that has one already, so that all who work on it mean the same by a recipe.
        """
        refused: dict[str, str | None] = dict(self.refused)
        if self.resolved.measured:  # a prediction overrules no profile
            refused |= {
                name: None if pattern_filter.pays(speedup) else pattern_filter.reason(speedup)
                for name, speedup in pattern_speedups.items()
            }
        space, notes = fitting.fit(
            self.resolved.space_file, pruner, self.resolved.prior, device.isa, all_patterns=self.job.all_patterns,
            refused=refused, recover=None if self.job.repaired else self.job.recover,
        )  # fmt: skip
        self.notes += notes
        places = {unit.tokens.place for unit in pruner.units.values() if unit.tokens is not None}
        if places and not patterns.TOKENS.keys() & set(self.resolved.space_file.roles):
            self.notes.append(
                f"Tokens can go at {formatting.some(len(places), 'place')} of this model: --space tokens searches that, too."
            )
        space = self._affordable(space, pruner, store)
        fitting.solve_options(pruner, space, self.progress.stage)
        if store is not None and store.read(STARTED):  # a study of an earlier version has the quick one in every trial
            return replace(space, compensation=store.read(COMPENSATION) or space.compensation)
        if self.job.repaired:
            space, note = with_thorough_compensation(space, pruner, self.progress.stage)
            self.notes += [word for word in (note, calibration_note(pruner)) if word]
        return space

    def _affordable(self, space: SearchSpace, pruner: Pruner, store: Store | None) -> SearchSpace:
        """The space without the exact masks that would take too much of the search's time; decided once a study."""
        if store is not None and store.read(STARTED):
            self.swept_masks = list(store.read(SWEPT_MASKS) or ())
        else:
            allowed_s = exactness.allowed_seconds(self.job.time_s)
            self.swept_masks, seconds = exactness.beyond(space, pruner, allowed_s)
            if self.swept_masks:
                self.notes.append(exactness.note(self.swept_masks, seconds, allowed_s))
                self.progress.note(self.notes[-1])
        return exactness.with_sweep(space, self.swept_masks)

    def build_model(
        self,
        pruner: Pruner,
        space: SearchSpace,
        bench: Bench,
        device: Fingerprint,
        baseline: Baseline,
        pattern_speedups: Mapping[str, Measurement],
        known: dict[str, Any] | None,
    ) -> SearchModel:
        savings = None if known is None else Savings.from_json(known)
        model = build_model(
            self.resolved, pruner, space, bench, device.identity, baseline, pattern_speedups, self.progress.stage, savings
        )
        self.notes += [note for note in (model.note, note_on_unsearched(model.savings)) if note]
        return model


def three_quarters_of_memory() -> int:
    """Bytes; so that a candidate that eats memory fails by itself, and not by the system ending the search."""
    return memory_limit() * 3 // 4
