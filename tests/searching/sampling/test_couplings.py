"""Savings of several cuts at once, against the model that is really cut so. Times are made up, and known exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwprune import patterns
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.sampling import couplings
from hwprune.searching.sampling.savings import axis_level
from hwprune.searching.sampling.savings_estimator import SavingsEstimator
from hwprune.searching.space import fitting, space_file
from hwprune.searching.space.unit_space import UnitSpace
from hwprune.workload import demos
from tests.searching.networks import CifarResNet, SeparableNet, image_workload


def by_work_and_bytes(segments):
    """A fixed cost, multiply-accumulates, and memory traffic, of which a part grows with one width only."""
    return {s.signature: 1e-9 * s.macs + 0.3e-9 * s.nbytes + 1e-6 for s in segments}


def predicted_and_real(pruner, seed=0, recipes=10):
    """(recipes, 2): the predicted ratio of random recipes, half of which drop branches, and the sum of their segments' times."""
    # Tokens that go at many places multiply in threes and more, which pairs don't say: see `test_savings_estimator`.
    default = space_file.load("default")
    file = dataclasses.replace(default, roles=tuple(role for role in default.roles if role not in patterns.TOKENS))
    space = fitting.build(file, pruner, targets.load("cpu"), "avx512")
    pieces = CutSegments(pruner)
    savings = SavingsEstimator(pruner, space, pieces, by_work_and_bytes).savings()

    def seconds(counts, drop=()):
        segments = pieces.segments(pieces.cut(counts, drop))
        known = by_work_and_bytes(segments)
        return sum(known[s.signature] for s in segments)

    dense, draw, rows = seconds({}), np.random.default_rng(seed), []
    units = [unit for unit in space.units if unit.role != "matrix"]
    assert any(unit.role == "hidden" for unit in units) and any(unit.role == "branch" for unit in units)
    for number in range(recipes):
        depth = draw.uniform(0.1, 1.0)
        levels = {unit.unit: int(np.clip(round(draw.normal(depth, 0.3) * unit.depth), 0, unit.depth)) for unit in units}
        chance = 0.3 if number % 2 else 0.0
        drop = tuple(unit.unit for unit in units if unit.role == "branch" and draw.random() < chance)
        gone = space.dead(drop) if drop else ()
        counts = {}
        for unit in units:
            if unit.role == "branch":
                levels[unit.unit] = int(unit.unit in drop)
            elif unit.unit in gone:
                levels[unit.unit] = 0
            else:
                counts |= axis_level(unit, levels[unit.unit])[0]
        told = 1 - sum(savings.saved[unit, level] for unit, level in levels.items() if level)
        told -= sum(float(table[levels[a], levels[b]]) for (a, b), table in savings.coupled.items())
        rows.append((told, seconds(counts, drop) / dense))
    return np.array(rows), savings


@pytest.mark.parametrize(
    "workload",
    [
        lambda: image_workload("resnet20", CifarResNet()),
        lambda: image_workload("separable", SeparableNet()),
        lambda: demos.get("digits"),
    ],
    ids=["resnet20", "separable", "digits"],
)
def test_hidden_and_inner_axes_and_branches_cut_together_save_what_was_predicted(workload):
    rows, savings = predicted_and_real(Pruner(workload()))
    assert savings.coupled
    assert np.abs(rows[:, 0] - rows[:, 1]).max() < 0.01
    assert rows[:, 1].min() < 0.3  # where savings that are only added up are far off


def test_heads_and_hidden_width_of_a_transformer():
    rows, _ = predicted_and_real(Pruner(demos.get("digits-vit")), recipes=6)
    assert np.abs(rows[:, 0] - rows[:, 1]).max() < 0.01


def test_pairs_that_are_too_many_to_cut_are_taken_for_products(monkeypatch):
    pruner = Pruner(image_workload("resnet14", CifarResNet(blocks=2)))
    monkeypatch.setattr(couplings, "MOST_COUPLED", 0)
    rows, savings = predicted_and_real(pruner, recipes=6)
    assert savings.coupled
    assert np.abs(rows[:, 0] - rows[:, 1]).max() < 0.05


def unit_space(name, depth, role="channel"):
    levels = (1.0,) if role == patterns.BRANCH else tuple((n + 1) / (depth + 1) for n in range(depth))
    return UnitSpace(name, role, 8 * (depth + 1), {role: levels}, ("l2",))


def test_a_branch_is_no_pair_with_what_is_inside_it():
    spaces = [unit_space("stream", 3), unit_space("inner", 3), unit_space("block", 1, patterns.BRANCH)]
    touched = {"stream": frozenset("abc"), "inner": frozenset("bc"), "block": frozenset("bc")}
    pairs = couplings.find_pairs(spaces, touched, lambda dropped: {"inner"} if "block" in dropped else set())
    assert [(p.first.unit, p.second.unit) for p in pairs] == [("stream", "inner"), ("stream", "block")]
    assert pairs[0].shared == frozenset("bc")


def test_neighbours_never_have_the_same_colour_and_few_are_used():
    edges = [("h", "g"), *[("h", f"a{n}") for n in range(5)], ("g", "a0")]
    colours = couplings.colouring(["h", "g", *[f"a{n}" for n in range(5)]], edges)
    assert all(colours[a] != colours[b] for a, b in edges)
    assert len(set(colours.values())) == 3


def test_few_sizes_are_sampled_and_the_deepest_is_always_among_them():
    assert [couplings.sampled(depth) for depth in (1, 2, 3, 4, 8)] == [(1,), (1, 2), (1, 2, 3), (1, 3, 4), (3, 5, 8)]


def test_a_pair_that_cannot_be_cut_is_a_product():
    first, second = unit_space("a", 1), unit_space("b", 1)
    pair = couplings.Pair(first, second, frozenset(["layer"]))

    def refuse(counts, drop):
        return None

    assert couplings.cut_pairs([pair], refuse) == []
    alone = {("a", 1): {"layer": 5.0}, ("b", 1): {"layer": 4.0}}
    table = couplings.CouplingTables({"layer": 10.0, "other": 10.0}, alone, {}).table(pair)
    np.testing.assert_allclose(table, [[0, 0], [0, -5.0 * 6.0 / 10 / 20]])
    measured = {("a", "b"): {(1, 1): 3.0}}
    table = couplings.CouplingTables({"layer": 10.0, "other": 10.0}, alone, measured).table(pair)
    np.testing.assert_allclose(table[1, 1], (10 - 3 - 5 - 6) / 20)
