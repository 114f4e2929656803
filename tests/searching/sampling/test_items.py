"""Joint choices of an item, thinned where there are too many."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hwprune.searching.sampling import items
from hwprune.searching.sampling.items import _choice, _thinned, _Way
from hwprune.searching.sampling.savings import Savings
from hwprune.searching.space.unit_space import UnitSpace

LEVELS = 4


def ways_of(name, draw):
    """A unit at each of its levels; none has a response, so errors add up."""
    space = UnitSpace(name, "channel", 16, {"channel": tuple(i / LEVELS for i in range(1, LEVELS))}, ("l2",))
    errors = np.array([0.0, *np.round(0.01 * draw.random(LEVELS - 1), 3)])
    saved = np.array([0.0, *np.round(0.1 * draw.random(LEVELS - 1), 2)])
    return [_Way(space, i, "channel", "l2", float(errors[i]), float(saved[i]), 0.0, None) for i in range(LEVELS)]


def priced(joint, others, savings):
    """(error, time saved) of joint choices with levels of units outside, added up one at a time."""
    levels = {way.unit_space.unit: way.level for way in joint} | others
    saved = sum(way.saved for way in joint)
    for (a, b), table in savings.coupled.items():
        saved += float(table[levels[a], levels[b]])
    return sum(way.error for way in joint), saved


@pytest.mark.parametrize("seed", range(10))
def test_thinning_keeps_what_is_best_with_any_choice_outside(seed, monkeypatch):
    """Three units of the item, two of them coupled, two with a unit outside; brute force over all joint choices."""
    monkeypatch.setattr(items, "MOST_CHOICES", LEVELS**3 - 1)
    draw = np.random.default_rng(seed)
    joint = list(product(*[ways_of(name, draw) for name in "abc"]))
    savings = Savings()
    for pair in (("a", "b"), ("a", "x"), ("y", "b")):
        savings.coupled[pair] = np.where(draw.random((LEVELS, LEVELS)) < 0.2, 0.1, 0.0)
    savings.coupled["x", "y"] = np.zeros((LEVELS, LEVELS))
    kept = _thinned(joint, savings)
    assert len(kept) < len(joint) * 3 // 4  # not for want of room: what is left out is dominated
    assert any(not any(way.level for way in one) for one in kept)  # the dense one
    for x, y in product(range(LEVELS), repeat=2):
        prices = [priced(one, {"x": x, "y": y}, savings) for one in kept]
        for one in joint:
            error, saved = priced(one, {"x": x, "y": y}, savings)
            assert any(e <= error + 1e-12 and s >= saved - 1e-12 for e, s in prices)


def test_thinning_keeps_to_the_limit_and_prefers_what_is_best_alone():
    draw = np.random.default_rng(0)
    joint = list(product(*[ways_of(name, draw) for name in "abcd"]))
    savings = Savings()
    alone = _thinned(joint, savings)
    savings.coupled["a", "x"] = draw.standard_normal((LEVELS, LEVELS))
    savings.coupled["b", "x"] = draw.standard_normal((LEVELS, LEVELS))
    kept = _thinned(joint, savings)
    assert len(alone) < len(kept) <= items.MOST_CHOICES + 1
    assert all(any(one == other for other in kept) for one in alone)


def test_a_choice_is_of_the_kind_that_costs_most():
    branch = UnitSpace("add", "branch", 1, {"branch": (1.0,)}, ("drop",))
    axis = UnitSpace("conv", "channel", 16, {"channel": (0.5,)}, ("l2",))
    dropped, kept = (_Way(branch, level, "branch", "drop", 0.02 * level, 0.0, 0.0, None) for level in (1, 0))
    cut, whole = (_Way(axis, level, "channel", "l2", 0.01 * level, 0.0, 0.0, None) for level in (1, 0))
    kinds = [_choice(ways, Savings()).kind for ways in ((kept, whole), (kept, cut), (dropped, whole), (dropped, cut))]
    assert kinds == ["", "channel", "branch", "branch"]
