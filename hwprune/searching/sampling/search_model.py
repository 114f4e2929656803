"""What the search knows before it evaluates a candidate: savings of all choices, and what the trials so far have taught.

All samplers share it: the knapsack proposes from it, and whatever proposed a candidate, it says when to stop early and when a
measured latency is too good to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from hwprune import compensation, runtimes
from hwprune.common import formatting
from hwprune.common.files import cache_folder
from hwprune.common.telling import Tell
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.fleet import FleetBench
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.roofline import Roofline
from hwprune.latency.segments import Segment
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial
from hwprune.searching.constraints import REPAIR, Constraints
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.evaluating.early_stopping import STOP_SD, Expectation, FrontMember
from hwprune.searching.resolved_job import ResolvedJob
from hwprune.searching.sampling import items
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Limits
from hwprune.searching.sampling.samplers import SamplerContext
from hwprune.searching.sampling.savings import Savings, by_work
from hwprune.searching.sampling.savings_estimator import SavingsEstimator, Times
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study.attributes import FILE

Array = np.ndarray[Any, Any]

ENOUGH = 8
"""Evaluated candidates before anything is stopped early or measured twice: until then the predictions have not been tested."""
TRAINED = 2.0
"""Factor by which the search looks further where finalists are trained."""
REFERENCE = 0.05
"""Worst drop that counts where the user gives none: five points of a metric between 0 and 1, a twentieth of any other."""


@dataclass(frozen=True, slots=True)
class SearchModel:
    """What one search knows of its candidates.

    Attributes:
        posterior: what is believed, over the items, their couplings and the limits.
        savings: what each level of each unit saves by itself, as the table says.
        note: why savings are rougher than they could be; empty: they are not.
    """

    posterior: Posterior
    savings: Savings
    note: str = ""

    def context(self, trials: int, space: Mapping[str, BaseDistribution]) -> SamplerContext:
        """What a sampler may know."""
        return SamplerContext(self.posterior, trials, space)

    def expectation(
        self, study: optuna.Study, asked: optuna.Trial, trials: Sequence[Trial], max_size: int | None = None
    ) -> Expectation:
        """What is expected of a candidate, and the front that it competes with.

        Args:
            trials: as they were searched; a finalist's thorough compensation is no yardstick for a quick one.
            max_size: what is larger is no member of the front.
        """
        done = [t for t in trials if t.measured and t.divergence is not None]
        if len(done) < ENOUGH:
            return Expectation()
        if self.posterior.fitted_for != asked.number:
            self.posterior.refit(study, asked.number)
        predicted = self.posterior.predict(asked.params)
        fits = [t for t in done if max_size is None or (t.size_bytes or 0) <= max_size]
        return Expectation(predicted or {}, front_members(fits))


def front_members(trials: Sequence[Trial]) -> tuple[FrontMember, ...]:
    """The trials that no other beats in (divergence, ratio)."""
    members: list[FrontMember] = []
    for trial in sorted(trials, key=lambda t: 1 / t.speedup.value if t.speedup else math.inf):
        assert trial.speedup is not None and trial.divergence is not None
        half = (trial.divergence.ci_high - trial.divergence.value) / 1.96
        member = FrontMember(trial.number, 1 / trial.speedup.value, trial.divergence.value + STOP_SD * half)
        if not members or member.high < members[-1].high:
            members.append(member)
    return tuple(members)


def limits_of(constraints: Constraints, baseline: Baseline, *, repaired: bool = False, trained: bool = False) -> Limits:
    """The user's constraints as the sampler wants them.

    Args:
        repaired: finalists will get back a part of their drop.
        trained: and a larger one.
    """
    dense = baseline.metric.value
    ratios = []
    if constraints.min_speedup is not None:
        ratios.append(1 / constraints.min_speedup)
    if constraints.max_latency_s is not None:
        ratios.append(constraints.max_latency_s / baseline.latency.value)
    smaller = None
    if constraints.max_size is not None and constraints.max_size < baseline.size_bytes:
        smaller = float(baseline.size_bytes - constraints.max_size)
    reference = REFERENCE if 0 <= dense <= 1 else REFERENCE * abs(dense)
    drop = constraints.max_drop
    if trained:
        reference *= TRAINED
    if drop is not None and (repaired or trained):
        drop *= TRAINED * REPAIR if trained else REPAIR
    return Limits(drop, min(ratios) if ratios else None, {} if smaller is None else {FILE: smaller}, reference)


def build_model(
    job: ResolvedJob,
    pruner: Pruner,
    space: SearchSpace,
    bench: Bench,
    identity: Mapping[str, Any],
    baseline: Baseline,
    pattern_speedups: Mapping[str, Measurement],
    step: Tell,
    savings: Savings | None = None,
) -> SearchModel:
    """Find the savings of every choice. Segments that were never measured on this device are measured now, and kept for others.

    Args:
        savings: those of the study, where it has begun: all its workers use the same.
    """
    note = ""
    if savings is None:
        try:
            savings = _estimate_savings(job, pruner, space, bench, identity, step)
        except (CandidateFailure, UsageError, RunError) as error:
            note = f"Prices of the choices come from multiply-accumulates, not from measured layers: {error}"
            savings = by_work(pruner, space)
        # Files hold a weight in as many bytes as the dense one does.
        factor = baseline.size_bytes / max(1, 4 * baseline.params)
        savings.bytes_saved = {key: round(value * factor) for key, value in savings.bytes_saved.items()}
    shares = {name: 1 - 1 / gain.value for name, gain in pattern_speedups.items() if gain.value > 0}
    choices = items.build(pruner, space, savings, shares, step)
    repaired = job.job.repaired and not pruner.untraceable and not compensation.is_sequential(space.compensation)
    limits = limits_of(job.constraints, baseline, repaired=repaired, trained=job.training is not None)
    if FILE in limits.min_saved:
        most = sum(max(choice.saves[FILE] for choice in item.choices) for item in choices)
        if most < limits.min_saved[FILE]:
            note += (
                f" The smallest file that this space can give is about {formatting.size(baseline.size_bytes - most)}: "
                f"{formatting.size(job.constraints.max_size or 0)} can't be reached."
            )
    problem = AllocationProblem(choices, savings.coupled, limits, items.canonical(space, choices))
    return SearchModel(Posterior(problem), savings, note.strip())


def _estimate_savings(
    job: ResolvedJob,
    pruner: Pruner,
    space: SearchSpace,
    bench: Bench,
    identity: Mapping[str, Any],
    step: Tell,
) -> Savings:
    runtime = runtimes.get(job.target.runtime)
    if not runtime.file.endswith(".onnx"):
        raise UsageError(f"{runtime.name} runs {runtime.file} files, which can't be taken apart")
    if job.job.estimate:
        roofline = Roofline(job.target)
        return SavingsEstimator(
            pruner, space, CutSegments(pruner), lambda s: {x.signature: roofline.seconds([x], {}) for x in s}
        ).savings()
    pieces = CutSegments(pruner, runtime.precision_of_file(job.target.precision))
    if isinstance(bench, FleetBench):
        dense = pieces.segments(pieces.cut({}))
        each = [
            (
                job.weights[name] or 1.0,
                _times_on(member, LatencyTable.stored(_tables(), bench.own_identity(name)), pruner, step, f" on {name}"),
            )
            for name, member in bench.members.items()
        ]
        return SavingsEstimator(pruner, space, pieces, lambda segments: _shares_of(each, dense, segments)).savings()
    table = job.table or LatencyTable.stored(_tables(), identity)
    times = _times_on(None if job.table else bench, table, pruner, step)
    return SavingsEstimator(pruner, space, pieces, times).savings()


def _tables() -> Path:
    return cache_folder() / "latency"


def _times_on(bench: Bench | None, table: LatencyTable, pruner: Pruner, step: Tell, where: str = "") -> Times:
    """Seconds of segments from one target's table; what it does not know is measured, or predicted where there is no bench."""
    model = LatencyModel(table, pruner.fingerprint)

    def times(segments: Sequence[Segment]) -> dict[str, float]:
        missing = [] if bench is None else table.missing(segments)
        if missing and bench is not None:
            text = f"timing {len(missing)} layers of candidates{where}"
            step(text, 0, len(missing))
            table.fill(bench, segments, lambda done, total: step(text, done, total))
        return {segment.signature: model.segment(segment)[0] for segment in segments}

    return times


def _shares_of(each: Sequence[tuple[float, Times]], dense: Sequence[Segment], segments: Sequence[Segment]) -> dict[str, float]:
    """Segments' shares of the dense time, the weighted mean over targets.

    Savings are shares and sums of these, so the mean of the shares gives the mean of the savings. What counts of a candidate, the
    worst target or the mean, is learned from those that are measured.
    """
    mean: dict[str, float] = {}
    total_weight = sum(weight for weight, _ in each)
    for weight, times in each:
        known = times([*dense, *segments])
        whole = sum(known[segment.signature] for segment in dense)
        for signature, seconds in known.items():
            mean[signature] = mean.get(signature, 0.0) + weight / total_weight * seconds / whole
    return mean
