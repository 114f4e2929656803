"""The sampler on synthetic problems whose truth is known, and its parts against independent computations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import optuna
import pytest

import hwprune
from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import Choice, Item
from tests.searching.sampling.helpers import Problem

optuna.logging.set_verbosity(optuna.logging.ERROR)


def items_for(store):
    """Items over a store's own parameters, with made-up savings."""
    names = store.distributions()
    (level,) = [name for name in names if name.endswith(" kept")]
    rest = {name: d.choices[0] for name, d in names.items() if name != level}
    kept = range(names[level].high, names[level].low - 1, -names[level].step)
    choices = [Choice({level: k, **rest}, 0.01 * i**2, 0.1 * i) for i, k in enumerate(kept)]
    return (Item("only", tuple(choices)),)


def area(study):
    """Mean logarithm of the fastest speedup over all limits on the drop, by counting: nothing of the code under test."""
    limits = np.linspace(0, 0.05, 400, endpoint=False)
    best = np.array([max([t.values[1] for t in study.trials if t.values[0] <= limit], default=1.0) for limit in limits])
    return float(np.log(np.maximum(best, 1)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_ten_proposals_beat_forty_of_tpe_and_random(seed):
    problem = Problem(seed)
    mine = area(problem.run(hwprune.KnapsackSampler(problem.items(), seed=seed), 10))
    for other in (optuna.samplers.TPESampler(seed=seed, multivariate=True), optuna.samplers.RandomSampler(seed=seed)):
        assert mine > 1.2 * area(problem.run(other, 40))


def test_learning_beats_the_plain_sweep_where_the_prior_is_wrong():
    learned = plain = 0.0
    for seed in range(3):
        problem = Problem(seed, spread=1.0)
        learned += area(problem.run(KnapsackSampler(problem.items(), seed=seed), 20))
        plain += area(problem.run(KnapsackSampler(problem.items(), seed=seed, explore=False, trials=20), 20))
    assert learned > plain


def test_never_the_same_twice_until_all_is_seen():
    items = [Item(f"u{u}", tuple(Choice({f"u{u}": i}, 0.01 * i, 0.1 * i) for i in range(3))) for u in range(2)]
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=KnapsackSampler(items))
    seen = []

    def objective(trial):
        levels = (trial.suggest_int("u0", 0, 2), trial.suggest_int("u1", 0, 2))
        seen.append(levels)
        return 0.01 * sum(levels), 1 + 0.1 * sum(levels)

    study.optimize(objective, n_trials=8)
    assert sorted(seen) == sorted(set(itertools.product(range(3), repeat=2)) - {(0, 0)})


def test_categories_and_more_than_one_objective_name():
    items = [Item("a", (Choice({"pattern": "dense", "level": 0}, 0, 0), Choice({"pattern": "2:4", "level": 1}, 0.1, 0.2)))]
    sampler = KnapsackSampler(items)
    space = sampler.distributions()
    assert space["pattern"].choices == ("dense", "2:4")
    assert (space["level"].low, space["level"].high) == (0, 1)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    asked = study.ask(space)
    assert asked.params == {"pattern": "2:4", "level": 1}


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).resolve().parents[3] / "docs" / "search.md").read_text()
    code = text.split("```python")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert len(names["study"].trials) == 3
    assert len({tuple(t.params.values()) for t in names["study"].trials}) == 3
