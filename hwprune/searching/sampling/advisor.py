"""What the search knows before it evaluates a candidate: prices of all choices, and what the trials so far have taught.

All samplers share it: the knapsack proposes from it, and whatever proposed a candidate, it says when to stop early and when a
measured latency is too good to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from hwprune import runtimes
from hwprune.common import formatting
from hwprune.common.files import cache_folder
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.roofline import Roofline
from hwprune.latency.segments import Segment
from hwprune.probe.pieces import Pieces
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target
from hwprune.records.trial import Trial
from hwprune.searching.constraints import REPAIR, Constraints
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.evaluating.early_stopping import SURE, Advice, Rival
from hwprune.searching.job import Job
from hwprune.searching.sampling import items
from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.prices import Prices, by_work
from hwprune.searching.sampling.pricing import Pricing
from hwprune.searching.sampling.problem import Item, Limits
from hwprune.searching.sampling.samplers import Context
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study.attributes import FILE

Array = np.ndarray[Any, Any]

ENOUGH = 8
"""Evaluated candidates before anything is stopped early or measured twice: until then the predictions have not been tested."""
TRAINED = 2.0
"""Factor by which the search looks further where finalists are trained."""
REFERENCE = 0.1
"""Worst drop that counts where the user gives none: ten points of a metric between 0 and 1, a tenth of any other."""


@dataclass(slots=True)
class Advisor:
    """Items and models of one search."""

    items: tuple[Item, ...]
    coupled: Mapping[tuple[str, str], Array]
    limits: Limits
    canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    prices: Prices
    note: str = ""
    """Why prices are rougher than they could be; empty: they are not."""
    model: KnapsackSampler | None = None
    """Where the search's sampler is one already: what is believed is then fitted once a trial, not twice."""

    def context(self, trials: int, space: Mapping[str, BaseDistribution]) -> Context:
        return Context(self.items, self.coupled, self.limits, trials, space, self.canonical)

    def advice(self, study: optuna.Study, asked: optuna.Trial, trials: Sequence[Trial], max_size: int | None = None) -> Advice:
        """What is expected of a candidate, and the front that it competes with.

        Args:
            trials: as they were searched; a finalist's thorough compensation is no yardstick for a quick one.
            max_size: what is larger is no rival.
        """
        if self.model is None:
            self.model = KnapsackSampler(self.items, self.coupled, self.limits, canonical=self.canonical)
        done = [t for t in trials if t.measured and t.divergence is not None]
        if len(done) < ENOUGH:
            return Advice()
        if self.model.fitted_for != asked.number:
            self.model.refit(study, asked.number)
        predicted = self.model.predict(asked.params)
        return Advice(predicted or {}, rivals([t for t in done if max_size is None or (t.size_bytes or 0) <= max_size]))


def rivals(trials: Sequence[Trial]) -> tuple[Rival, ...]:
    """The trials that no other beats in (divergence, ratio)."""
    found: list[Rival] = []
    for trial in sorted(trials, key=lambda t: 1 / t.speedup.value if t.speedup else math.inf):
        assert trial.speedup is not None and trial.divergence is not None
        half = (trial.divergence.ci_high - trial.divergence.value) / 1.96
        one = Rival(trial.number, 1 / trial.speedup.value, trial.divergence.value + SURE * half)
        if not found or one.high < found[-1].high:
            found.append(one)
    return tuple(found)


def limits_of(constraints: Constraints, baseline: Baseline, repaired: bool = False, trained: bool = False) -> Limits:
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


def build(
    job: Job,
    pruner: Pruner,
    space: SearchSpace,
    target: Target,
    bench: Bench,
    identity: Mapping[str, Any],
    baseline: Baseline,
    constraints: Constraints,
    gains: Mapping[str, Measurement],
    step: Callable[[str], None],
    prices: Prices | None = None,
) -> Advisor:
    """Price every choice. Segments that were never measured on this device are measured now, and kept for other searches.

    Args:
        prices: those of the study, where it has begun: all its workers use the same.
    """
    note = ""
    if prices is None:
        try:
            prices = _priced(job, pruner, space, target, bench, identity, step)
        except (CandidateFailure, UsageError, RunError) as error:
            note = f"Prices of the choices come from multiply-accumulates, not from measured layers: {error}"
            prices = by_work(pruner, space)
        # Files hold a weight in as many bytes as the dense one does.
        factor = baseline.size_bytes / max(1, 4 * baseline.params)
        prices.bytes_saved = {key: round(value * factor) for key, value in prices.bytes_saved.items()}
    shares = {name: 1 - 1 / gain.value for name, gain in gains.items() if gain.value > 0}
    found = items.build(pruner, space, prices, shares, step)
    limits = limits_of(constraints, baseline, job.repaired and not pruner.untraceable, job.training is not None)
    if FILE in limits.min_saved:
        most = sum(max(choice.saves[FILE] for choice in item.choices) for item in found)
        if most < limits.min_saved[FILE]:
            note += (
                f" The smallest file that this space can give is about {formatting.size(baseline.size_bytes - most)}: "
                f"{formatting.size(constraints.max_size or 0)} can't be reached."
            )
    return Advisor(tuple(found), prices.coupled, limits, items.canonical(space, found), prices, note.strip())


def _priced(
    job: Job,
    pruner: Pruner,
    space: SearchSpace,
    target: Target,
    bench: Bench,
    identity: Mapping[str, Any],
    step: Callable[[str], None],
) -> Prices:
    runtime = runtimes.get(target.runtime)
    if not runtime.file.endswith(".onnx"):
        raise UsageError(f"{runtime.name} runs {runtime.file} files, which can't be taken apart")
    if job.estimate:
        roofline = Roofline(target)
        return Pricing(pruner, space, Pieces(pruner), lambda s: {x.signature: roofline.seconds([x], {}) for x in s}).prices()
    stored = job.table and Path(job.table)
    table = LatencyTable.read(stored) if stored else LatencyTable.stored(cache_folder() / "latency", identity)
    model = LatencyModel(table, pruner.fingerprint)

    def times(segments: Sequence[Segment]) -> dict[str, float]:
        missing = [] if job.table else table.missing(segments)
        if missing:
            step(f"timing {len(missing)} layers of candidates")
            table.fill(bench, segments)
        return {segment.signature: model.segment(segment)[0] for segment in segments}

    return Pricing(pruner, space, Pieces(pruner, runtime.precision_of_file(target.precision)), times).prices()
