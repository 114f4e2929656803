"""Choosing two models and a threshold: against brute force, and honest on examples that chose nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.deploy.cascade_choice import CascadeStep, Wish, curve, pairs_of, plans


def _steps(count=400, seed=0, informative=True):
    """A weak fast model that knows when it is right (or does not), a strong slow one, and the dense one."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count)
    weak = (hard < 0.8).astype(float)
    sure = 1 - 0.5 * hard if informative else 0.5 + 0.5 * rng.random(count)
    strong = (hard < 0.97).astype(float)
    dense = (hard < 0.98).astype(float)
    return [
        CascadeStep("weak", 1.0, weak, sure),
        CascadeStep("strong", 4.0, strong, np.full(count, 0.9)),
        CascadeStep("dense", 10.0, dense, np.full(count, 0.9)),
    ]


def test_the_curve_is_every_threshold():
    first, second, dense = _steps(60)
    rows = {round(threshold, 12): (drop, seconds) for threshold, drop, seconds in curve(first, second, dense.right)}
    for threshold, (drop, seconds) in rows.items():
        ends = first.sure >= threshold
        score = np.where(ends, first.right, second.right)
        assert drop == pytest.approx(dense.right.mean() - score.mean()) and seconds == pytest.approx(1 + 4 * (~ends).mean())
    assert {round(s, 9) for _, s in rows.values()} >= {5.0, 1.0}  # nobody ends, and everybody


def test_equal_confidences_are_not_told_apart():
    first = CascadeStep("a", 1.0, np.array([1.0, 0, 1, 0]), np.array([0.9, 0.9, 0.9, 0.5]))
    second = CascadeStep("b", 2.0, np.ones(4), np.ones(4))
    assert [seconds for _, _, seconds in curve(first, second, np.ones(4))] == [3.0, 1.5, 1.0]


def test_the_fastest_pair_within_a_drop_is_the_one_of_brute_force():
    steps = _steps()
    dense = steps[2].right
    best = plans(pairs_of(steps), dense, Wish(max_drop=0.03))[0]
    assert best.first == "weak"
    everything = [row[2] for a in steps for b in steps if a.seconds < b.seconds for row in curve(a, b, dense) if row[1] <= 0.03]
    assert min(everything) - 1e-9 <= best.seconds <= 1.15 * min(everything) and best.drop <= 0.03 + 1e-9
    assert best.exits == pytest.approx(0.8, abs=0.05)


def test_the_told_drop_is_that_of_examples_that_nobody_has_seen():
    steps, fresh = _steps(2000), {step.key: step for step in _steps(50_000, 7)}
    best = plans(pairs_of(steps), steps[2].right, Wish(max_drop=0.1))[0]
    first, second = fresh[best.first], fresh[best.second]
    score = np.where(first.sure >= best.threshold, first.right, second.right)
    assert best.drop == pytest.approx(fresh["dense"].right.mean() - score.mean(), abs=0.015) and best.drop > 0.05


def test_a_pair_of_which_one_is_never_used_is_none():
    first = CascadeStep("a", 1.0, np.ones(50), np.full(50, 0.99))
    second = CascadeStep("b", 2.0, np.ones(50), np.full(50, 0.99))
    assert plans([(first, second)], np.ones(50), Wish(max_drop=0.5)) == []


def test_a_confidence_that_says_nothing_is_not_believed():
    """On the examples that chose it some threshold always looks lucky; on other ones it must not."""
    chosen, kept = 0, 0
    for seed in range(20):
        steps = _steps(200, seed, informative=False)
        fresh = {step.key: step for step in _steps(20_000, 100 + seed, informative=False)}
        for plan in plans(pairs_of(steps), steps[2].right, Wish(max_drop=0.03))[:1]:
            chosen += 1
            first, second = fresh[plan.first], fresh[plan.second]
            score = np.where(first.sure >= plan.threshold, first.right, second.right)
            kept += fresh["dense"].right.mean() - score.mean() <= 0.03 + 0.03  # 200 examples know a drop to about 0.03
    assert kept == chosen


def test_limits_of_time_and_of_the_worst_case():
    steps = _steps()
    dense = steps[2].right
    budget = plans(pairs_of(steps), dense, Wish(max_seconds=2.0))
    assert budget[0].seconds <= 2.2 and budget[0].drop == min(plan.drop for plan in budget)
    assert {(p.first, p.second) for p in plans(pairs_of(steps), dense, Wish(max_drop=0.05, worst_seconds=6.0))} == {
        ("weak", "strong")
    }
    assert plans(pairs_of(steps), dense, Wish(max_drop=0.05, worst_seconds=4.5)) == []
    assert plans(pairs_of(steps[1:]), dense, Wish(max_drop=-0.5)) == []
