"""One running search: start or resume, trials, confirmation, record."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from hwprune import compensation, runtimes
from hwprune.common import formatting
from hwprune.common.files import Table, dump_json, sha256, write_atomic
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench, Limits
from hwprune.latency.host import Host, host
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.paired import Settings
from hwprune.latency.source import MEASURED, Estimated, FromTable, Measured, Source
from hwprune.methods import method as methods
from hwprune.onnx_files import to_onnx
from hwprune.pruning.database import default_root
from hwprune.pruning.pruner import Pruner
from hwprune.records import pareto
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target
from hwprune.records.trial import Trial
from hwprune.recovery.loop.losses import loss_fault
from hwprune.report.writing import write_report
from hwprune.searching.evaluating import pattern_filter
from hwprune.searching.evaluating.candidate_files import clear_candidates
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.evaluating.evaluator import EXAMPLE, Evaluator
from hwprune.searching.evaluating.timing import latency_of, speedup_of
from hwprune.searching.final import confirm, finalists, point, quantise_finalists, train_finalists
from hwprune.searching.final.point import point_of
from hwprune.searching.job import Job
from hwprune.searching.loop import CLOSED, Work
from hwprune.searching.preflight import check_same_metric
from hwprune.searching.progress import Progress
from hwprune.searching.recording import build_record
from hwprune.searching.result import Result
from hwprune.searching.sampling import advisor, samplers
from hwprune.searching.sampling.advisor import Advisor
from hwprune.searching.sampling.prices import Prices
from hwprune.searching.space import space as spaces
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.space_file import SpaceFile
from hwprune.searching.study.attributes import STARTED
from hwprune.searching.study.store import Store
from hwprune.workload import data_checks
from hwprune.workload.workload import Workload

SELF_CHECK_EVERY = 50
"""Trials between two measurements of the dense model against itself."""


class Session:
    """One search from start or resume to the confirmed front. Used once."""

    def __init__(
        self, job: Job, workload: Workload, run: Path, target: Target, space_file: SpaceFile, progress: Progress
    ) -> None:
        self.job, self.workload, self.run, self.target, self.progress = job, workload, run, target, progress
        self.space_file = space_file
        # Of another machine's memory nothing is known here; its own system ends what takes too much.
        self.limits = Limits(job.trial_timeout_s, job.memory_limit or (0 if job.remote else _three_quarters_of_memory()))
        self.measured = job.latency_source == MEASURED
        self.runs_on = target if self.measured else targets.load("cpu")
        """Accuracy always comes from a runtime; where the device is absent, from this machine's CPU."""
        self.identity: dict[str, Any] = {}
        self.conditions = fingerprint.conditions()
        self.isa = fingerprint.isa()
        self.notes: list[str] = []
        self.self_checks: list[dict[str, Any]] = []
        self.started = time.monotonic()
        self._written = 0.0
        self._writing_s = 0.0
        self._own_trials = 0
        self._saves: dict[str, tuple[list[int], list[float]]] = {}
        """Size of an axis -> share of the dense time that it saves by itself, as the table says."""

    def go(self, resume: bool) -> Result:
        machine = host(self.job.remote or None)
        try:
            return self._go(resume, machine)
        finally:
            machine.close()

    def _bench(self, machine: Host) -> Bench:
        shapes = [tuple(x.shape) for x in self.workload.example_inputs]
        return Bench(self.runs_on, self.limits, machine, shapes)

    def _source(self, bench: Bench, model: str, example: Path | None = None) -> Source:
        shapes = [tuple(x.shape) for x in self.workload.example_inputs]
        if self.job.estimate:
            return Estimated(self.target, shapes)
        if self.job.table:
            precision = runtimes.get(self.target.runtime).precision_of_file(self.target.precision)
            convert = None if precision == "fp32" else partial(to_onnx.converted, precision=precision)
            return FromTable(LatencyTable.read(Path(self.job.table)), model, self.target, shapes, convert)
        return Measured(bench, example or self.run / "baseline" / EXAMPLE, Settings(clock=bench.clock))

    def _identify(self, machine: Host) -> None:
        """Whose numbers these are."""
        if self.job.table:
            folder = Path(self.job.table)
            digests = [sha256(path) for name in ("table.csv", "models.csv") if (path := folder / name).is_file()]
            self.identity = {**LatencyTable.read(folder).identity, "source": "table", "table": digests}
            self.isa = str(self.identity.get("isa", "default"))
        elif self.job.estimate:
            self.identity = {"target": self.target.name, "source": "estimated", "roofline": dict(self.target.roofline)}
            self.isa = "default"
        else:
            with self._bench(machine) as bench:
                self.identity = bench.identity()
                self.isa = bench.check()["isa"]
                self.conditions = bench.conditions()

    def _go(self, resume: bool, machine: Host) -> Result:
        quantise_finalists.check(self.job, self.target)
        self._identify(machine)
        storage = self.job.storage or Store.default_storage(self.run)
        store = Store(storage, None) if resume else None
        pruner = self._pruner()
        self._check_training(pruner)
        if store is not None:
            self._check_same(store, pruner.fingerprint)
        with self._bench(machine) as bench:
            evaluator = Evaluator(pruner, bench, self._source(bench, pruner.fingerprint), self.runs_on, self.run)
            self.progress.stage("measuring the dense model")
            baseline = evaluator.prepare()
            if word := data_checks.doubt(evaluator.metric, baseline.metric, evaluator.validation.dense[0][0].shape):
                self.notes.append(word)
                self.progress.note(f"Warning: {word}")
            gains = self._gains(evaluator, store)
            if store is not None:  # the study's own, so that levels mean the same sizes to all who work on it
                self.isa = str(store.read("isa") or self.isa)
            space = self._space(pruner, gains)
            # Only now, so that a workload that can't be used leaves no half-made run behind; and the study before the job,
            # because workers take the job's file for the word that they may open the study.
            known = None if store is None else store.read("prices")
            if store is not None:
                store.close()
            store = Store(storage, space, create=store is None)
            self.job.write(self.run)
            advisor = self._advisor(pruner, space, bench, baseline, gains, known)
            self._start(store, space, pruner.fingerprint, baseline, gains, advisor)
            if self.measured:
                self._self_check(baseline.self_speedup.to_json(), 0, bool(baseline.self_speedup.conditions.get("passed", True)))
            else:
                self.notes.append(_banner(self.job, self.target))
            work = Work(
                self.job, store, space, evaluator, advisor, self._sampler(advisor, store), self.progress, notes=self.notes,
                started=self.started, after=lambda done: self._after(done, store, space, evaluator),
            )  # fmt: skip
            try:
                self._clear(store.trials())
                work.run()
                points = confirm.confirm(evaluator, store, self.job, lambda: self._bench(machine), self.progress, self.notes)
                untrained, trained = points, self._trained(evaluator, store, machine)
                points = train_finalists.both_regimes(points, trained, self.job.constraints) if trained else points
                quantised = self._quantised(evaluator, store, machine, points)
                points = train_finalists.both_regimes(points, quantised, self.job.constraints) if quantised else points
            finally:
                self._write_record(store, space, evaluator, None)
                self.progress.close()
            self.notes += quantise_finalists.left_out(quantised, points)
            points, untrained, trained, quantised = self._aligned(evaluator, points, untrained, trained, quantised)
            self._write_record(store, space, evaluator, points, untrained, trained, quantised)
        write_report(self.run)
        clear_candidates(self.run, {point.trial.number for point in points})
        trials = tuple(store.trials())
        store.close()
        return Result(self.run, trials, tuple(point_of(p, self.run) for p in points), tuple(self.notes))

    def _trained(self, evaluator: Evaluator, store: Store, machine: Host) -> list[point.Confirmed]:
        """The trained candidates, measured and scored like any other; none where the job asks for no training."""
        plan = self.job.training
        if plan is None:
            return []
        found = train_finalists.train_finalists(evaluator, store, plan, self.job.constraints, self.progress, self.notes)
        return confirm.confirm_derived(evaluator, found, lambda: self._bench(machine), self.progress, self.notes)

    def _quantised(
        self, evaluator: Evaluator, store: Store, machine: Host, points: Sequence[point.Confirmed]
    ) -> list[point.Confirmed]:
        """The dense model and the front in other precisions, measured and scored like any other; none where none is asked for."""
        if not self.job.precisions:
            return []
        found = quantise_finalists.quantise_points(evaluator, store, self.job, points, self.progress, self.notes)
        return confirm.confirm_derived(evaluator, found, lambda: self._bench(machine), self.progress, self.notes)

    def _aligned(self, evaluator: Evaluator, *groups: Sequence[point.Confirmed]) -> list[list[point.Confirmed]]:
        """Points of several rounds with latencies that go with the dense model's of the last one."""
        base = evaluator.baseline
        if not self.measured or base is None:
            return [list(group) for group in groups]
        dense_s = base.latency.value * base.self_speedup.value  # its own row is divided by what it measured against itself
        return [point.aligned(group, dense_s) for group in groups]

    def join(self) -> int:
        """Work on a study that another process has begun, until it is finished; returns how many trials this process did.

        Raises:
            UsageError: there is no study, or it is of another model or version.
        """
        machine = host(self.job.remote or None)
        try:
            with tempfile.TemporaryDirectory(prefix="hwprune-worker-") as name:
                return self._join(machine, Path(name))
        finally:
            machine.close()

    def _join(self, machine: Host, scratch: Path) -> int:
        self._identify(machine)
        storage = self.job.storage or Store.default_storage(self.run)
        store = Store(storage, None)
        pruner = self._pruner()
        can_time = self._can_time(store, pruner.fingerprint)
        with self._bench(machine) as bench:
            source = self._source(bench, pruner.fingerprint, scratch / EXAMPLE)
            evaluator = Evaluator(pruner, bench, source, self.runs_on, self.run, scratch)
            self.progress.stage("measuring the dense model")
            baseline = evaluator.prepare()
            gains = self._gains(evaluator, store)
            self.isa = str(store.read("isa"))
            space = self._space(pruner, gains)
            before, prices, dense_s = (store.read(key) for key in ("dense_metric", "prices", "dense_latency_s"))
            store.close()
            store = Store(storage, space)
            check_same_metric(self.run, before, baseline.metric.value, exact=can_time)
            # What a limit on the latency means is decided by the study's device.
            baseline = replace(baseline, latency=replace(baseline.latency, value=dense_s, ci_low=dense_s, ci_high=dense_s))
            advisor = self._advisor(pruner, space, bench, baseline, gains, prices)
            work = Work(
                self.job, store, space, evaluator, advisor, self._sampler(advisor, store), self.progress, chief=False,
                can_time=can_time, started=self.started,
            )  # fmt: skip
            try:
                work.run()
            finally:
                self.progress.close()
                store.close()
        return work.evaluated

    def _can_time(self, store: Store, model: str) -> bool:
        """Is this the device of the study? Raises `UsageError` if it is another model, or not even the same versions."""
        if store.read(STARTED) is None:
            raise UsageError(f"the search in {self.run} has not got to its first trial yet: start the worker a little later")
        if store.read("model_fingerprint") != model:
            raise UsageError(f"{self.run} was started with another model: its weights have another fingerprint")
        before = store.read("identity")
        if before == self.identity:
            return True
        if reason := runtimes.missing(self.target.runtime):
            raise UsageError(
                f"candidates of {self.run} are scored and shipped as files of {self.target.runtime}, which can't run here: "
                f"{reason}"
            )
        self.progress.note(
            "this is not the device of the study: latencies are left to workers on it; this one prunes and scores candidates"
        )
        return False

    def _pruner(self) -> Pruner:
        self.progress.stage("tracing the model")
        root = Path(self.job.database) if self.job.database else default_root()
        pruner = Pruner(self.workload, root, self.progress.calibrated)
        if pruner.untraceable:
            self.notes.append(f"Only mask patterns were searched: {pruner.untraceable}")
        return pruner

    def _check_training(self, pruner: Pruner) -> None:
        """Before hours of search: can finalists be trained at all? Raises `UsageError`."""
        if self.job.training is None:
            return
        what = f"--recover {self.job.recover}"
        if self.workload.train is None:
            raise UsageError(f"{what} needs training data: give the workload a loader, hwprune.Workload(train=...)")
        if pruner.untraceable:
            raise UsageError(f"{what} needs a model that can be traced: {pruner.untraceable}")
        inputs, targets = next(self.workload.batches("train"))  # an empty loader must be known now, not after the search
        data_checks.check_batches(self.workload, pruner.graph.module.eval(), ("train",))
        if targets is None and self.job.training.task_weight > 0:
            raise UsageError(f"{what} needs labels, and the train loader gives none: distill:EPOCHS learns from the dense model")
        if all(not p.requires_grad for p in self.workload.model.parameters()):
            raise UsageError(f"{what}: every parameter of the model is frozen (requires_grad=False): nothing can be trained")
        if self.job.training.task_weight > 0:
            problem = loss_fault(self.workload, pruner.graph.module.eval(), inputs, targets)
            if problem:
                raise UsageError(f"{what}: on the first training batch of the dense model {problem}")

    def _gains(self, evaluator: Evaluator, store: Store | None) -> dict[str, Measurement]:
        """What each mask pattern gains on the target; measured once a study."""
        stored = None if store is None else store.read("gains")
        if stored is not None:
            return {name: Measurement.from_table(Table(value, f"gain of {name}")) for name, value in stored.items()}
        if not self.space_file.patterns or not runtimes.get(self.runs_on.runtime).file.endswith(".onnx"):
            return {}
        self.progress.stage("measuring what the mask patterns gain at most")
        most = max(self.space_file.mask_sparsities, default=0.5)
        return pattern_filter.gains(evaluator, self.space_file.patterns, most)

    def _space(self, pruner: Pruner, gains: Mapping[str, Measurement]) -> SearchSpace:
        refused: dict[str, str | None] = {}
        if self.measured:  # a prediction overrules no profile
            refused = {name: None if pattern_filter.pays(gain) else pattern_filter.reason(gain) for name, gain in gains.items()}
        space = spaces.build(self.space_file, pruner, self.target, self.isa, self.job.all_patterns, refused)
        if not self.job.repaired:
            space = replace(space, compensation=self._compensation(pruner))
        self._solve(pruner, space)
        return space

    def _advisor(
        self,
        pruner: Pruner,
        space: SearchSpace,
        bench: Bench,
        baseline: Baseline,
        gains: Mapping[str, Measurement],
        known: dict[str, Any] | None,
    ) -> Advisor:
        constraints = self.job.constraints
        prices = None if known is None else Prices.from_json(known)
        made = advisor.build(
            self.job, pruner, space, self.target, bench, self.identity, baseline, constraints, gains, self.progress.stage, prices
        )
        if made.note:
            self.notes.append(made.note)
        self._saves = made.prices.by_size(space)
        for knob in space.knobs:
            if (knob.unit, 1) in made.prices.saved and knob.unit not in self._saves:  # a branch is there or not
                self._saves[knob.unit] = ([0, knob.size], [made.prices.saved[knob.unit, 1], 0.0])
        return made

    def _sampler(self, known: Advisor, store: Store) -> optuna.samplers.BaseSampler:
        return samplers.make(self.job.sampler, self.job.seed, known.context(self.job.trials, store.distributions()))

    # -- start and resume --------------------------------------------------------------------

    def _solve(self, pruner: Pruner, space: SearchSpace) -> None:
        """Every option of the axes, before the first trial: a trace gives all levels at once."""
        inside = next((one.name for one in compensation.parse(space.compensation) if one.local), compensation.NONE)
        formatting = [
            (unit, knob) for knob in space.knobs for unit in (knob.unit, *knob.tied) if pruner.units[unit].axis is not None
        ]
        if inside == compensation.NONE and not any(methods.get(name).needs for _, knob in formatting for name in knob.methods):
            return  # scores alone are quick
        for number, (unit, knob) in enumerate(formatting):
            self.progress.stage(f"pruning {unit} in every way ({number + 1} of {len(formatting)})")
            for pattern, levels in knob.levels.items():
                for name in knob.methods:
                    pruner.options(unit, pattern, name, levels, inside)

    def _compensation(self, pruner: Pruner) -> str:
        wanted = self.job.recover
        steps = compensation.parse(wanted)
        useful = [one.name for one in steps if one.applies(pruner.graph.module)]
        for one in steps:
            if one.name not in useful:
                self.notes.append(f"--recover {one.name} has nothing to do in this model.")
        return "+".join(useful) or compensation.NONE

    def _check_same(self, store: Store, model: str) -> None:
        """A run goes on only with the same model, on the same device and versions. Raises `UsageError`."""
        if store.read("model_fingerprint") not in (None, model):
            raise UsageError(f"{self.run} was started with another model: its weights have another fingerprint")
        before = store.read("identity") or self.identity
        if before != self.identity:
            changed = [f"{k}: {before.get(k)!r} -> {v!r}" for k, v in self.identity.items() if before.get(k) != v]
            raise UsageError(
                f"{self.run} was measured under other conditions; numbers of different machines or versions can't be mixed:",
                changed,
            )

    def _start(
        self,
        store: Store,
        space: SearchSpace,
        model: str,
        baseline: Baseline,
        gains: Mapping[str, Measurement],
        known: Advisor,
    ) -> None:
        """Write what a new study needs, or take up one that was interrupted, even in the middle of this."""
        dense_metric = baseline.metric.value
        if store.read(STARTED) is None:
            store.write("isa", self.isa)
            store.write("dense_latency_s", baseline.latency.value)
            store.write("prices", known.prices.to_json())
            store.write("model_fingerprint", model)
            store.write("identity", self.identity)
            store.write("dense_metric", dense_metric)
            store.write("gains", {name: gain.to_json() for name, gain in gains.items()})
            store.write("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
            self._warm_start(store, space)
            store.write(STARTED, True)
        store.write(CLOSED, False)
        check_same_metric(self.run, store.read("dense_metric"), dense_metric, exact=True)

    def _warm_start(self, store: Store, space: SearchSpace) -> None:
        """A uniform sweep first, for samplers that know nothing of the choices; the uniform sampler has nothing else."""
        if self.job.sampler in samplers.KNAPSACKS:
            return
        if self.job.sampler == samplers.UNIFORM:
            count = max(1, (self.job.trials or 40) // len(self.space_file.criteria))
            methods: tuple[str, ...] = self.space_file.criteria
        else:
            count = min(8, max(1, self.job.trials // 4)) if self.job.trials else 8
            methods = self.space_file.criteria[:1]
        top = max(self.space_file.max_sparsity, *self.space_file.mask_sparsities)
        for step in range(1, count + 1):
            for method in methods:
                store.enqueue(space.uniform(top * step / count, method), "uniform", again=False)

    # -- after each trial --------------------------------------------------------------------

    def _after(self, done: list[Trial], store: Store, space: SearchSpace, evaluator: Evaluator) -> None:
        self._clear(done)
        self._own_trials += 1
        if self._own_trials % SELF_CHECK_EVERY == 0:
            self._again_against_itself(store, evaluator, done)
        self._snapshot(store, space, evaluator)

    def _clear(self, done: list[Trial]) -> None:
        """Keep the files of trials that may be finalists; those of trials that are not finished are not touched."""
        layers = pareto.layers([t for t in done if t.measured and t.searched], finalists.standing, most=2)
        kept = {t.number for layer in layers for t in layer} | {t.number for t in done if not t.searched}
        clear_candidates(self.run, kept, {t.number for t in done})

    # -- the dense model against itself ------------------------------------------------------

    def _again_against_itself(self, store: Store, evaluator: Evaluator, done: list[Trial]) -> None:
        """The gate: where it fails, what was measured since the last one is measured again, as far as its files are there."""
        source = evaluator.source
        if not isinstance(source, Measured):
            return
        try:
            result = source.gate()
        except CandidateFailure as failure:
            raise RunError(f"the dense model can't be measured against itself any more: {failure.reason}") from failure
        numbers = {"value": result["speedup"], "ci_low": result["ci_low"], "ci_high": result["ci_high"]}
        if not self._self_check(numbers, len(done), result["passed"]):
            again = 0
            for trial in done[-SELF_CHECK_EVERY:]:
                if trial.measured and (paired := evaluator.measure_again(trial)) is not None:
                    store.remeasured(trial.number, speedup_of(paired), latency_of(paired))
                    again += 1
            self.notes.append(f"{again} candidates of that time were measured again.")
            done[:] = store.trials()

    def _self_check(self, speedup: dict[str, Any], done: int, passed: bool) -> bool:
        value = {"trials": done, **{key: speedup[key] for key in ("value", "ci_low", "ci_high")}, "passed": passed}
        self.self_checks.append(value)
        if not passed:
            when = f"After {formatting.some(done, 'trial')}" if done else "Before the first trial"
            self.notes.append(
                f"{when} the dense model measured {value['value']:.3f}x [{value['ci_low']:.3f}, "
                f"{value['ci_high']:.3f}] against copies of itself: the machine is noisy, and speedups of the search that "
                "differ by less than this can't be told apart. The final front is measured again."
            )
        return passed

    # -- the record -------------------------------------------------------------------------

    def _snapshot(self, store: Store, space: SearchSpace, evaluator: Evaluator) -> None:
        """record.json while the search runs: every few seconds, and never for more than a twentieth of the time."""
        now = time.monotonic()
        if now - self._written > max(5.0, 20 * self._writing_s):
            self._write_record(store, space, evaluator, None)
            self._written = time.monotonic()
            self._writing_s = self._written - now

    def _write_record(
        self,
        store: Store,
        space: SearchSpace,
        evaluator: Evaluator,
        points: list[point.Confirmed] | None,
        untrained: Sequence[point.Confirmed] = (),
        trained: Sequence[point.Confirmed] = (),
        quantised: Sequence[point.Confirmed] = (),
    ) -> None:
        """``points`` None: the search is not finished."""
        assert evaluator.baseline is not None
        record = build_record(
            job=self.job,
            workload=self.workload,
            calibration_sha256=evaluator.calibration_sha256,
            saves=self._saves,
            target=self.target,
            identity=self.identity,
            conditions=self.conditions,
            space=space,
            graph=evaluator.pruner.graph,
            baseline=evaluator.baseline,
            trials=store.trials(),
            points=points or [],
            untrained=untrained if self.job.training is not None or self.job.precisions else (),
            trained=trained,
            quantised=quantised,
            finished=points is not None,
            created=str(store.read("created")),
            notes=self.notes,
            self_checks=self.self_checks,
        )
        write_atomic(self.run / "record.json", dump_json(record))


def _banner(job: Job, target: Target) -> str:
    """What must be read before any number of a run that measured no latency."""
    if job.table:
        return (
            f"PREDICTED, NOT MEASURED: latencies come from the table {job.table}, which was measured on the device; intervals "
            f"hold the prediction's own error. Measure the chosen points on {target.name} before you ship them."
        )
    return (
        f"ESTIMATED, NOT MEASURED: latencies are a roofline of {target.name} from its data sheet. Real kernels reach neither "
        "its peak nor its bandwidth, and nothing here says by how much. Use it to choose what to measure, never as a result."
    )


def _three_quarters_of_memory() -> int:
    """So that a candidate that eats memory fails by itself, and not by the system ending the search."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
