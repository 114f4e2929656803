"""One running search: start or resume, trials, the final round, the record."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hwprune import runtimes
from hwprune.errors import UsageError
from hwprune.latency.host import Host, host
from hwprune.pruning.pruner import Pruner
from hwprune.records import pareto
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial
from hwprune.report.writing import write_report
from hwprune.searching import preflight, time_plan
from hwprune.searching.callbacks import Callback, call
from hwprune.searching.evaluating.candidate_files import clear_candidates
from hwprune.searching.evaluating.dense import EXAMPLE, Baseline
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final import finalists, quantise_finalists
from hwprune.searching.final.confirm import Confirmer
from hwprune.searching.final.final_round import run_final_round
from hwprune.searching.final.point import point_of
from hwprune.searching.final.short_trainings import ShortTrainings
from hwprune.searching.loop import Work
from hwprune.searching.progress import Progress
from hwprune.searching.recording import Fingerprint, RecordWriter
from hwprune.searching.resolved_job import ResolvedJob
from hwprune.searching.result import Result
from hwprune.searching.sampling import samplers
from hwprune.searching.sampling.search_model import SearchModel
from hwprune.searching.self_check import SelfCheck
from hwprune.searching.setup import Setup
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study import dashboard
from hwprune.searching.study.attributes import CLOSED, COMPENSATION, REFUSED_KINDS, STARTED, SWEPT_MASKS
from hwprune.searching.study.store import Store
from hwprune.searching.time_plan import TimePlan, Times
from hwprune.workload import data_checks
from hwprune.workload.workload import Workload


class Session:
    """One search from start or resume to the confirmed front, or one worker that joins it. Used once."""

    def __init__(
        self,
        resolved: ResolvedJob,
        workload: Workload,
        run: Path,
        progress: Progress,
        times: Times | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.callbacks = callbacks
        self.times = times or Times(resolved.job, progress)
        self.resolved, self.job = resolved, resolved.job
        self.workload, self.run, self.progress = workload, run, progress
        self.setup = Setup(resolved, workload, run, progress)
        self.storage = self.job.storage or Store.default_storage(run)
        self.notes = self.setup.notes

    def go(self, *, resume: bool) -> Result:
        """Run the search to its end.

        Raises:
            UsageError: the workload, the target or the run that is resumed can't be used.
            RunError: the dense model can't be measured, or the storage fails.
        """
        machine = host(self.job.remote or None)
        try:
            return self._go(resume=resume, machine=machine)
        finally:
            machine.close()

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

    # -- the search itself -------------------------------------------------------------------

    def _go(self, *, resume: bool, machine: Host) -> Result:
        for target in self.resolved.targets:
            quantise_finalists.check_precisions(self.job, target)
        self.setup.announce()
        store = Store(self.storage, None) if resume else None
        pruner = self.setup.trace()
        self.times.phase(time_plan.DENSE)
        device = self.setup.identify(machine)
        preflight.check_limit(self.job.max_drop, self.workload)
        preflight.check_training(self.resolved.training, pruner)
        if store is not None:
            preflight.check_same_model(self.run, store.read("model_fingerprint"), pruner.fingerprint)
            preflight.check_same_device(self.run, store.read("identity"), device.identity)
        with self.setup.bench(machine) as bench:
            evaluator = Evaluator(pruner, bench, self.setup.source(bench, pruner), self.resolved.runs_on, self.run)
            baseline = self.setup.measure_dense(evaluator)
            self.setup.compare_splits(evaluator, baseline)
            self.setup.look_at_batch_norms(evaluator)
            self.setup.refused_kinds(pruner, bench, store)
            pattern_speedups = self.setup.pattern_speedups(evaluator, store)
            if store is not None:  # the study's own, so that levels mean the same sizes to all who work on it
                device = replace(device, isa=str(store.read("isa") or device.isa))
            self.times.phase(time_plan.CHOICES)
            space = self.setup.fit_space(pruner, pattern_speedups, device, store)
            self.times.phase(time_plan.PRICES)
            # The study only now, so that a workload that can't be used leaves no half-made run behind.
            savings = None if store is None else store.read("prices")
            if store is not None:
                store.close()
            store = Store(self.storage, space, create=store is None)
            self.job.write(self.run)
            model = self.setup.build_model(pruner, space, bench, device, baseline, pattern_speedups, savings)
            self._start_study(store, space, pruner, device, baseline, pattern_speedups, model)
            return self._search(evaluator, store, space, model, device, machine)

    def _search(
        self, evaluator: Evaluator, store: Store, space: SearchSpace, model: SearchModel, device: Fingerprint, machine: Host
    ) -> Result:
        """The trials, and the final round."""
        dense = evaluator.dense.baseline
        checks = SelfCheck()
        if self.resolved.measured:
            checks.first(dense.self_speedup)
        else:
            self.notes.append(_banner(self.resolved))
        record = RecordWriter(self.run, store, {
            "job": self.resolved, "workload": self.workload, "fingerprint": device, "space": space,
            "graph": evaluator.pruner.graph, "units": evaluator.pruner.units,
            "calibration_sha256": evaluator.dense.calibration_sha256,
            "savings_by_size": model.savings.for_record(space),
        })  # fmt: skip

        short = ShortTrainings.of_search(evaluator, store, self.resolved.training, self.progress)

        def after_trial(done: list[Trial]) -> None:
            self._clear(done)
            done[:] = checks.after_trial(evaluator, store, done)
            if short is not None:
                short.after_trial(store.trials(as_searched=True), model.posterior.problem.limits)
            record.snapshot(dense, [*self.notes, *checks.notes], checks.results)
            if call(self.callbacks, store.study, done[-1].number):
                plan.stop()
                self.notes.append(f"A callback stopped the search after trial {done[-1].number}.")

        sampler = samplers.make(self.job.sampler, self.job.seed, model.context(self.job.trials, store.distributions()))
        finalist_s = time_plan.finalist_seconds(dense.latency.value) if self.resolved.measured else 0.0
        plan = TimePlan(self.job.trials, self.job.time_s, self.setup.started, self.times.finalist_s(finalist_s))
        work = Work(
            self.job,
            store,
            space,
            evaluator,
            model,
            sampler,
            self.progress,
            plan,
            after=after_trial,
            notes=self.notes,
        )
        final = None
        try:
            self._clear(store.trials())
            self.setup.prepared()
            self.times.phase(time_plan.TRIALS)
            work.run()
            self.times.phase(time_plan.FINAL)
            confirmer = Confirmer(
                evaluator, store, self.job, lambda: self.setup.bench(machine), self.progress, model.posterior.problem.limits,
                plan.most_finalists,
            )  # fmt: skip
            final = run_final_round(confirmer, self.resolved, self.times.phase)
            self.times.finish(confirmer.measured)
            if any(data_checks.NOT_ALIKE in note for note in final.notes):  # the whole test split knows better than a sample
                self.notes[:] = [note for note in self.notes if data_checks.NOT_ALIKE not in note]
            self.notes += final.notes
        finally:
            record.write(final.dense if final else dense, [*self.notes, *checks.notes], checks.results, final)
            self.progress.close()
        write_report(self.run)
        dashboard.show_run(store.study, self.run)
        clear_candidates(self.run, {point.trial.number for point in final.points})
        trials = tuple(store.trials())
        store.close()
        notes = (*self.notes, *checks.notes)
        return Result(self.run, trials, tuple(point_of(point, self.run) for point in final.points), notes)

    def _clear(self, done: list[Trial]) -> None:
        """Keep the files of trials that may be finalists; those of trials that are not finished are not touched."""
        layers = pareto.layers([t for t in done if t.measured and t.searched], finalists.rank_objectives, most=2)
        kept = {t.number for layer in layers for t in layer} | {t.number for t in done if not t.searched}
        clear_candidates(self.run, kept, {t.number for t in done})

    # -- a worker ----------------------------------------------------------------------------

    def _join(self, machine: Host, scratch: Path) -> int:
        device = self.setup.identify(machine)
        store = Store(self.storage, None)
        pruner = self.setup.trace()
        can_time = self._can_time(store, pruner.fingerprint, device)
        with self.setup.bench(machine) as bench:
            source = self.setup.source(bench, pruner, scratch / EXAMPLE)
            evaluator = Evaluator(pruner, bench, source, self.resolved.runs_on, self.run, scratch)
            baseline = self.setup.measure_dense(evaluator)
            self.setup.refused_kinds(pruner, bench, store)
            pattern_speedups = self.setup.pattern_speedups(evaluator, store)
            device = replace(device, isa=str(store.read("isa")))
            space = self.setup.fit_space(pruner, pattern_speedups, device, store)
            before, savings, dense_s = (store.read(key) for key in ("dense_metric", "prices", "dense_latency_s"))
            store.close()
            store = Store(self.storage, space)
            preflight.check_same_metric(self.run, before, baseline.metric.value, exact=can_time)
            # What a limit on the latency means is decided by the study's device.
            latency = replace(baseline.latency, value=dense_s, ci_low=dense_s, ci_high=dense_s)
            model = self.setup.build_model(
                pruner, space, bench, device, replace(baseline, latency=latency), pattern_speedups, savings
            )
            sampler = samplers.make(self.job.sampler, self.job.seed, model.context(self.job.trials, store.distributions()))
            plan = TimePlan(self.job.trials, self.job.time_s, self.setup.started)
            work = Work(self.job, store, space, evaluator, model, sampler, self.progress, plan, is_main=False, can_time=can_time)
            try:
                work.run()
            finally:
                self.progress.close()
                store.close()
        return work.evaluated

    def _can_time(self, store: Store, model: str, device: Fingerprint) -> bool:
        """Is this the device of the study? Raises `UsageError` if it is another model, or not even the same versions."""
        if store.read(STARTED) is None:
            raise UsageError(f"the search in {self.run} has not got to its first trial yet: start the worker a little later")
        if store.read("model_fingerprint") != model:
            raise UsageError(f"{self.run} was started with another model: its weights have another fingerprint")
        if store.read("identity") == device.identity:
            return True
        for target in self.resolved.targets:
            if reason := runtimes.missing(target.runtime):
                raise UsageError(f"candidates of {self.run} are for {target.runtime}, which can't run here: {reason}")
        self.progress.note(
            "this is not the device of the study: latencies are left to workers on it; this one prunes and scores candidates"
        )
        return False

    # -- the study ---------------------------------------------------------------------------

    def _start_study(
        self,
        store: Store,
        space: SearchSpace,
        pruner: Pruner,
        device: Fingerprint,
        baseline: Baseline,
        pattern_speedups: Mapping[str, Measurement],
        model: SearchModel,
    ) -> None:
        """Write what a new study needs, or take up one that was interrupted, even in the middle of this."""
        dense_metric = baseline.metric.value
        if store.read(STARTED) is None:
            store.write("isa", device.isa)
            store.write(SWEPT_MASKS, self.setup.swept_masks)
            store.write(REFUSED_KINDS, self.setup.refused)
            store.write("dense_latency_s", baseline.latency.value)
            store.write("prices", model.savings.to_json())
            store.write("model_fingerprint", pruner.fingerprint)
            store.write("identity", dict(device.identity))
            store.write("dense_metric", dense_metric)
            store.write(COMPENSATION, space.compensation)
            store.write("gains", {name: speedup.to_json() for name, speedup in pattern_speedups.items()})
            store.write("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
            for parameters in samplers.warm_start(self.job.sampler, self.job.trials, space):
                store.enqueue(parameters, "uniform", again=False)
            store.write(STARTED, True)
        store.write(CLOSED, False)
        preflight.check_same_metric(self.run, store.read("dense_metric"), dense_metric, exact=True)


def _banner(job: ResolvedJob) -> str:
    """What must be read before any number of a run that measured no latency."""
    if job.table is not None:
        return (
            f"PREDICTED, NOT MEASURED: latencies come from the table {job.job.table}, which was measured on the device; "
            f"intervals hold the prediction's own error. Measure the chosen points on {job.target.name} before you ship them."
        )
    return (
        f"ESTIMATED, NOT MEASURED: latencies are a roofline of {job.target.name} from its data sheet. Real kernels reach neither "
        "its peak nor its bandwidth, and nothing here says by how much. Use it to choose what to measure, never as a result."
    )
