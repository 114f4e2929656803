"""Who is confirmed, and who leaves the front."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hwprune.records import pareto
from hwprune.records.measurement import Measurement
from hwprune.searching.constraints import Constraints
from hwprune.searching.final import finalists, point
from hwprune.searching.final.belief import DropBelief
from hwprune.searching.sampling.problem import Limits
from tests.records.test_trial import measured


def trial(number, drop, speed, divergence=None, error=0.002):
    found = measured(number, drop, speed)
    kl = 2 * drop if divergence is None else divergence
    return replace(
        found,
        divergence=Measurement(kl, "nats", kl, kl, 1000),
        paired_drop=Measurement(drop, "top1", drop - 1.96 * error, drop + 1.96 * error, 1000),
    )


def chosen(trials, constraints=None, limits=None, **more):
    constraints = constraints or Constraints()
    belief = DropBelief(trials, limits or Limits(max_drop=constraints.max_drop))
    return [t.number for t in finalists.finalists(trials, constraints, belief, **more)]


def test_finalists_are_the_front_then_what_is_behind_it():
    trials = [trial(i, d, s) for i, (d, s) in enumerate([(0.0, 1.2), (0.09, 2.5), (0.05, 1.1), (0.2, 1.9), (0.0, 0.9)])]
    # Trial 2 is worse than trial 0, and too near to it to be worth a measurement; trial 3 is ruined.
    assert chosen(trials) == [0, 1]
    assert chosen(trials, Constraints(max_drop=0.03)) == [0]


def test_a_long_front_is_spread_evenly_over_the_logarithm_of_the_speedup():
    many = [trial(i, 0.001 * i, 1.1 * math.exp(0.08 * i)) for i in range(40)]
    found = chosen(many)
    assert len(found) == finalists.MOST_FINALISTS
    assert (found[0], found[-1]) == (0, 39)
    steps = np.diff([math.log(many[i].speedup.value) for i in found])
    assert steps.max() <= 0.08 * 5 + 1e-9  # 39 steps over 11 gaps, halved again and again


def test_no_gap_is_left_that_a_known_candidate_fills():
    """Twenty slow ones that nobody can tell apart, and a few fast ones with a gap between them."""
    slow = [trial(i, 0.0, 1.2 + 0.02 * i, 0.001 + 0.0002 * i) for i in range(20)]
    fast = [trial(20, 0.004, 4.0, 0.03), trial(21, 0.02, 9.0, 0.2), trial(22, 0.03, 12.0, 0.3), trial(23, 0.009, 6.0, 0.08)]
    found = chosen([*slow, *fast])
    assert {20, 21, 22, 23} <= set(found)
    assert {18, 19} & set(found)  # the fastest of the slow ones, or the one beside it
    assert sum(number < 20 for number in found) <= 8


def test_of_two_that_are_as_fast_the_one_that_costs_less_is_not_left_out():
    """ResNet-20: 1.30x at 3.3 points fell, because 1.31x at 7.5 was chosen first as the fastest."""
    trials = [trial(0, 0.01, 1.1, 0.03), trial(1, 0.033, 1.30, 0.10), trial(2, 0.075, 1.31, 0.27)]
    assert {0, 1} <= set(chosen(trials))


def test_what_is_fast_at_a_drop_that_nobody_can_tell_from_none_comes_first():
    """The front by divergence would be thinned to slow ones; the fastest without a loss must be in it."""
    trials = [trial(i, 0.0, 1.1 + 0.05 * i, 1e-4 * (i + 1)) for i in range(30)] + [trial(30, 0.0, 4.0, 0.02)]
    assert chosen(trials)[-1] == 30
    assert len(chosen(trials)) >= 6  # and slower ones that are closer to dense, a tenth apart


def test_a_limit_is_held_against_what_is_sure():
    near, far = trial(0, 0.009, 3.0, 0.1, error=0.004), trial(1, 0.001, 2.0, 0.01, error=0.004)
    others = [trial(2 + i, 0.012 + 0.002 * i, 3.5 + i, 0.15 + 0.05 * i, error=0.004) for i in range(6)]
    found = chosen([near, far, *others], Constraints(max_drop=0.01))
    assert found == [1]
    # Where nothing can be surely within it, what is believed to be is better than nothing.
    only = [trial(i, 0.004, 2.0 + i, 0.2, error=0.02) for i in range(3)]
    assert chosen(only, Constraints(max_drop=0.006)) != []


def test_places_of_finalists_that_fell_are_taken_by_others():
    """Trial 1 was measured too fast; now trial 4 stands where it stood. Who only stands behind others is not measured."""
    trials = [trial(i, 0.01 * i, 1.2 + 0.4 * i) for i in range(4)] + [trial(4, 0.012, 1.5), trial(5, 0.03, 1.1)]
    done = {0, 1, 2, 3}

    def promoted(rows):
        return [t.number for t in finalists.promoted(rows, done, Constraints(), DropBelief(rows, Limits()), 1.0)]

    assert promoted(trials) == []
    assert promoted([t if t.number != 1 else trial(1, 0.01, 1.1) for t in trials]) == [4]


def test_points_slower_than_dense_or_dominated_leave_the_front():
    def confirmed(number, drop, speed, sure=None):
        found = measured(number, drop, speed)
        return point.Confirmed(found, found.metric, drop, found.latency, found.speedup, "test", sure=sure)

    points = [confirmed(0, 0.0, 0.98), confirmed(1, 0.01, 1.5), confirmed(2, 0.02, 1.4), confirmed(3, 0.05, 2.0)]
    assert [p.trial.number for p in point.final_front(points, Constraints())] == [1, 3]
    sure = [confirmed(1, 0.01, 1.5, 0.95), confirmed(3, 0.015, 2.0, 0.6)]
    assert [p.trial.number for p in point.final_front(sure, Constraints(max_drop=0.02))] == [1]
    assert [p.trial.number for p in point.final_front(sure[1:], Constraints(max_drop=0.02))] == [3]  # better than nothing
    assert point.final_front([confirmed(1, 0.01, 1.5, 0.1)], Constraints(max_drop=0.001)) == []


def test_the_test_split_chooses_nothing():
    """Two points; on the test split the slower one looks better, and the faster one lucky. Both stay, in the order of validation."""

    def confirmed(number, told, test_drop, speed):
        found = measured(number, told, speed)
        return point.Confirmed(found, found.metric, test_drop, found.latency, found.speedup, "test", told)

    points = [confirmed(0, 0.001, 0.03, 1.5), confirmed(1, 0.01, 0.0, 2.0)]
    assert [p.trial.number for p in point.final_front(points, Constraints())] == [0, 1]
    assert [p.trial.number for p in point.final_front(points, Constraints(max_drop=0.02))] == [0, 1]


def test_the_gentlest_have_a_place_however_many_there_are_beyond_them():
    """A user with a small limit is not left with nothing between dense and the first point that the split can tell from it."""
    gentle, fastest_untold = trial(0, 0.0, 1.3, 1e-5), trial(1, 0.0, 2.0, 4e-5)
    others = [trial(2 + i, 0.004 + 0.003 * i, 2.3 * math.exp(0.12 * i), 0.02 + 0.02 * i) for i in range(15)]
    found = chosen([gentle, fastest_untold, *others])
    assert len(found) == finalists.MOST_FINALISTS and {0, 1, 16} <= set(found)


@pytest.mark.parametrize("seed", range(40))
def test_no_neighbours_are_more_than_a_factor_of_two_apart_where_a_candidate_lies_between(seed):
    """Fronts whose slow end nobody can tell from dense, and a crowd of fast ones that differ: the crowd took all the places."""
    draw = np.random.default_rng(seed)
    speeds = np.sort(np.exp(draw.uniform(0.05, math.log(30), size=draw.integers(8, 60))))
    divergences = np.sort(10 ** draw.uniform(-4, -0.5, size=len(speeds)))
    trials = [trial(i, 0.3 * kl, speed, kl) for i, (speed, kl) in enumerate(zip(speeds, divergences, strict=True))]
    found, belief = chosen(trials), DropBelief(trials, Limits(max_drop=None))
    front = {t.number for t in pareto.non_dominated(trials, lambda t: (belief.drop(t), t.speedup.value))}
    assert len(found) <= finalists.MOST_FINALISTS
    for lower, upper in pairwise(found):
        if speeds[upper] > 2 * speeds[lower]:
            between = [i for i in range(lower + 1, upper) if 1.03 * speeds[lower] < speeds[i] < speeds[upper] / 1.03]
            assert not front & set(between), (speeds[lower], speeds[upper])
