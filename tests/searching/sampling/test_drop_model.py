"""From divergence to drop with its doubt, and what a proposal is worth. The maps here are not the model's own."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.searching.sampling.drop_model import DropModel, improvement

MAPS = {
    "root": lambda kl: 0.1 * np.sqrt(kl),
    "line": lambda kl: 0.08 * kl,
    "flat, then a cliff": lambda kl: np.where(kl < 0.4, 0.002 * kl, 0.3 * (kl - 0.4)),
    "saturated": lambda kl: 0.09 * (1 - np.exp(-kl / 0.3)),
    "gains first": lambda kl: 0.1 * kl - 0.01 * np.sin(6 * kl),
}


@pytest.mark.parametrize("name", MAPS)
def test_true_drops_lie_in_the_posterior(name):
    """Over many small searches: what was not evaluated lies between the 2.5 and 97.5 % quantiles nearly as often as that."""
    inside = total = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        kl = draw.random(12) * 0.8
        true = MAPS[name](kl) * np.exp(0.3 * draw.standard_normal(12))
        error = 0.004
        model = DropModel()
        model.fit(kl, true + error * draw.standard_normal(12), np.full(12, error))
        new = draw.random(5) * 0.8
        curves = model.draw(draw, 400)
        samples = model.sampled(np.tile(new, (400, 1)), curves, draw)
        wanted = MAPS[name](new) * np.exp(0.3 * draw.standard_normal(5))
        low, high = (np.quantile(samples, q, axis=0) for q in (0.025, 0.975))
        inside += int(((wanted >= low - error / 2) & (wanted <= high + error / 2)).sum())
        total += 5
    assert inside / total > 0.75  # a cliff, or a drop below zero, is in no power law's mind


def test_what_many_trials_contradict_has_no_chance_left():
    """ResNet-20: after eight ruined trials beyond 1 nat every other proposal still hoped that 2.5 nats cost nothing."""
    draw = np.random.default_rng(0)
    kl = np.concatenate([np.geomspace(0.02, 0.5, 16), np.geomspace(0.8, 2.5, 12)])
    drop = 0.35 * kl * np.exp(0.2 * draw.standard_normal(len(kl)))
    few, many = DropModel(), DropModel()
    many.fit(kl, drop, np.full(len(kl), 0.006))
    few.fit(kl[:3], drop[:3], np.full(3, 0.006))
    chances = []
    for model in (few, many):
        samples = model.sampled(np.full((20000, 1), 3.0), model.draw(draw, 20000), draw)
        chances.append(float((samples < 0.05).mean()))
    assert chances[1] < 1e-4 < chances[0]


def test_what_was_never_tested_keeps_its_chance():
    """Three trials without drop and one ruined one: a straight line between them would price everything in between out."""
    model = DropModel()
    model.fit(np.array([0.01, 0.03, 0.1, 3.0]), np.array([0.0, 0.0, 0.0, 0.6]), np.full(4, 0.003))
    draw = np.random.default_rng(0)
    samples = model.sampled(np.full((500, 1), 0.5), model.draw(draw, 500), draw)
    assert (samples < 0.01).mean() > 0.05
    assert (samples > 0.03).mean() > 0.05


def test_drops_rise_with_the_divergence_and_nothing_is_lost_without_one():
    draw = np.random.default_rng(4)
    kl = np.sort(draw.random(50))
    model = DropModel()
    model.fit(kl, 0.1 * np.sqrt(kl) + 0.01 * draw.standard_normal(50), np.full(50, 0.01))
    found = model(np.linspace(0, 2, 200))
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert np.abs(model(kl) - 0.1 * np.sqrt(kl)).mean() < 0.02


def test_noise_that_all_trials_share_is_not_averaged_out():
    """Forty trials of a split that flatters by a point say less than forty splits would: the prior of a drop stays."""
    kl = np.linspace(0.05, 0.3, 40)
    model = DropModel()
    model.fit(kl, np.full(40, -0.01), np.full(40, 0.008))
    draw = np.random.default_rng(0)
    samples = model.known(kl, np.full(40, -0.01), np.full(40, 0.008), model.draw(draw, 500), draw)
    assert (samples >= 0).all()  # no pruning is believed to make a model better
    assert (samples[:, -1] > 0.003).mean() > 0.03


def test_known_drops_stand_between_the_curve_and_the_score():
    model = DropModel()
    kl, drop = np.array([0.1, 0.2, 0.4]), np.array([0.02, 0.04, 0.08])
    model.fit(kl, drop, np.full(3, 0.002))
    draw = np.random.default_rng(0)
    curves = model.draw(draw, 2000)
    exact = model.known(kl, drop, np.full(3, 1e-5), curves, draw).mean(axis=0)
    assert exact == pytest.approx(drop, abs=1e-3)
    vague = model.known(kl, drop + 0.03, np.full(3, 0.05), curves, draw).mean(axis=0)
    assert (vague < drop + 0.025).all()


def test_drops_that_nobody_can_tell_apart_count_alike():
    model = DropModel(reference=0.05)
    assert model.floor(None) == 0.0  # nothing is known of the split yet
    model.fit(np.array([0.1, 0.2]), np.array([0.01, 0.02]), np.array([0.006, 0.008]))
    assert model.floor(None) == pytest.approx(0.0035)
    assert model.floor(0.01) == pytest.approx(0.0025)


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


def test_a_split_that_sees_no_drop_does_not_make_small_divergences_worthless():
    """What 872 sentences said of MiniLM: gains up to 0.08 nats, then a rise."""
    kl = np.array([0.01, 0.02, 0.04, 0.08, 0.12, 0.25, 0.35])
    model = DropModel()
    model.fit(kl, np.array([-0.01, -0.02, -0.02, -0.01, 0.016, 0.05, 0.11]), np.full(7, 0.008))
    found = model(np.array([0.0, 0.01, 0.02, 0.04, 0.08]))
    assert found[0] == 0
    assert (np.diff(found) > 1e-4).all()
