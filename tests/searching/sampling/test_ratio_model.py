"""What is believed of latency ratios."""

from __future__ import annotations

import numpy as np

from hwprune.searching.sampling.ratio_model import RatioModel


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
