"""Fronts, layers and hypervolumes against brute force."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.records import pareto

points = st.lists(st.tuples(st.integers(-5, 20), st.integers(0, 20)), max_size=25)


@given(points)
def test_front_against_brute_force(listed):
    found = pareto.non_dominated(listed, lambda p: p)
    expected = {p for p in listed if not any((q[0] <= p[0] and q[1] >= p[1]) and q != p for q in listed)}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [p[1] for p in found] == sorted(p[1] for p in found)


@given(points)
def test_layers_partition(listed):
    layers = pareto.layers([tuple(p) for p in listed], lambda p: p)
    assert sorted(p for layer in layers for p in layer) == sorted(listed)


@settings(deadline=None)
@given(points)
def test_hypervolume_counts_dominated_cells(listed):
    """On whole numbers the dominated area is a number of unit cells."""
    cells = sum(any(drop <= x and speedup >= y + 1 for drop, speedup in listed) for x in range(-5, 15) for y in range(1, 20))
    assert pareto.hypervolume([(float(a), float(b)) for a, b in listed], (15.0, 1.0)) == cells
