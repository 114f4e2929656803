"""From divergence to drop, and what a proposal is worth."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.searching.sampling.drop_model import DropModel, improvement


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


def test_a_split_that_sees_no_drop_does_not_make_small_divergences_worthless():
    """What 872 sentences said of MiniLM: gains up to 0.08 nats, then a rise."""
    kl = np.array([0.01, 0.02, 0.04, 0.08, 0.12, 0.25, 0.35])
    model = DropModel()
    model.fit(kl, np.array([-0.01, -0.02, -0.02, -0.01, 0.016, 0.05, 0.11]))
    found = model(np.array([0.0, 0.01, 0.02, 0.04, 0.08]))
    assert found[0] == 0
    assert (np.diff(found) > 5e-4).all()
    assert model(np.array([0.35]))[0] == pytest.approx(0.11, abs=1e-9)
