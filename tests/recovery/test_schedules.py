"""Schedules: ends, order, and the papers' own numbers."""

import pytest

from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery import schedules
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import prune_gradually


@pytest.mark.parametrize("name", [*schedules.SCHEDULES, "iterative:3"])
def test_they_never_fall_and_end_where_they_must(name):
    schedule = schedules.get(name)
    values = [schedule(t / 100, 0.1, 0.9) for t in range(101)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.9)
    assert 0.1 - 1e-12 <= values[0] <= 0.9
    assert schedule(-1.0, 0.1, 0.9) == values[0] and schedule(2.0, 0.1, 0.9) == pytest.approx(0.9)


def test_cubic_is_the_formula_of_zhu_and_gupta():
    # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0, s_f = 0.875, half way
    assert schedules.cubic(0.5, 0.0, 0.875) == pytest.approx(0.875 * (1 - 1 / 8))


def test_exponential_and_iterative_remove_equal_shares_of_what_is_left():
    left = [1 - schedules.exponential(t / 4, 0.0, 0.9375) for t in range(5)]
    assert left == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625])
    rounds = schedules.get("iterative:4")
    assert [1 - rounds(t, 0.0, 0.9375) for t in (0.0, 0.2, 0.25, 0.5, 0.99)] == pytest.approx([0.5, 0.5, 0.25, 0.125, 0.0625])


@pytest.mark.parametrize("name", ["cubik", "linear:3", "iterative:0", "iterative:x"])
def test_unknown_ones_are_refused(name):
    with pytest.raises(UsageError):
        schedules.get(name)


def test_everything_can_not_go_exponentially():
    with pytest.raises(UsageError, match="< 1"):
        schedules.exponential(0.5, 0.0, 1.0)


@pytest.mark.parametrize("schedule", ["exponential", "iterative:3", "cubic"])
@pytest.mark.parametrize("sparsity", [0.23, 0.33, 0.67])
def test_the_end_of_a_schedule_is_exact(stripes, schedule, sparsity):
    assert schedules.get(schedule)(1.0, 0.0, sparsity) == sparsity
    recipe = Recipe((UnitChoice("outer.weight", "unstructured", sparsity, "l1"),), "none")
    made = prune_gradually(stripes, recipe, Plan("gradual", 1, schedule=schedule, rate=0.002), "lasso")
    (choice,) = made.candidate.recipe.choices
    assert choice.sparsity == pytest.approx(sparsity, abs=1e-3)
