"""One running search: start or resume, trials, confirmation, record."""

from __future__ import annotations

import datetime
import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from hwprune import compensation, export, front, runtimes
from hwprune import method as methods
from hwprune import target as targets
from hwprune.database import default_root
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.files import dump_json, sha256, write_atomic
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench, Limits
from hwprune.latency.host import Host, host
from hwprune.latency.paired import Settings
from hwprune.latency.source import MEASURED, Estimated, FromTable, Measured, Source
from hwprune.latency.table import LatencyTable
from hwprune.pruning import Pruner
from hwprune.recipe import Recipe
from hwprune.report.writing import write_report
from hwprune.searching import confirm
from hwprune.searching import space as spaces
from hwprune.searching.evaluator import EXAMPLE, Evaluator, latency_of, speedup_of
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.recording import build_record
from hwprune.searching.result import Result, clear_candidates, point_of
from hwprune.searching.space import SearchSpace
from hwprune.searching.store import Store
from hwprune.target import Target
from hwprune.trial import Trial
from hwprune.workload import Workload

SELF_CHECK_EVERY = 50
"""Trials between two measurements of the dense model against itself."""


class Session:
    """One search from start or resume to the confirmed front. Used once."""

    def __init__(
        self, job: Job, workload: Workload, run: Path, target: Target, space_file: spaces.SpaceFile, progress: Progress
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

    def go(self, resume: bool) -> Result:
        machine = host(self.job.remote or None)
        try:
            return self._go(resume, machine)
        finally:
            machine.close()

    def _bench(self, machine: Host) -> Bench:
        shapes = [tuple(x.shape) for x in self.workload.example_inputs]
        return Bench(self.runs_on, self.limits, machine, shapes)

    def _source(self, bench: Bench, model: str) -> Source:
        shapes = [tuple(x.shape) for x in self.workload.example_inputs]
        if self.job.estimate:
            return Estimated(self.target, shapes)
        if self.job.table:
            precision = runtimes.get(self.target.runtime).precision_of_file(self.target.precision)
            convert = None if precision == "fp32" else partial(export.converted, precision=precision)
            return FromTable(LatencyTable.read(Path(self.job.table)), model, self.target, shapes, convert)
        return Measured(bench, self.run / "baseline" / EXAMPLE, Settings(clock=bench.clock))

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
        self._identify(machine)
        self.progress.stage("tracing the model")
        pruner = Pruner(self.workload, Path(self.job.database) if self.job.database else default_root(), self.progress.calibrated)
        if pruner.untraceable:
            self.notes.append(f"Only mask patterns were searched: {pruner.untraceable}")
        space = spaces.build(self.space_file, pruner, self.target, self.isa, self.job.all_patterns)
        if self.job.recover != "auto":
            space = replace(space, compensation=self._compensation(pruner))
        self._solve(pruner, space)
        storage = self.job.storage or Store.default_storage(self.run)
        store = Store(storage, space, self.job.sampler, self.job.seed) if resume else None
        if store is not None:
            self._check_same(store, pruner.fingerprint)
        with self._bench(machine) as bench:
            evaluator = Evaluator(pruner, bench, self._source(bench, pruner.fingerprint), self.runs_on, self.run)
            self.progress.stage("measuring the dense model")
            baseline = evaluator.prepare()
            # Only now, so that a workload that can't be used leaves no half-made run behind.
            self.job.write(self.run)
            store = store or Store(storage, space, self.job.sampler, self.job.seed, create=True)
            self._start(store, space, pruner.fingerprint, baseline.metric.value)
            if self.measured:
                self._self_check(baseline.self_speedup.to_json(), 0, bool(baseline.self_speedup.conditions.get("passed", True)))
            else:
                self.notes.append(_banner(self.job, self.target))
            try:
                self._trials(store, space, evaluator)
                points = confirm.confirm(
                    evaluator, store.trials(), self.job, lambda: self._bench(machine), self.progress, self.notes
                )
            finally:
                self._write_record(store, space, evaluator, None)
                self.progress.close()
            self._write_record(store, space, evaluator, points)
        write_report(self.run)
        clear_candidates(self.run, {point.trial.number for point in points})
        return Result(self.run, tuple(store.trials()), tuple(point_of(p, self.run) for p in points), tuple(self.notes))

    # -- start and resume --------------------------------------------------------------------

    def _solve(self, pruner: Pruner, space: SearchSpace) -> None:
        """Every option of the axes, before the first trial: a trace gives all levels at once."""
        inside = next((one.name for one in compensation.parse(space.compensation) if one.local), compensation.NONE)
        units = [(unit, knob) for knob in space.knobs for unit in (knob.unit, *knob.tied) if pruner.units[unit].axis is not None]
        if inside == compensation.NONE and not any(methods.get(name).needs for _, knob in units for name in knob.methods):
            return  # scores alone are quick
        for number, (unit, knob) in enumerate(units):
            self.progress.stage(f"pruning {unit} in every way ({number + 1} of {len(units)})")
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

    def _start(self, store: Store, space: SearchSpace, model: str, dense_metric: float) -> None:
        """Write what a new study needs, or take up one that was interrupted, even in the middle of this."""
        if store.read("started") is None:
            store.write("model_fingerprint", model)
            store.write("identity", self.identity)
            store.write("dense_metric", dense_metric)
            store.write("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
            self._warm_start(store, space)
            store.write("started", True)
        before = store.read("dense_metric")
        if abs(before - dense_metric) > 1e-6 * max(1.0, abs(before)):
            raise UsageError(
                f"{self.run} was started with other validation data: the dense model scored {before:.6g}, now {dense_metric:.6g}"
            )
        again = store.recover()
        if again:
            self.progress.note(f"{again} trial(s) were interrupted and are evaluated again")

    def _warm_start(self, store: Store, space: SearchSpace) -> None:
        """A uniform sweep first; for the grid sampler that is the whole search."""
        if self.job.sampler == "grid":
            count = max(1, (self.job.trials or 40) // len(self.space_file.criteria))
            methods: tuple[str, ...] = self.space_file.criteria
        else:
            count = min(8, max(1, self.job.trials // 4)) if self.job.trials else 8
            methods = self.space_file.criteria[:1]
        top = max(self.space_file.max_sparsity, *self.space_file.mask_sparsities)
        for step in range(1, count + 1):
            for method in methods:
                store.enqueue(space.uniform(top * step / count, method), "uniform", again=False)

    # -- trials ------------------------------------------------------------------------------

    def _trials(self, store: Store, space: SearchSpace, evaluator: Evaluator) -> None:
        done = store.trials()
        known = {trial.recipe.digest: trial for trial in done}
        self._prune_folders(done)
        repeats = 0
        while not self._finished(len(done)):
            if self.job.sampler == "grid" and store.waiting == 0:
                self.notes.append(f"The grid is finished after {len(done)} trials.")
                break
            asked = store.ask()
            recipe = space.recipe(asked.params)
            earlier = known.get(recipe.digest) or self._dense(recipe, evaluator, asked.number)
            if earlier is not None:
                store.tell_duplicate(asked, earlier, self._constraints(earlier))
                repeats += 1
                stuck = repeats >= 10 and self.job.sampler != "grid"
                if stuck and not self._enqueue_unseen(store, space, known):
                    self.notes.append(f"The search space is exhausted after {len(done)} trials.")
                    break
                continue
            repeats = 0
            try:
                trial = evaluator.trial(asked.number, recipe, store.origin(asked))
            except BaseException:
                store.interrupt(asked, count=False)
                raise
            store.tell(asked, trial, self._constraints(trial))
            known[recipe.digest] = trial
            done.append(trial)
            self._prune_folders(done)
            self.progress.trial(trial, self._best(done), len(done), self.job.trials, self._left(len(done)))
            if len(done) % SELF_CHECK_EVERY == 0:
                self._again_against_itself(store, evaluator, done)
            self._snapshot(store, space, evaluator)

    def _dense(self, recipe: Recipe, evaluator: Evaluator, number: int) -> Trial | None:
        """The dense recipe needs no trial: it is the baseline."""
        if recipe.choices:
            return None
        base = evaluator.baseline
        assert base is not None
        one = replace(base.self_speedup, value=1.0, ci_low=1.0, ci_high=1.0)
        return Trial(number, recipe, "measured", base.metric, 0.0, base.latency, one, base.params, base.macs, base.size_bytes)

    def _finished(self, done: int) -> bool:
        if self.job.trials and done >= self.job.trials:
            return True
        return bool(self.job.time_s) and time.monotonic() - self.started >= self.job.time_s

    def _left(self, done: int) -> float | None:
        spent = time.monotonic() - self.started
        by_trials = spent / done * (self.job.trials - done) if self.job.trials else None
        by_time = self.job.time_s - spent if self.job.time_s else None
        known = [value for value in (by_trials, by_time) if value is not None]
        return min(known) if known else None

    def _constraints(self, trial: Trial) -> dict[str, float]:
        if not trial.measured:
            return {}
        drop, speedup = confirm.objectives(trial)
        found = {}
        if self.job.max_drop is not None:
            found["drop"] = drop - self.job.max_drop
        if self.job.min_speedup is not None:
            found["speedup"] = self.job.min_speedup - speedup
        return found

    def _enqueue_unseen(self, store: Store, space: SearchSpace, known: dict[str, Trial]) -> bool:
        """Propose a random recipe that was not evaluated yet; False if none was found in 1,000 draws."""
        draw = random.Random(f"{self.job.seed} {len(known)}")
        distributions = store.distributions()
        for _ in range(1000):
            parameters: dict[str, Any] = {}
            for name, distribution in distributions.items():
                if isinstance(distribution, optuna.distributions.IntDistribution):
                    parameters[name] = draw.randint(distribution.low, distribution.high)
                elif isinstance(distribution, optuna.distributions.CategoricalDistribution):
                    parameters[name] = draw.choice(distribution.choices)
            recipe = space.recipe(parameters)
            if recipe.choices and recipe.digest not in known:
                store.enqueue(parameters, "random")
                return True
        return False

    def _best(self, done: list[Trial]) -> Trial | None:
        """The fastest trial within ``max_drop`` (or one point), for the progress line."""
        limit = self.job.max_drop if self.job.max_drop is not None else 0.01
        good = [t for t in done if t.measured and confirm.objectives(t)[0] <= limit]
        return max(good, key=lambda t: confirm.objectives(t)[1], default=None)

    def _prune_folders(self, done: list[Trial]) -> None:
        """Keep the files of trials that may be finalists."""
        layers = front.layers([t for t in done if t.measured], confirm.objectives)[:2]
        clear_candidates(self.run, {t.number for layer in layers for t in layer})

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
            self.notes.append(
                f"After {done} trials the dense model measured {value['value']:.3f}x [{value['ci_low']:.3f}, "
                f"{value['ci_high']:.3f}] against copies of itself: the machine is noisy, and speedups of the search that "
                "differ by less than this can't be told apart. The final front is measured again."
            )
        return passed

    # -- the record -------------------------------------------------------------------------

    def _snapshot(self, store: Store, space: SearchSpace, evaluator: Evaluator) -> None:
        """record.json while the search runs: every few seconds, because it holds all trials."""
        now = time.monotonic()
        if now - self._written > 5:
            self._written = now
            self._write_record(store, space, evaluator, None)

    def _write_record(
        self, store: Store, space: SearchSpace, evaluator: Evaluator, points: list[confirm.Confirmed] | None
    ) -> None:
        """``points`` None: the search is not finished."""
        assert evaluator.baseline is not None
        record = build_record(
            job=self.job,
            workload=self.workload,
            target=self.target,
            identity=self.identity,
            conditions=self.conditions,
            space=space,
            graph=evaluator.pruner.graph,
            baseline=evaluator.baseline,
            trials=store.trials(),
            points=points or [],
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
