"""The paired measurement under a clock of our own, and its statistics by simulation."""

from __future__ import annotations

import math
import random

import pytest

from hwprune.latency.interval import decorrelate, lag1_autocorrelation, median_interval, process_interval
from hwprune.latency.paired import Clock, Settings, measure


class Machine:
    """A world in which a call takes as long as we say; ``noise`` spreads each call, ``hog`` preempts some."""

    def __init__(self, noise=0.0, hog=0.0, seed=0):
        self.now = self.cpu = 0.0
        self.random = random.Random(seed)
        self.noise, self.hog = noise, hog

    def call(self, seconds):
        def run():
            own = seconds * math.exp(self.random.gauss(0, self.noise))
            self.cpu += own
            self.now += own
            if self.random.random() < self.hog * seconds / 0.001:  # a longer run is preempted more often
                self.now += 0.004

        return run

    def clock(self):
        return Clock(lambda: round(self.now * 1e9), lambda: round(self.cpu * 1e9), lambda: 0)


def test_exact_ratio_without_noise():
    machine = Machine()
    result = measure(machine.call(0.0004), machine.call(0.001), Settings(), machine.clock())
    assert result.speedup == pytest.approx(2.5, rel=1e-6)
    assert result.latency_s == pytest.approx(0.0004, rel=1e-6)
    assert result.dense_latency_s == pytest.approx(0.001, rel=1e-6)
    assert (result.ci_low, result.ci_high) == pytest.approx((2.5, 2.5), rel=1e-6)
    assert result.quads == 16
    assert result.converged
    assert result.runs_a_letter == (5, 2)


def test_preemption_biases_wall_time_but_not_the_ranking_clock():
    machine = Machine(hog=0.2)
    settings = Settings(limit_s=5, half_width=0.001)
    result = measure(machine.call(0.0005), machine.call(0.001), settings, machine.clock())
    assert result.clock == "thread_cpu"
    assert result.speedup == pytest.approx(2.0, rel=1e-3)
    assert result.contended > 0.2
    wall = measure(machine.call(0.0005), machine.call(0.001), Settings(clock="wall", limit_s=5), machine.clock())
    assert wall.clock == "wall"
    assert wall.contended == 0.0


def test_gives_up_in_time_and_keeps_the_wide_interval():
    machine = Machine(noise=0.5)
    settings = Settings(limit_s=0.3, half_width=0.001)
    result = measure(machine.call(0.001), machine.call(0.001), settings, machine.clock())
    assert not result.converged
    assert result.ci_low < 1 < result.ci_high
    assert machine.now < 2.5  # warm-up and limit, in the machine's own seconds


def test_intervals_of_a_model_against_itself_hold_one():
    """95 % intervals with the stop rule's correction: at least 90 % of 200 hold the truth."""
    hits = 0
    for seed in range(200):
        machine = Machine(noise=0.05, seed=seed)
        result = measure(machine.call(0.001), machine.call(0.001), Settings(limit_s=1.0), machine.clock())
        hits += result.ci_low <= 1 <= result.ci_high
    assert hits >= 180


def test_two_percent_slower_is_detected():
    found = 0
    for seed in range(50):
        machine = Machine(noise=0.03, seed=seed)
        settings = Settings(limit_s=5, half_width=0.004)
        found += measure(machine.call(0.00102), machine.call(0.001), settings, machine.clock()).ci_high < 1
    assert found >= 47


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
