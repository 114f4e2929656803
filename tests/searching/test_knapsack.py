"""The sampler on synthetic problems whose truth is known, and its parts against independent computations."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import optuna
import pytest

import hwprune
from hwprune.searching.sampling.drop_model import DropModel, improvement
from hwprune.searching.sampling.error_model import INTERACTIONS, ErrorModel
from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import Choice, Item, Limits
from hwprune.searching.sampling.ratio_model import RatioModel

optuna.logging.set_verbosity(optuna.logging.ERROR)


def items_for(store):
    """Items over a store's own parameters, with made-up savings."""
    names = store.distributions()
    (level,) = [name for name in names if name.startswith("level:")]
    rest = {name: d.choices[0] for name, d in names.items() if name != level}
    choices = [Choice({level: i, **rest}, 0.01 * i**2, 0.1 * i) for i in range(names[level].high + 1)]
    return (Item("only", tuple(choices)),)


class Problem:
    """Twelve units whose true errors differ from the prior by a factor each, with responses that interact."""

    def __init__(self, seed, units=12, levels=6, spread=0.5):
        draw = np.random.default_rng(seed)
        self.saved = [np.concatenate([[0.0], np.sort(draw.random(levels)) * draw.uniform(0.02, 0.1)]) for _ in range(units)]
        scale = draw.lognormal(0, 1, units)
        directions = draw.standard_normal((units, 64))
        self.responses = [
            np.stack([directions[u] * np.sqrt(0.02 * scale[u] * (i / levels) ** 2) for i in range(levels + 1)])
            for u in range(units)
        ]
        self.truth = draw.lognormal(0, spread, units)

    def items(self):
        found = []
        for u, (saved, rows) in enumerate(zip(self.saved, self.responses, strict=True)):
            choices = [
                Choice({f"u{u}": i}, float(np.square(row).mean()) / 2, float(s), {}, row)
                for i, (s, row) in enumerate(zip(saved, rows, strict=True))
            ]
            found.append(Item(f"u{u}", tuple(choices)))
        return found

    def divergence(self, levels):
        total = sum(np.sqrt(self.truth[u]) * self.responses[u][i] for u, i in enumerate(levels))
        return 0.4 * float(np.square(total).mean()) / 2

    def evaluate(self, levels):
        kl = self.divergence(levels)
        ratio = 1 - 0.9 * sum(self.saved[u][i] for u, i in enumerate(levels))
        return kl, 0.15 * np.sqrt(kl), ratio

    def run(self, sampler, count, names=None):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        space = KnapsackSampler(self.items()).distributions()

        def objective(trial):
            levels = [trial.suggest_int(f"u{u}", 0, space[f"u{u}"].high) for u in range(len(self.saved))]
            kl, drop, ratio = self.evaluate(levels)
            trial.set_user_attr("divergence", kl)
            return drop, 1 / ratio

        study.optimize(objective, n_trials=count)
        return study


def area(study):
    """Hypervolume by counting cells: nothing of the code under test."""
    points = [(t.values[0], 1 / t.values[1]) for t in study.trials]
    drops = np.linspace(0, 0.1, 400, endpoint=False)
    best = np.array([min([r for d, r in points if d <= limit], default=1.0) for limit in drops])
    return float(np.maximum(1 - best, 0).mean())


@pytest.mark.parametrize("seed", range(3))
def test_ten_proposals_beat_forty_of_tpe_and_random(seed):
    problem = Problem(seed)
    mine = area(problem.run(hwprune.KnapsackSampler(problem.items(), seed=seed), 10))
    for other in (optuna.samplers.TPESampler(seed=seed, multivariate=True), optuna.samplers.RandomSampler(seed=seed)):
        assert mine > 1.2 * area(problem.run(other, 40))


@pytest.mark.parametrize("seed", range(3))
def test_learning_beats_the_plain_sweep_where_the_prior_is_wrong(seed):
    problem = Problem(seed, spread=1.0)
    learned = area(problem.run(KnapsackSampler(problem.items(), seed=seed), 30))
    plain = area(problem.run(KnapsackSampler(problem.items(), seed=seed, explore=False, trials=30), 30))
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

    gains = []
    for seed in range(5, 10):
        problem = Problem(seed)
        loose = problem.run(KnapsackSampler(problem.items()), 15)
        tight = problem.run(KnapsackSampler(problem.items(), limits=Limits(max_drop=0.02)), 15)
        gains.append(fastest(tight) / fastest(loose))
        assert sum(t.values[0] <= 0.03 for t in tight.trials) > sum(t.values[0] <= 0.03 for t in loose.trials)
    assert np.median(gains) > 1.01


def test_running_trials_are_not_proposed_again():
    problem = Problem(6)
    sampler = KnapsackSampler(problem.items())
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    asked = [study.ask(sampler.distributions()) for _ in range(6)]  # none is told
    assert len({tuple(t.params.values()) for t in asked}) == 6


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, -0.1, 0)
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, float("nan"), 0)
    with pytest.raises(ValueError, match="same parameters"):
        Item("a", (Choice({"a": 0}, 0, 0), Choice({"b": 1}, 0.1, 0.1)))
    with pytest.raises(ValueError, match="at least one item"):
        KnapsackSampler([])


# -- the models ------------------------------------------------------------------------------


def test_interactions_give_the_whole_quadratic():
    """The items' shares add up to 1/2 mean (sum of responses)^2, computed directly."""
    problem = Problem(7, units=5)
    items = problem.items()
    sampler = KnapsackSampler(items)
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, 7, (20, 5))
    shares = sampler.posterior.divergence.contributions(chosen)
    own = np.stack([sampler.problem.errors[u][chosen[:, u]] for u in range(5)], axis=1)
    for row, levels, alone in zip(shares, chosen, own, strict=True):
        total = sum(problem.responses[u][i] for u, i in enumerate(levels))
        inner = np.array([problem.responses[u][i] @ total / 128 for u, i in enumerate(levels)])
        wanted = alone + INTERACTIONS * (inner - alone)
        np.testing.assert_allclose(row, np.maximum(wanted, 0.2 * alone), rtol=1e-9, atol=1e-15)


def test_sensitivities_are_learned():
    """Without interactions and noise the factors of the items come out, up to the common one."""
    draw = np.random.default_rng(1)
    errors = [np.concatenate([[0.0], np.sort(draw.random(4)) * 0.05]) for _ in range(6)]
    truth = np.exp(draw.normal(0, 0.25, 6))
    chosen = draw.integers(0, 5, (200, 6))
    divergence = np.array([sum(truth[u] * errors[u][i] for u, i in enumerate(row)) for row in chosen])
    model = ErrorModel(errors)
    model.fit(chosen, divergence, np.ones(200))
    found = model.sensitivities()
    np.testing.assert_allclose(found / found.mean(), truth / truth.mean(), rtol=0.1)
    again = ErrorModel(errors)
    again.fit(chosen[:50], divergence[:50], np.ones(50))
    again.fit(chosen, divergence, np.ones(200))  # nothing is carried over from fit to fit
    np.testing.assert_array_equal(again.sensitivities(), found)


def test_a_poor_prior_is_noticed():
    draw = np.random.default_rng(2)
    errors = [np.concatenate([[0.0], np.sort(draw.random(4))]) for _ in range(6)]
    chosen = draw.integers(0, 5, (60, 6))
    model = ErrorModel(errors)
    model.fit(chosen, draw.random(60) + 0.1, np.ones(60))  # nothing to do with the errors
    assert model.correlation < 0.5


def test_measured_ratios_correct_the_table():
    """Truth: everything saves 70 % of what the table says, one option nothing."""
    draw = np.random.default_rng(3)
    saved = [np.concatenate([[0.0], np.sort(draw.random(3)) * 0.1]) for _ in range(5)]
    real = [0.7 * s for s in saved]
    real[2] = real[2].copy()
    real[2][3] = 0.0
    chosen = draw.integers(0, 4, (80, 5))
    ratio = 1 - np.array([sum(real[u][i] for u, i in enumerate(row)) for row in chosen])
    model = RatioModel(saved)
    before, wide = model.predict(chosen, np.zeros(80))
    model.fit(chosen, ratio, np.zeros(80), np.full(80, 0.002))
    after, narrow = model.predict(chosen, np.zeros(80))
    assert np.abs(after - ratio).mean() < 0.15 * np.abs(before - ratio).mean()
    assert (narrow < wide).all()
    covered = np.abs(after - ratio) < 3 * narrow
    assert covered.mean() > 0.95


def test_drops_rise_with_the_divergence_whatever_the_noise():
    draw = np.random.default_rng(4)
    kl = np.sort(draw.random(50))
    model = DropModel()
    model.fit(kl, 0.1 * np.sqrt(kl) + 0.01 * draw.standard_normal(50))
    grid = np.linspace(0, 2, 200)
    found = model(grid)
    assert (np.diff(found) >= -1e-12).all()
    assert abs(found[0]) < 0.01
    assert np.abs(model(kl) - 0.1 * np.sqrt(kl)).mean() < 0.006


@pytest.mark.parametrize("seed", range(10))
def test_improvement_is_the_difference_of_hypervolumes(seed):
    from optuna._hypervolume import compute_hypervolume

    draw = np.random.default_rng(seed)
    front = draw.random((seed, 2)) * np.array([0.15, 1.2])
    points = draw.random((30, 2)) * np.array([0.12, 1.1])
    reference = (0.1, 1.0)

    def volume(rows):
        inside = rows[(rows[:, 0] <= reference[0]) & (rows[:, 1] <= reference[1])]
        return compute_hypervolume(inside, np.array(reference)) if len(inside) else 0.0

    found = improvement(points[:, 0], points[:, 1], front, reference)
    for point, gain in zip(points, found, strict=True):
        assert gain == pytest.approx(volume(np.concatenate([front, point[None]])) - volume(front), abs=1e-12)


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


def test_where_nothing_meets_the_limits_the_nearest_is_tried_first():
    items = [
        Item(f"u{u}", tuple(Choice({f"u{u}": i}, 5.0 * i, 0.1 * i, {}, 3.2 * np.sqrt(i) * np.ones(4)) for i in range(4)))
        for u in range(4)
    ]
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=KnapsackSampler(items, limits=Limits(max_drop=0.001))
    )
    asked = study.ask(KnapsackSampler(items).distributions())
    assert sum(asked.params.values()) <= 2


def test_a_trial_that_was_lost_to_a_kill_changes_no_later_proposal():
    problem = Problem(9)
    space = KnapsackSampler(problem.items()).distributions()

    def run(killed_at):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=KnapsackSampler(problem.items(), seed=3))
        found = []
        while len(found) < 10:
            asked = study.ask(space)
            if len(found) == killed_at:
                study._storage.set_trial_system_attr(asked._trial_id, "hwprune:lease", {})
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(asked.params)
                killed_at = None
                continue
            levels = [asked.params[f"u{u}"] for u in range(12)]
            kl, drop, ratio = problem.evaluate(levels)
            asked.set_user_attr("divergence", kl)
            study.tell(asked, (drop, 1 / ratio))
            found.append(levels)
        return found

    assert run(None) == run(5)


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text()
    code = text.split("```python")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert len(names["study"].trials) == 3
    assert len({tuple(t.params.values()) for t in names["study"].trials}) == 3


def test_a_split_that_sees_no_drop_does_not_make_small_divergences_worthless():
    """What 872 sentences said of MiniLM: gains up to 0.08 nats, then a rise."""
    kl = np.array([0.01, 0.02, 0.04, 0.08, 0.12, 0.25, 0.35])
    model = DropModel()
    model.fit(kl, np.array([-0.01, -0.02, -0.02, -0.01, 0.016, 0.05, 0.11]))
    found = model(np.array([0.0, 0.01, 0.02, 0.04, 0.08]))
    assert found[0] == 0
    assert (np.diff(found) > 5e-4).all()
    assert model(np.array([0.35]))[0] == pytest.approx(0.11, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_kinds_are_trusted_by_how_often_they_came_to_the_front(seed):
    from hwprune.searching.sampling.history import History
    from hwprune.searching.sampling.local_moves import PRIOR_SUCCESSES, PRIOR_TRIES, success_rates

    draw = np.random.default_rng(seed)
    ratio, divergence = draw.random(60).round(1), draw.random(60).round(1)  # ties too
    kinds = draw.choice(["mean", "move", ""], 60).tolist()
    ratio[::13] = np.nan
    found = success_rates(History(ratio=ratio.tolist(), divergence=divergence.tolist(), kind=kinds))
    for kind in ("mean", "move"):
        tried = [i for i in range(60) if kinds[i] == kind and np.isfinite(ratio[i])]
        won = [i for i in tried if not any(ratio[j] <= ratio[i] and divergence[j] <= divergence[i] for j in range(i))]
        assert found[kind] == pytest.approx((len(won) + PRIOR_SUCCESSES) / (len(tried) + PRIOR_TRIES))
    assert "" not in found


def test_noise_of_measured_ratios_is_estimated_and_lucky_ones_are_not_believed():
    """A busy machine: ratios are off by eight per cent, a few by half, and nobody says so."""
    draw = np.random.default_rng(5)
    saved = [np.concatenate([[0.0], np.sort(draw.random(4)) * 0.12]) for _ in range(6)]
    chosen = draw.integers(0, 5, (60, 6))
    truth = 1 - np.array([sum(saved[u][i] for u, i in enumerate(row)) for row in chosen])
    ratio = truth * np.exp(0.08 * draw.standard_normal(60))
    ratio[::15] *= 1.5
    model = RatioModel(saved)
    model.fit(chosen, ratio, np.zeros(60), np.zeros(60))
    assert 4 < np.sqrt(model.heat) < 14  # told: one per cent
    expected, doubt = model.predict(chosen, np.zeros(60), measured=False)
    _, wide = model.predict(chosen, np.zeros(60))
    assert np.abs(np.log(expected / truth)).mean() < 0.04 and (wide > doubt).all()
    smooth = model.smooth(chosen, np.zeros(60), ratio, np.zeros(60))
    assert np.abs(np.log(smooth / truth)).mean() < 0.5 * np.abs(np.log(ratio / truth)).mean()
    assert smooth[np.argmin(ratio / truth)] > ratio[np.argmin(ratio / truth)]  # the luckiest
    quiet = RatioModel(saved)
    quiet.fit(chosen, truth * np.exp(0.005 * draw.standard_normal(60)), np.zeros(60), np.zeros(60))
    assert quiet.heat == 1.0


def test_what_the_law_gets_wrong_of_a_candidate_it_gets_wrong_of_its_neighbours():
    draw = np.random.default_rng(6)
    errors = [np.concatenate([[0.0], np.sort(draw.random(9)) * 0.02]) for _ in range(8)]
    chosen = draw.integers(0, 10, (200, 8))
    size = np.array([sum(errors[u][i] for u, i in enumerate(row)) for row in chosen])
    bend = 0.3 * np.sin(np.sqrt(np.array([[errors[u][row[u]] for u in range(8)] for row in chosen])) @ draw.normal(0, 6, 8))
    divergence = size * np.exp(bend)  # smooth in the errors, but no law of their sum

    def wrong(seen):
        model = ErrorModel(errors)
        model.fit(chosen[:seen], divergence[:seen], np.ones(seen))
        told = model.samples(chosen[150:], draw, 2)[0]
        return float(np.sqrt(np.mean((told - np.log(divergence[150:])) ** 2)))

    model = ErrorModel(errors)
    model.fit(chosen[:150], divergence[:150], np.ones(150))
    again = model.samples(chosen[:150], draw, 2)[0]
    assert np.sqrt(np.mean((again - np.log(divergence[:150])) ** 2)) < 0.1  # what was evaluated is known
    assert wrong(150) < 0.85 * bend[150:].std()
