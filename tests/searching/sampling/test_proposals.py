"""Proposals under limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest

from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import Choice, Item, Limits
from tests.searching.sampling.helpers import Problem


def test_a_size_limit_is_kept_by_every_proposal():
    problem = Problem(4, units=6)
    items = [
        Item(i.name, tuple(dataclasses.replace(c, saves={"file": 100.0 * p}) for p, c in enumerate(i.choices)))
        for i in problem.items()
    ]
    sampler = KnapsackSampler(items, limits=Limits(min_saved={"file": 900.0}))
    study = problem.run(sampler, 12)
    for trial in study.trials:
        assert sum(100.0 * level for level in trial.params.values()) >= 900


def test_several_limits_are_kept_at_once_and_options_that_only_they_need_stay():
    """Memory at its peak is a limit on each layer's; one option saves nothing but memory."""
    problem = Problem(4, units=6)

    def with_memory(place, item):
        saves = [{f"memory at {place}": 10.0 * p, "file": 100.0 * p} for p in range(len(item.choices))]
        choices = [dataclasses.replace(c, saves=s) for c, s in zip(item.choices, saves, strict=True)]
        slim = {**choices[-1].parameters, **{key: len(choices) for key in choices[-1].parameters}}
        return Item(item.name, (*choices, Choice(slim, 0.05, -0.01, {f"memory at {place}": 60.0})))

    items = [with_memory(place, item) for place, item in enumerate(problem.items())]
    limits = Limits(min_saved={"file": 300.0, "memory at 0": 55.0, "memory at 3": 20.0})
    sampler = KnapsackSampler(items, limits=limits)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    for _ in range(12):
        asked = study.ask(sampler.distributions())
        taken = [next(c for c in i.choices if all(asked.params[k] == v for k, v in c.parameters.items())) for i in items]
        for name, needed in limits.min_saved.items():
            assert sum(choice.saves.get(name, 0.0) for choice in taken) >= needed
        study.tell(asked, (sum(choice.error for choice in taken), 1 / (1 - sum(choice.saved for choice in taken))))


def test_a_drop_limit_moves_the_search_there():
    def fastest(study):
        return max((t.values[1] for t in study.trials if t.values[0] <= 0.02), default=1.0)

    gains, near = [], np.zeros(2)
    for seed in range(5, 10):
        problem = Problem(seed)
        loose = problem.run(KnapsackSampler(problem.items()), 15)
        tight = problem.run(KnapsackSampler(problem.items(), limits=Limits(max_drop=0.02)), 15)
        gains.append(fastest(tight) / fastest(loose))
        near += np.array([sum(t.values[0] <= 0.03 for t in study.trials) for study in (tight, loose)])
    assert near[0] > near[1]
    assert np.mean(np.log(gains)) > 0.01


def test_the_plain_sweep_learns_nothing():
    problem = Problem(8)

    def proposals(factor):
        study = optuna.create_study(
            directions=["minimize", "maximize"], sampler=KnapsackSampler(problem.items(), explore=False, trials=8)
        )
        found = []
        for _ in range(8):
            asked = study.ask(KnapsackSampler(problem.items()).distributions())
            levels = list(asked.params.values())
            found.append(levels)
            kl, drop, ratio = problem.evaluate(levels)
            study.tell(asked, (drop * factor, 1 / (ratio * factor)))
        return found

    assert proposals(1.0) == proposals(0.6)


def test_where_nothing_meets_the_limits_the_nearest_is_soon_tried():
    items = [
        Item(f"u{u}", tuple(Choice({f"u{u}": i}, 5.0 * i, 0.1 * i, {}, 3.2 * np.sqrt(i) * np.ones(4)) for i in range(4)))
        for u in range(4)
    ]
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=KnapsackSampler(items, limits=Limits(max_drop=0.001))
    )
    tried = []
    for _ in range(6):
        asked = study.ask(KnapsackSampler(items).distributions())
        tried.append(sum(asked.params.values()))
        study.tell(asked, (0.1 * tried[-1], 1 / (1 - 0.05 * tried[-1])))
    assert 1 in tried  # one step of one unit


def test_kinds_that_are_not_trusted_are_not_proposed(monkeypatch):
    from hwprune.searching.sampling import proposals

    def kinds(trust):
        monkeypatch.setattr(proposals, "success_rates", lambda _seen, _drops: trust)
        problem = Problem(3)
        study = problem.run(KnapsackSampler(problem.items()), 8)
        return {trial.system_attrs["hwprune:proposal"]["kind"] for trial in study.trials[2:]}

    assert "mean" not in kinds({"mean": 1e-9, "move": 1.0, "thompson": 1.0, "prior": 1.0})
    assert "thompson" not in kinds({"mean": 1.0, "move": 1.0, "thompson": 1e-9, "prior": 1.0})


def test_what_is_surely_beaten_is_not_proposed():
    """A cliff behind what is known: nothing slower than a candidate without any drop is tried again."""
    items = [Item(f"u{u}", tuple(Choice({f"u{u}": i}, 0.001 * i * i, 0.05 * i) for i in range(6))) for u in range(3)]
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=KnapsackSampler(items))
    space = KnapsackSampler(items).distributions()
    for _ in range(14):
        asked = study.ask(space)
        saved = 0.05 * sum(asked.params.values())
        kl = 0.001 * sum(level**2 for level in asked.params.values())
        asked.set_user_attr("divergence", kl)
        asked.set_user_attr("drop_sd", 0.004)
        study.tell(asked, (0.0 if saved < 0.5 else 0.3, 1 / (1 - saved)))
    best = max(trial.values[1] for trial in study.trials if trial.values[0] == 0.0)
    assert best == pytest.approx(1 / (1 - 0.45))
    late = [trial.values[1] for trial in study.trials[8:]]
    assert sum(speed < 0.8 * best for speed in late) <= 1


def test_a_large_gain_does_not_excuse_what_is_nearly_surely_beaten(monkeypatch):
    """An average over few draws may be large by one of them."""
    problem = Problem(3)
    sampler = KnapsackSampler(problem.items())
    study = problem.run(sampler, 4)
    real = sampler.posterior.expected_gain

    def gains(pool, seen, draw):
        found = real(pool, seen, draw)
        first = np.arange(len(pool)) == 0
        return found._replace(gain=np.where(first, 100.0, 1.0), beaten=np.where(first, 0.97, 0.0))

    monkeypatch.setattr(sampler.posterior, "expected_gain", gains)
    chosen, why = sampler.propose(study, 99)
    assert why["beaten"] == 0.0
    assert any(chosen)
