"""The ladder of learning rates."""

from __future__ import annotations

import math

import pytest

from hwprune.recovery.loop import rates


@pytest.mark.parametrize(
    ("bowl", "expected"), [(1e-3, 1e-3), (1.6e-2, 1.6e-2), (1e9, 0.256), (6.25e-5, 6.25e-5), (1e-9, 1e-3 / 256)]
)
def test_the_best_rate_of_a_ladder_is_found(bowl, expected):
    """Above ``bowl`` a rate ruins what was there."""

    def loss_of(rate):
        return 10.0 if rate > 1.5 * bowl else 2.0 - rate / bowl

    assert rates.best(loss_of, 1e-3).rate == pytest.approx(expected)


def test_a_rate_that_disturbs_a_little_is_not_given_up():
    """Eight steps with a ResNet that has lost little: the larger rate is ahead after two epochs, not after eight steps."""
    seen = {0.0: 0.534, 1e-3: 0.571, 4e-3: 1.549, 2.5e-4: 0.504}
    assert rates.best(seen.__getitem__, 1e-3).rate == 1e-3


def test_rates_that_fail_are_not_taken():
    assert rates.best(lambda rate: 1.0 if rate < 1e-3 else math.inf, 1e-3).rate < 1e-3
    assert rates.best(lambda rate: 1.0, 1e-3).rate == 1e-3


def test_a_plateau_does_not_end_the_ladder():
    """Nothing is nearly learned yet, but ten times as much with each rate: losses of a transformer without 95 % of its weights."""
    seen = {0.0: 3.103, 1e-4: 3.102, 4e-4: 3.086, 1.6e-3: 3.053, 6.4e-3: 3.014, 2.56e-2: 3.015}
    assert rates.best(lambda rate: next(v for k, v in seen.items() if math.isclose(k, rate)), 1e-4).rate == pytest.approx(6.4e-3)
