"""All samplers on the same choices and the same evaluator, at equal numbers of evaluations and against wall-clock time.

    python benchmarks/samplers.py --workload resnet20 [--seeds 5] [--most 80] [--cache FILE] [--out FILE]

Every candidate that any sampler proposes is pruned, exported, scored on the validation split and timed once (what several
propose is evaluated once, and counts for each). Every seed has a price table of its own, measured anew: what a table is off by is
part of the interval, and samplers that need one are compared on the same. Each sampler's front, as it saw it, is then scored on held-out images and
measured again in new sessions; nothing that a sampler saw counts. Hypervolume of (drop, latency ratio) with reference
(10 points, 1.0), divided by that of the union of all samplers' points. Held-out drops of a front are made monotone along it by
averaging (pool adjacent violators): a hypervolume takes the luckiest of neighbours, so that of two equally good fronts the one
with more points would look better by a percent or so.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import workloads
from common import heading

from hwprune.errors import CandidateFailure
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.latency.source import Measured
from hwprune.pruning.pruner import Pruner
from hwprune.records import pareto as fronts
from hwprune.records import target as targets
from hwprune.searching.evaluating import pattern_filter
from hwprune.searching.evaluating.dense import EXAMPLE
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.job import Job
from hwprune.searching.resolved_job import resolve
from hwprune.searching.sampling import samplers, search_model
from hwprune.searching.space import fitting, space_file
from hwprune.searching.space import space as spaces
from hwprune.searching.study.attributes import DIVERGENCE

BUDGETS = (10, 20, 40, 80)
REFERENCE = (0.10, 1.0)
WARM = 10
TIMES = (60, 120, 240)
"""Seconds of search at which the wall-clock table looks."""


@dataclass
class Known:
    """One evaluated recipe; ``test_*`` once it was on somebody's front."""

    drop: float | None
    ratio: float | None
    divergence: float | None
    seconds: float
    test_drop: float | None = None
    test_ratio: float | None = None
    ratio_sd: float = 0.0


@dataclass
class Ground:
    """One workload, its choices, and everything that was evaluated."""

    name: str
    evaluator: Evaluator
    space: spaces.SearchSpace
    models: list[search_model.SearchModel]
    """One a price table; seeds take turns."""
    cache: Path
    costs: dict[str, float]
    known: dict[str, Known] = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of what this run's samplers proposed."""
    number: int = 0

    def model(self, seed: int) -> search_model.SearchModel:
        return self.models[seed % len(self.models)]

    def evaluate(self, parameters: dict[str, Any]) -> tuple[str, Known]:
        recipe = self.space.recipe(parameters)
        digest = recipe.digest
        if not recipe.choices:
            return digest, Known(0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        self.recipes[digest] = recipe
        self.parameters[digest] = parameters
        if digest not in self.known:
            self.number += 1
            start = time.perf_counter()
            trial = self.evaluator.evaluate(self.number, recipe, "bench")
            spent = time.perf_counter() - start
            self.evaluator.files.remove(self.number)
            ok = trial.measured
            self.known[digest] = Known(
                trial.drop if ok else None, 1 / trial.speedup.value if ok else None, trial.divergence.value if ok else None, spent
            )
            if ok:
                half = (trial.speedup.ci_high - trial.speedup.ci_low) / 2
                self.known[digest].ratio_sd = half / 1.96 / trial.speedup.value**2
            if self.number % 50 == 0:
                self.store()
        return digest, self.known[digest]

    def confirm(self, digest: str) -> Known:
        """Held-out drop and latency in new sessions."""
        known = self.known[digest]
        if known.test_ratio is None and known.drop is not None:
            evaluator = self.evaluator
            candidate = evaluator.pruner.prune(self.recipes[digest])
            folder = evaluator.files.folder(10**6)
            try:
                path, _ = evaluator.files.write_candidate(candidate, folder)
                evaluator.bench.load("candidate", path, threads=evaluator.scorer.threads)
                metric, _ = evaluator.scorer.score("candidate", evaluator.dense.test_split())
                ratios = []
                for _ in range(3):
                    ratios.append(1 / evaluator.timer.measure_long(path).ratio)
                dense, _ = self.dense_test
                known.test_drop = evaluator.metric.drop(dense, metric.value)
                known.test_ratio = statistics.median(ratios)
            except CandidateFailure:
                known.test_drop, known.test_ratio = 1.0, 1.0
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return known

    dense_test: tuple[float, int] = (0.0, 0)

    def store(self) -> None:
        data = {
            d: [k.drop, k.ratio, k.divergence, k.seconds, k.test_drop, k.test_ratio, k.ratio_sd] for d, k in self.known.items()
        }
        recipes = {d: r.to_json() for d, r in self.recipes.items()}
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        self.cache.write_text(json.dumps({"costs": self.costs, "known": data, "recipes": recipes}))


@dataclass
class Course:
    """What one sampler evaluated, in order, and when by its own clock."""

    arm: str
    seed: int
    digests: list[str] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)


def course(ground: Ground, arm: str, seed: int, count: int, warm: bool, planned: int) -> Course:
    """Let one sampler propose ``count`` different recipes."""
    space = store_distributions(ground.space)
    context = ground.model(seed).context(planned, space)
    sampler = samplers.make(arm, seed, context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    made = Course(arm + ("+warm" if warm else ""), seed)
    spent = ground.costs["database"] + (ground.costs["prices"] if arm in samplers.KNAPSACKS else 0.0)
    queue: list[dict[str, Any]] = []
    file = ground.space.file
    top = max(file.max_sparsity, *file.mask_sparsities)
    if warm:
        queue = [ground.space.uniform(top * (i + 1) / WARM, file.criteria[0]) for i in range(WARM)]
    if arm == samplers.UNIFORM:
        steps = max(1, planned // len(file.criteria))
        queue = [ground.space.uniform(top * (i + 1) / steps, m) for i in range(steps) for m in file.criteria]
    for parameters in queue:
        study.enqueue_trial(parameters)
    draw = random.Random(seed)
    repeats = 0
    while len(made.digests) < count and repeats < 60:
        if arm == samplers.UNIFORM and not any(t.state.name == "WAITING" for t in study.get_trials(deepcopy=False)):
            break
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = study.ask(space)
        spent += time.perf_counter() - start
        digest, known = ground.evaluate(asked.params)
        if known.drop is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            asked.set_user_attr(DIVERGENCE, known.divergence)
            asked.set_user_attr("ratio_sd", known.ratio_sd)
            study.tell(asked, (known.drop, 1 / known.ratio))
        if digest in made.digests or not ground.recipes.get(digest):
            repeats += 1
            if repeats % 10 == 0:  # as the product does when a sampler repeats itself
                study.enqueue_trial({n: pick(d, draw) for n, d in space.items()})
            continue
        repeats = 0
        spent += known.seconds
        made.digests.append(digest)
        made.clock.append(spent)
    return made


def pick(distribution: Any, draw: random.Random) -> Any:
    if hasattr(distribution, "choices"):
        return draw.choice(distribution.choices)
    return draw.randint(distribution.low, distribution.high)


def store_distributions(space: spaces.SearchSpace) -> dict[str, Any]:
    from hwprune.searching.study.store import Store

    made = Store.__new__(Store)
    made._space = space
    return made.distributions()


def chosen(ground: Ground, digests: list[str]) -> list[str]:
    """The front as the search saw it, by divergence on the validation split and latency: what it would confirm."""
    seen = [(d, ground.known[d]) for d in digests if ground.known[d].drop is not None]
    inside = [(d, k) for d, k in seen if k.drop < REFERENCE[0] and k.ratio < REFERENCE[1]]
    return [d for d, _ in fronts.non_dominated(inside, lambda p: (p[1].divergence, 1 / p[1].ratio))]


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Of (drop, ratio), both minimised."""
    area, best = 0.0, REFERENCE[1]
    inside = sorted(p for p in points if p[0] < REFERENCE[0] and p[1] < REFERENCE[1])
    for drop, ratio in inside:
        if ratio < best:
            area += (REFERENCE[0] - max(drop, -0.05)) * (best - ratio)
            best = ratio
    return area


def held_out(ground: Ground, digests: list[str]) -> list[tuple[float, float]]:
    points = [ground.confirm(d) for d in chosen(ground, digests)]
    return monotone([(p.test_drop, p.test_ratio) for p in points if p.test_drop is not None and p.test_ratio is not None])


def monotone(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(drop, ratio) with drops that never fall as candidates get faster: neighbours that do are averaged."""
    ordered = sorted(points, key=lambda p: -p[1])
    pools: list[list[float]] = []
    for drop, _ in ordered:
        pools.append([drop, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            last = pools.pop()
            pools[-1] = [pools[-1][0] + last[0], pools[-1][1] + last[1]]
    drops = [total / count for total, count in pools for _ in range(int(count))]
    return [(drop, ratio) for drop, (_, ratio) in zip(drops, ordered, strict=True)]


def fastest(ground: Ground, courses: list[Course], limit: float) -> str:
    """What one would ship: the fastest within ``limit`` by validation, told by its held-out speedup and drop; medians over seeds."""
    found = []
    for one in courses:
        seen = [ground.known[d] for d in chosen(ground, one.digests)]
        fits = [k for k in seen if k.drop is not None and k.drop <= limit and k.test_ratio is not None]
        best = min(fits, key=lambda k: k.ratio or 1.0, default=None)
        found.append((1.0, 0.0) if best is None else (1 / (best.test_ratio or 1.0), best.test_drop or 0.0))
    return f"{statistics.median(s for s, _ in found):.2f}x at {100 * statistics.median(d for _, d in found):+.1f}"


def interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    draw = np.random.default_rng(seed)
    means = draw.choice(np.array(values), (4000, len(values))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def ground_of(name: str, options: argparse.Namespace, folder: Path, bench: Bench, database: Path) -> Ground:
    """Trace, prepare, price; with what each costs."""
    costs: dict[str, float] = {}
    target = targets.load("cpu")
    pruner = Pruner(getattr(workloads, name)(), database)
    run = folder / "run"
    source = Measured(bench, run / "baseline" / EXAMPLE, Settings(clock=bench.clock, limit_s=0.2))
    evaluator = Evaluator(pruner, bench, source, target, run)
    baseline = evaluator.dense.prepare(evaluator.source)
    file = space_file.load(options.space)
    if options.tied:
        file = replace(file, tie=True)
    gains = pattern_filter.pattern_speedups(evaluator, file.patterns, max(file.mask_sparsities))
    for pattern, gain in gains.items():
        print(f"{pattern}: {'pays' if pattern_filter.pays(gain) else pattern_filter.reason(gain)}")
    refused = {n: None if pattern_filter.pays(g) else pattern_filter.reason(g) for n, g in gains.items()}
    space = fitting.build(file, pruner, target, fingerprint.isa(), refused=refused)
    start = time.perf_counter()
    from hwprune import compensation
    from hwprune.patterns import BRANCH

    inside = next((c.name for c in compensation.parse(space.compensation) if c.local), "none")
    for unit_space in space.units:
        for unit in (unit_space.unit, *unit_space.tied):
            for pattern, levels in unit_space.levels.items():
                if pattern != BRANCH:
                    for method in unit_space.methods:
                        pruner.options(unit, pattern, method, levels, inside)
    costs["database"] = time.perf_counter() - start
    job = Job("", trials=80)
    models = []
    for table in range(options.tables or options.seeds):
        start = time.perf_counter()
        # A table of its own, so that its cost is counted.
        search_model.cache_folder = lambda table=table: folder / f"cache{table}"  # type: ignore[attr-defined]
        models.append(
            search_model.build_model(resolve(job), pruner, space, bench, bench.identity(), baseline, gains, lambda _: None)
        )
        costs.setdefault("prices", time.perf_counter() - start)
    if models[0].note:
        print(models[0].note)
    cache = Path(options.cache or folder / "cache") / f"samplers-{name}.json"
    made = Ground(name, evaluator, space, models, cache, costs)
    dense, _ = evaluator.scorer.score("dense", evaluator.dense.test_split())
    made.dense_test = (dense.value, dense.samples)
    if cache.is_file():
        from hwprune.common.files import Table
        from hwprune.records.recipe import Recipe

        data = json.loads(cache.read_text())
        made.costs = {key: max(value, data["costs"][key]) for key, value in costs.items()}  # a cached database costs nothing
        made.known = {d: Known(*row) for d, row in data["known"].items()}
        made.recipes = {d: Recipe.from_table(Table(r, "cache")) for d, r in data["recipes"].items()}
        made.number = len(made.known)
    units = len(space.units)
    print(
        f"{name}: dense {dense.value:.4f} on {dense.samples} held-out examples, {1e3 * baseline.latency.value:.3f} ms; "
        f"{units} units, {len(models[0].posterior.problem.items)} items, 10^{space.size_log10:.1f} recipes; database {made.costs['database']:.1f} s, "
        f"table and predictions {made.costs['prices']:.1f} s; {len(models)} tables"
    )
    return made


FULL = ("knapsack", "tpe+warm")
FEWER = 40
"""Evaluations of the other samplers that draw at random: they have long stood still by then."""
COLD = ("random", "tpe")
WARMED = ("tpe", "nsga2", "nsga3", "gp")
SWEEPS = ("uniform", "threshold", "knapsack-sweep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="resnet20", choices=["resnet20", "wide_cnn", "minilm"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--most", type=int, default=80)
    parser.add_argument("--tables", type=int, default=0, help="price tables that are measured; default: one a seed")
    parser.add_argument("--arms", default="", help="comma-separated; default: all")
    parser.add_argument("--space", default="default")
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--cache", help="folder that keeps what was evaluated")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    heading(f"samplers on {options.workload}")
    budgets = [n for n in BUDGETS if n <= options.most]
    wanted = set(filter(None, options.arms.split(",")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = targets.load("cpu")
        database = Path(options.cache) / "database" if options.cache else folder / "database"
        with Bench(target) as bench:
            ground = ground_of(options.workload, options, folder, bench, database)
            results = run(ground, options, budgets, wanted)
            tables(ground, results, budgets)
            beliefs(ground)
            ground.store()


def run(ground: Ground, options: argparse.Namespace, budgets: list[int], wanted: set[str]) -> dict[str, dict[int, list[Course]]]:
    """arm -> budget -> its courses, one a seed."""
    results: dict[str, dict[int, list[Course]]] = {}

    def add(arm: str, warm: bool, sweep: bool, seeds: int) -> None:
        label = arm + ("+warm" if warm else "")
        if wanted and label not in wanted:
            return
        start = time.perf_counter()
        for seed in range(seeds):
            if sweep:  # planned for its budget
                for n in budgets:
                    results.setdefault(label, {}).setdefault(n, []).append(course(ground, arm, seed, n, warm, n))
                continue
            most = budgets[-1] if label in FULL else min(budgets[-1], FEWER)
            whole = course(ground, arm, seed, most, warm, most)
            for n in (n for n in budgets if n <= most):
                part = Course(label, seed, whole.digests[:n], whole.clock[:n])
                results.setdefault(label, {}).setdefault(n, []).append(part)
        print(f"  {label}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        ground.store()

    add("knapsack", False, False, options.seeds)
    for arm in SWEEPS:
        add(arm, False, True, 1 if arm == samplers.UNIFORM else options.seeds)
    for arm in WARMED:
        add(arm, True, False, options.seeds)
    for arm in COLD:
        add(arm, False, False, options.seeds)
    return results


def tables(ground: Ground, results: dict[str, dict[int, list[Course]]], budgets: list[int]) -> None:
    start = time.perf_counter()
    union = hypervolume([p for arm in results.values() for c in arm.values() for one in c for p in held_out(ground, one.digests)])
    share = {
        label: {n: [hypervolume(held_out(ground, c.digests)) / union for c in found] for n, found in by.items()}
        for label, by in results.items()
    }
    print(f"  confirming: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(f"\n## {ground.name}: hypervolume over the union's, held out, mean over seeds [95 % bootstrap]")
    print("| sampler | " + " | ".join(f"N = {n}" for n in budgets) + " | fastest within 1 point | within 3 points |")
    print("| --- |" + " --- |" * (len(budgets) + 2))
    last = 40 if 40 in budgets else budgets[-1]
    for label, by in sorted(share.items(), key=lambda pair: -statistics.fmean(pair[1][last])):
        cells = []
        for n in budgets:
            if n not in by:
                cells.append("")
                continue
            values = by[n]
            low, high = interval(values)
            count = len(results[label][n][0].digests)
            note = f" ({count} distinct)" if count < n else ""
            cells.append(
                f"{statistics.fmean(values):.3f} [{low:.3f}, {high:.3f}]{note}" if len(values) > 1 else f"{values[0]:.3f}{note}"
            )
        best = [fastest(ground, results[label][last], limit) for limit in (0.01, 0.03)]
        print(f"| {label} | " + " | ".join(cells) + f" | {best[0]} | {best[1]} |")
    if "knapsack" in share:
        print(f"\n### {ground.name}: the knapsack's hypervolume over another's, paired by seed [95 % bootstrap]")
        first = budgets[0]
        print(f"| against | N = {first} against its N = {last} | both N = {last} |")
        print("| --- | --- | --- |")
        for label, by in share.items():
            if label == "knapsack":
                continue
            cells = []
            for a in (first, last):
                other = by[last] * len(share["knapsack"][a]) if len(by[last]) == 1 else by[last]  # who has no seed
                if min(other) <= 0:
                    cells.append("(nothing within ten points)")
                    continue
                ratios = [x / y for x, y in zip(share["knapsack"][a], other, strict=False)]
                low, high = interval(ratios)
                cells.append(f"{statistics.fmean(ratios):.3f} [{low:.3f}, {high:.3f}]")
            print(f"| {label} | {cells[0]} | {cells[1]} |")
    print(f"\n### {ground.name}: hypervolume over the union's against seconds, database, table and predictions included")
    print("(*: all its evaluations were done before; random, tpe, nsga2, nsga3 and gp had 40, uniform as many as there are)\n")
    print("| sampler | " + " | ".join(f"{s} s" for s in TIMES) + " |")
    print("| --- |" + " --- |" * len(TIMES))
    for label, by in results.items():
        cells = []
        for limit in TIMES:
            values = []
            for one in by[max(by)]:
                count = sum(moment <= limit for moment in one.clock)
                values.append(hypervolume(held_out(ground, one.digests[:count])) / union)
            ended = all(one.clock and one.clock[-1] < limit for one in by[max(by)])
            cells.append(f"{statistics.fmean(values):.3f}{'*' if ended else ''}")
        print(f"| {label} | " + " | ".join(cells) + " |")
    print()
    assert math.isfinite(union)


BELIEFS = {
    "as it is": {},
    "no kinds": {"KIND": 1e-6},
    "no interactions": {"INTERACTIONS": 0.0},
    "all interactions": {"INTERACTIONS": 1.0},
    "sensitivities free": {"SENSITIVITY": 1.0},
    "no misfit": {"MISFIT": 1e-6, "KL_NOISE": 0.12},
    "what it replaced": {"INTERACTIONS": 1.0, "SENSITIVITY": 0.35, "MISFIT": 1e-6, "KL_NOISE": 0.12},
}
"""Name -> constants of `hwprune.searching.sampling.error_model`."""
NEAR = 0.4
"""ln KL above the least that saves as much: what a search chooses between."""


def beliefs(ground: Ground, repeats: int = 16) -> None:
    """How well the divergence of candidates near the front is predicted from a few others."""
    from hwprune.searching.sampling import error_model
    from hwprune.searching.sampling.knapsack import KnapsackSampler

    sampler = samplers.make("knapsack", 0, ground.model(0).context(80, store_distributions(ground.space)))
    assert isinstance(sampler, KnapsackSampler)
    rows, divergences, saved = [], [], []
    for digest, parameters in ground.parameters.items():
        known, chosen = ground.known[digest], sampler.problem.allocation(parameters)
        if known.divergence is not None and 1e-4 < known.divergence < 1.5 and chosen is not None:
            rows.append(chosen)
            divergences.append(known.divergence)
            saved.append(sum(s[o] for s, o in zip(sampler.problem.saved, chosen, strict=True)))
    count = len(rows)
    if count < 80:
        return
    chosen, divergence, times = np.array(rows), np.array(divergences), np.array(saved)
    least = np.array([divergence[times >= t - 1e-9].min() for t in times])
    near = np.log(divergence / least) < NEAR
    sizes = (10, 20, 40)
    print(
        f"\n### {ground.name}: root mean square error of the predicted ln KL of {int(near.sum())} candidates near the front, from N "
        f"others of {count}, mean over {repeats} draws\n| beliefs | " + " | ".join(f"N = {n}" for n in sizes) + " |"
    )
    print("| --- |" + " --- |" * len(sizes))
    before = {name: getattr(error_model, name) for how in BELIEFS.values() for name in how}
    for name, how in BELIEFS.items():
        for constant, value in (before | how).items():
            setattr(error_model, constant, value)
        cells = []
        for n in sizes:
            draw = np.random.default_rng(0)
            errors = []
            for _ in range(repeats):
                order = draw.permutation(count)
                seen, others = order[:n], order[n:][near[order[n:]]]
                model = error_model.ErrorModel(sampler.problem.errors, sampler.problem.gram, sampler.problem.kinds)
                model.fit(chosen[seen], divergence[seen], np.ones(n))
                told = model.samples(chosen[others], np.random.default_rng(0), 2)[0]
                errors.append(float(np.sqrt(np.mean((told - np.log(divergence[others])) ** 2))))
            cells.append(f"{statistics.fmean(errors):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    for constant, value in before.items():
        setattr(error_model, constant, value)


if __name__ == "__main__":
    main()
