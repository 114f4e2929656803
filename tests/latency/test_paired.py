"""The paired measurement under a clock of our own, and its statistics by simulation."""

from __future__ import annotations

import math
import random

import pytest

from hwprune.latency import paired
from hwprune.latency.paired import Clock, Settings, measure
from hwprune.records.measurement import Measurement


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
    assert result.speedup.value == pytest.approx(2.5, rel=1e-6)
    assert result.latency.value == pytest.approx(0.0004, rel=1e-6)
    assert result.dense_latency_s == pytest.approx(0.001, rel=1e-6)
    assert (result.speedup.ci_low, result.speedup.ci_high) == pytest.approx((2.5, 2.5), rel=1e-6)
    assert result.speedup.samples == 16
    assert result.speedup.conditions["converged"]
    assert result.runs_a_block == (5, 2)


def test_preemption_biases_wall_time_but_not_the_ranking_clock():
    machine = Machine(hog=0.2)
    settings = Settings(limit_s=5, half_width=0.001)
    result = measure(machine.call(0.0005), machine.call(0.001), settings, machine.clock())
    assert result.clock == "thread_cpu"
    assert result.speedup.value == pytest.approx(2.0, rel=1e-3)
    assert result.speedup.conditions["contended"] > 0.2
    wall = measure(machine.call(0.0005), machine.call(0.001), Settings(clock="wall", limit_s=5), machine.clock())
    assert wall.clock == "wall"
    assert wall.speedup.conditions["contended"] == 0.0


def test_gives_up_in_time_and_keeps_the_wide_interval():
    machine = Machine(noise=0.5)
    settings = Settings(limit_s=0.3, half_width=0.001)
    result = measure(machine.call(0.001), machine.call(0.001), settings, machine.clock())
    assert not result.speedup.conditions["converged"]
    assert result.speedup.ci_low < 1 < result.speedup.ci_high
    assert machine.now < 2.5  # warm-up and limit, in the machine's own seconds


def test_long_runs_are_not_repeated_more_than_asked():
    machine = Machine()
    settings = Settings(limit_s=0.5, fewest_quads=3)
    result = measure(machine.call(0.8), machine.call(1.0), settings, machine.clock())
    assert result.speedup.samples == 3 and result.speedup.value == pytest.approx(1.25, rel=0.05)


def test_intervals_of_a_model_against_itself_hold_one():
    """95 % intervals with the stop rule's correction: at least 90 % of 200 hold the truth."""
    hits = 0
    for seed in range(200):
        machine = Machine(noise=0.05, seed=seed)
        result = measure(machine.call(0.001), machine.call(0.001), Settings(limit_s=1.0), machine.clock())
        hits += result.speedup.ci_low <= 1 <= result.speedup.ci_high
    assert hits >= 180


def test_two_percent_slower_is_detected():
    found = 0
    for seed in range(50):
        machine = Machine(noise=0.03, seed=seed)
        settings = Settings(limit_s=5, half_width=0.004)
        found += measure(machine.call(0.00102), machine.call(0.001), settings, machine.clock()).speedup.ci_high < 1
    assert found >= 47


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.2, "not distinguishable")]
)
def test_verdicts(low, high, wanted):
    assert Measurement((low + high) / 2, "x", low, high, 16).verdict == wanted


def test_sessions_widen_the_interval_as_independent_deviations_do():
    low, high = paired.with_sessions(0.0, -0.003, 0.003, 0.005, 0.05)
    assert high == pytest.approx(math.hypot(0.003, 1.96 * 0.005), rel=1e-3)
    assert low == -high
    assert paired.with_sessions(0.1, 0.09, 0.12, 0.0, 0.05) == pytest.approx((0.09, 0.12))
    assert paired.session_sd([]) == paired.SESSION_SD
    assert paired.session_sd([0.05, -0.05, 0.05, -0.05] * 10) == pytest.approx(0.05, rel=0.06)


def test_outliers_are_counted():
    assert paired.outlier_share([0.0, 0.01, -0.01, 0.005, -0.005, 0.0, 0.01, 1.0]) == pytest.approx(1 / 8)
    assert paired.outlier_share([0.0] * 8) == 0.0


def test_a_machine_that_slows_down_favours_neither_model():
    """Heat: each call takes longer than the one before. In A B B A both stand at the same place on average; in A B A B not."""

    class Heating(Machine):
        def call(self, seconds):
            def run():
                own = seconds * (1 + 0.5 * self.now)
                self.cpu += own
                self.now += own

            return run

    machine = Heating()
    result = measure(machine.call(0.001), machine.call(0.001), Settings(), machine.clock())
    assert result.speedup.value == pytest.approx(1.0, abs=1e-4)  # one block later is slower by a thousandth


def test_looks_that_may_come_later_widen_the_first_interval():
    """The measurement may stop at any of seven looks, so each has a seventh of the error probability."""

    def width(most_quads):
        machine = Machine(noise=0.02, seed=3)
        settings = Settings(limit_s=5, half_width=1.0, most_quads=most_quads)
        return measure(machine.call(0.001), machine.call(0.001), settings, machine.clock()).speedup

    alone, first_of_seven = width(16), width(1024)
    assert alone.samples == first_of_seven.samples == 16
    assert first_of_seven.half_width > 1.15 * alone.half_width
