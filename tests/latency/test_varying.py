"""Latency by input: what is drawn, what is timed, and what the numbers say."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hwprune.latency import varying


def test_every_input_is_timed_on_every_system_and_slow_ones_show():
    inputs = [[np.full((1, 1), value, dtype=np.float32)] for value in (0, 0, 0, 1)]

    def early(one):
        end = time.perf_counter() + (0.004 if one[0][0, 0] else 0.001)
        while time.perf_counter() < end:
            pass

    def static(_):
        end = time.perf_counter() + 0.004
        while time.perf_counter() < end:
            pass

    measured = varying.measure({"dense": static, "early": early}, inputs, "wall", 0.2)
    assert [len(times) for times in measured.values()] == [4, 4]
    found = varying.distributions([measured])
    assert found["early"].worst == max(measured["early"]) == measured["early"][3]
    assert found["dense"].speedup.value == 1.0


def test_means_tails_and_intervals():
    rng = np.random.default_rng(0)
    dense = [list(10 + rng.normal(0, 0.01, 200)) for _ in range(6)]
    early = [[1.0] * 150 + [11.0] * 50 for _ in range(6)]
    found = varying.distributions([{"dense": a, "early": b} for a, b in zip(dense, early, strict=True)])
    own = found["early"]
    assert own.mean.value == pytest.approx(3.5) and own.quantile(0.5) == 1.0 and own.quantile(0.95) == 11.0 and own.worst == 11.0
    assert own.speedup.value == pytest.approx(10 / 3.5, rel=0.01)
    # 75 of 100 inputs end early, give or take 6: the mean, and so the speedup, is known to about 17 %.
    assert 0.1 < own.speedup.ci_high / own.speedup.value - 1 < 0.3


def test_a_slow_process_moves_neither_mean_nor_ratio():
    dense, early = [10.0] * 50, [2.0] * 50
    processes = [{"dense": dense, "early": early} for _ in range(5)] + [{"dense": [30.0] * 50, "early": [6.0] * 50}]
    found = varying.distributions(processes)
    assert found["early"].mean.value == 2.0 and found["early"].speedup.value == pytest.approx(5.0)
    worse = [*processes[:5], {"dense": dense, "early": [2.5] * 50}]
    assert varying.distributions(worse)["early"].speedup.ci_low < 4.05


def test_the_same_examples_are_drawn_each_time():
    batches = [("0", [np.arange(6).reshape(3, 2), np.arange(3)]), ("1", [np.arange(6, 10).reshape(2, 2), np.arange(3, 5)])]
    first, again = (varying.drawn(batches, 3) for _ in range(2))
    assert len(first) == 3 and all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert all(one[0].shape == (1, 2) and one[1].shape == (1,) and one[0][0, 0] == 2 * one[1][0] for one in first)
    assert len(varying.drawn(batches, 99)) == 5
