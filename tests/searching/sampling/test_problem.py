"""Items and choices that make no sense."""

from __future__ import annotations

import pytest

from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import Choice, Item


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, -0.1, 0)
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, float("nan"), 0)
    with pytest.raises(ValueError, match="same parameters"):
        Item("a", (Choice({"a": 0}, 0, 0), Choice({"b": 1}, 0.1, 0.1)))
    with pytest.raises(ValueError, match="at least one item"):
        KnapsackSampler([])
