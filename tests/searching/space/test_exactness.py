"""Masks are chosen as exactly as the time given allows."""

from __future__ import annotations

import dataclasses

import pytest

from hwprune.methods import layerwise
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.sampling import items
from hwprune.searching.sampling.savings import Savings
from hwprune.searching.space import exactness, fitting, space_file
from tests.conftest import tiny_workload

MASKS = ("conv1.weight", "conv2.weight", "fc.weight")


@pytest.fixture
def fitted(monkeypatch):
    """A pruner, and a space in which three matrices get exact masks; a tenth of a second is long for their solver."""
    monkeypatch.setattr(layerwise, "EXACT_SPEED", 1e5)
    pruner = Pruner(tiny_workload())
    file = dataclasses.replace(space_file.load("mixed"), criteria=("obs", "l2"), patterns=("2:4",))
    space = fitting.build(file, pruner, targets.load("cpu"), "avx512", all_patterns=True)
    return pruner, space


def methods(space):
    return {unit.unit: unit.methods for unit in space.units if unit.unit in MASKS}


def test_what_the_time_suffices_for_stays_exact(fitted):
    pruner, space = fitted
    swept, seconds = exactness.beyond(space, pruner, 1e9)
    assert swept == [] and seconds > 0
    assert exactness.with_sweep(space, swept) == space
    assert all("obs" in names for names in methods(space).values())


def test_the_quick_matrices_are_exact_and_the_rest_is_swept(fitted):
    pruner, space = fitted
    cost = {
        name: layerwise.exact_seconds(pruner.units[name].parts[0], items.patterns.get("2:4"), [0.5]) for name in methods(space)
    }
    quick, *slow = sorted(cost, key=cost.get)
    swept, seconds = exactness.beyond(space, pruner, cost[quick] * 1.01)
    assert swept == slow and len(slow) >= 1
    assert exactness.beyond(space, pruner, cost[quick] * 0.99)[0] == [quick, *slow]
    assert seconds == pytest.approx(sum(cost.values()))
    fewer = methods(exactness.with_sweep(space, swept))
    assert fewer[quick] == methods(space)[quick]
    for name in slow:
        assert "obs" not in fewer[name] and "sparsegpt" in fewer[name] and len(fewer[name]) == len(methods(space)[name])
    axes = [unit for unit in space.units if unit.unit not in MASKS]
    assert [unit for unit in exactness.with_sweep(space, swept).units if unit.unit not in MASKS] == axes


def test_what_is_solved_already_takes_no_time(fitted):
    pruner, space = fitted
    inside = exactness.local_compensation(space)
    for name in methods(space):
        assert not pruner.held(name, "2:4", "obs", [0.5], inside)
        pruner.options(name, "2:4", "obs", [0.5], inside)
        assert pruner.held(name, "2:4", "obs", [0.5], inside)
    assert exactness.beyond(space, pruner, 0.0) == ([], 0.0)


def test_the_time_for_exact_masks_is_a_share_of_the_searchs():
    assert exactness.allowed_seconds(600) == 120
    assert exactness.allowed_seconds(60) == 12
    assert exactness.allowed_seconds(0) == 120
    text = exactness.note(["a", "b"], 1000, 12)
    assert "2 units" in text and "16:40" in text and "0:12" in text


def test_what_is_being_done_is_told(fitted):
    """Each unit that is still to be pruned, and how far the examples are."""
    pruner, space = fitted
    told = []

    def tell(text, done=0, total=0):
        told.append((text, done, total))

    items.build(pruner, space, Savings(), step=tell)
    pruned = [told_of for told_of in told if told_of[0].startswith("pruning ")]
    assert pruned and [done for _, done, _ in pruned] == list(range(len(pruned)))
    assert {total for _, _, total in pruned} == {len(pruned)}
    assert told[-1] == ("predicting what each choice does to the outputs", 20, 20)
    told.clear()
    items.build(pruner, space, Savings(), step=tell)
    assert not any(text.startswith("pruning ") for text, _, _ in told)  # they are known by now
