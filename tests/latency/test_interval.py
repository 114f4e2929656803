"""Intervals against closed forms and simulations whose truth is known."""

from __future__ import annotations

import random

import pytest

from hwprune.latency.interval import (
    correlated_median_interval,
    decorrelate,
    lag1_autocorrelation,
    median_interval,
    process_interval,
)


def test_median_interval_ranks_by_hand():
    """n = 16, 95 %: ranks floor(8 - 1.96 * 2) = 4 and ceil(9 + 1.96 * 2) = 13."""
    assert median_interval([float(x) for x in range(1, 17)], 0.05) == (8.5, 4.0, 13.0)
    assert median_interval([3.0, 1.0, 2.0], 0.05) == (2.0, 1.0, 3.0)


def test_process_interval_is_the_extremes():
    assert process_interval([1.5, 1.2, 1.4, 1.3, 1.1, 1.6]) == pytest.approx((1.35, 1.1, 1.6))


def test_correlated_values_are_merged():
    generator = random.Random(0)
    value, series = 0.0, []
    for _ in range(512):
        value = 0.8 * value + generator.gauss(0, 1)
        series.append(value)
    assert lag1_autocorrelation(series) > 0.6
    merged = decorrelate(series)
    assert len(merged) < 200
    assert lag1_autocorrelation(merged) < 0.5
    independent = [generator.gauss(0, 1) for _ in range(512)]
    assert decorrelate(independent) == independent
    assert lag1_autocorrelation([1.0] * 5) == 0.0


@pytest.mark.parametrize(("correlation", "count", "least"), [(0.0, 64, 0.94), (0.5, 64, 0.93), (0.9, 64, 0.9), (0.9, 256, 0.92)])
def test_intervals_of_series_whose_neighbours_are_alike_hold_the_median(correlation, count, least):
    """A 95 % interval of a stationary AR(1) series whose median is 0; that of independent values holds it in 48 % at 0.9."""
    draw = random.Random(1)
    held = naive = 0
    for _ in range(300):
        value, series = 0.0, []
        for step in range(100 + count):
            value = correlation * value + draw.gauss(0, 1)
            if step >= 100:
                series.append(value)
        _, low, high = correlated_median_interval(series, 0.05)
        held += low <= 0 <= high
        _, low, high = median_interval(series, 0.05)
        naive += low <= 0 <= high
    assert held / 300 >= least
    if correlation == 0.9:
        assert naive / 300 < 0.6
