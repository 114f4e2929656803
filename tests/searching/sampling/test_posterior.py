"""The scale on which a front's area is measured."""

from __future__ import annotations

import numpy as np

from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Choice, Item, Limits


def posterior(limits):
    choices = (Choice({"a": 0}, 0.0, 0.0), Choice({"a": 1}, 0.1, 0.3))
    found = Posterior(AllocationProblem([Item("a", choices)], limits=limits))
    found.drop.split_error = 0.002
    return found


def test_without_a_limit_half_a_point_is_worth_far_more_than_a_tenth_of_five():
    worth = posterior(Limits()).worth(np.array([0.0, 0.005, 0.01, 0.05]))
    share = worth / worth[-1]
    assert 0.2 < share[1] < 0.3 and 0.35 < share[2] < 0.45
    assert (np.diff(worth) > 0).all()


def test_drops_are_told_apart_below_what_the_split_can_tell_but_not_without_end():
    found = posterior(Limits())
    floor = found.floor
    assert found.worth(np.array(0.3 * floor)) < found.worth(np.array(0.9 * floor))
    assert found.worth(np.array(0.0)) == found.worth(np.array(0.2 * floor))


def test_with_a_limit_only_the_drop_itself_counts():
    found = posterior(Limits(max_drop=0.02))
    drops = np.array([0.0, 0.01, 0.02])
    np.testing.assert_allclose(found.worth(drops), np.maximum(drops, found.floor))
