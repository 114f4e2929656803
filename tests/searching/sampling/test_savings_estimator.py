"""Prices and items on models small enough to know what must come out. Times are made up, so that sums can be checked."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.sampling import items
from hwprune.searching.sampling.savings import Savings, axis_level, by_work, note_on_unsearched
from hwprune.searching.sampling.savings_estimator import SavingsEstimator
from hwprune.searching.space import fitting, space_file
from tests.conftest import randomise, tiny_workload
from tests.searching.networks import SeparableNet, image_workload
from tests.structure.token_models import Vision

INSIDE = dataclasses.replace(space_file.load("default"), roles=("branch", "channel"))
"""Branches and what is inside them, without the residual stream."""


class Plain(nn.Module):
    """Three convolutions in a row: each inner layer's time depends on two axes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 64, 3, 1, 1)
        self.b = nn.Conv2d(64, 64, 3, 1, 1)
        self.c = nn.Conv2d(64, 64, 3, 1, 1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.fc(x.mean(dim=(2, 3)))


def plain():
    data = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return hwprune.Workload("plain", randomise(Plain()), (data[:1],), [(data, None)], [(data, None)], metric="agreement")


def by_macs(segments):
    return {s.signature: 1e-9 * s.macs + 1e-6 for s in segments}


def priced(workload, name="structured"):
    pruner = Pruner(workload)
    space = fitting.build(space_file.load(name), pruner, targets.load("cpu"), "avx512")
    return pruner, space, SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings()


def test_prices_and_couplings_add_up_to_any_cut():
    """What a combination of cuts saves is the sum of what each saves and of the pairs' couplings: MACs of a chain are bilinear."""
    pruner, space, savings = priced(plain())
    pieces = CutSegments(pruner)
    unit_spaces = {unit_space.unit: unit_space for unit_space in space.units}
    assert set(unit_spaces) == {"a.weight:0", "b.weight:0", "c.weight:0"}
    assert set(savings.coupled) == {("a.weight:0", "b.weight:0"), ("b.weight:0", "c.weight:0")}
    dense = sum(by_macs([s])[s.signature] for s in pieces.segments(pieces.cut({})))
    draw = np.random.default_rng(0)
    for _ in range(6):
        levels = {unit: int(draw.integers(0, unit_space.depth + 1)) for unit, unit_space in unit_spaces.items()}
        counts = {}
        for unit, level in levels.items():
            counts |= axis_level(unit_spaces[unit], level)[0]
        real = 1 - sum(by_macs([s])[s.signature] for s in pieces.segments(pieces.cut(counts))) / dense
        told = sum(savings.saved[unit, level] for unit, level in levels.items() if level)
        told += sum(float(table[levels[a], levels[b]]) for (a, b), table in savings.coupled.items())
        assert told == pytest.approx(real, abs=1e-9)


def test_bytes_saved_are_those_of_the_parameters():
    pruner, space, savings = priced(plain())
    for unit_space in space.units:
        for level in range(1, unit_space.depth + 1):
            cut = pruner.graph.cut({unit_space.unit: torch.arange(64) < axis_level(unit_space, level)[0][unit_space.unit]})
            gone = sum(p.numel() for p in pruner.graph.module.parameters()) - sum(p.numel() for p in cut.parameters())
            assert savings.bytes_saved[unit_space.unit, level] == 4 * gone


def test_savings_by_size_are_the_table_that_gates_learn_from():
    from hwprune.recovery.plan import Plan
    from hwprune.recovery.sparsifiers.gates import Gates

    _, space, savings = priced(plain())
    found = savings.by_size(space)
    for unit_space in space.units:
        sizes, saved = found[unit_space.unit]
        assert sizes == sorted(set(sizes)) and sizes[-1] == unit_space.size and saved[-1] == 0.0
        for level in range(1, unit_space.depth + 1):
            count = int(axis_level(unit_space, level)[0][unit_space.unit])
            assert saved[sizes.index(count)] == savings.saved[unit_space.unit, level]
    private = Pruner(plain())
    recipe = hwprune.uniform_recipe(private, "channel", 0.5, criterion="l1", compensation="none")
    most = sum(max(saved) for _, saved in found.values())
    assert (
        float(Gates(private, recipe, Plan("gradual"), found, 1 - most / 2).expected_ratio().detach()) > 0.8
    )  # gates begin a little closed


def test_uncoupled_axes_share_cuts_and_still_get_their_own_price():
    from tests.structure.test_branches import Blocks

    x = torch.randn(1, 3, 9, 9)
    data = [(torch.randn(4, 3, 9, 9), None)]
    workload = hwprune.Workload("blocks", randomise(Blocks(False)), (x,), data, data, metric="agreement")
    pruner, space, savings = priced(workload)
    assert not savings.coupled
    pieces = CutSegments(pruner)
    dense = sum(by_macs([s])[s.signature] for s in pieces.segments(pieces.cut({})))
    for unit_space in space.units:
        for level in range(1, unit_space.depth + 1):
            alone = pieces.segments(pieces.cut(*axis_level(unit_space, level)))
            assert savings.saved[unit_space.unit, level] == pytest.approx(
                1 - sum(by_macs([s])[s.signature] for s in alone) / dense, abs=1e-9
            )


def test_by_work_where_models_cannot_be_taken_apart():
    pruner = Pruner(plain())
    space = fitting.build(space_file.load("structured"), pruner, targets.load("cpu"), "avx512")
    savings = by_work(pruner, space)
    for (unit, level), saved in savings.saved.items():
        counts = axis_level(next(k for k in space.units if k.unit == unit), level)[0]
        assert saved == pytest.approx(1 - pruner.macs(counts) / pruner.macs({}))


def test_a_branch_and_what_is_inside_it_are_one_item():
    pruner = Pruner(tiny_workload())
    space = fitting.build(INSIDE, pruner, targets.load("cpu"), "avx512")
    savings = SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings()
    (item,) = items.build(pruner, space, savings)
    axis, branch = (next(k for k in space.units if k.role == role) for role in ("channel", "branch"))
    combos = [(axis.read(c.parameters)[0], branch.read(c.parameters)[0]) for c in item.choices]
    assert combos[0] == (0, 0)
    assert sorted(combos) == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    dropped = item.choices[combos.index((0, 1))]
    assert dropped.saved > max(c.saved for c, combo in zip(item.choices, combos, strict=True) if combo != (0, 1))
    for choice in item.choices:
        if choice.response is not None:
            assert choice.error == pytest.approx(float(np.square(choice.response).mean()) / 2)
    errors = [item.choices[combos.index((level, 0))].error for level in range(4)]
    assert errors[0] == 0 and errors[1] < errors[3]


def test_a_mask_saves_its_layers_share_of_what_was_measured_for_the_pattern():
    pruner = Pruner(plain())
    target = targets.load("cpu")
    space = fitting.build(space_file.load("two-four"), pruner, target, "avx512", refused={"2:4": None})
    pieces = CutSegments(pruner)
    savings = SavingsEstimator(pruner, space, pieces, by_macs).savings()
    made = items.build(pruner, space, savings, {"2:4": 0.3})
    total = sum(item.choices[1].saved for item in made)
    covered = sum(savings.share[item.name] for item in made)
    # All that the measurement had masked saves 30 % together; the first layer, with three inputs, takes no 2:4.
    assert total == pytest.approx(0.3 * covered / sum(savings.share.values()))
    assert 0.9 < covered < sum(savings.share.values()) <= 1.0 + 1e-9


def test_a_space_without_prices_has_no_savings():
    pruner = Pruner(tiny_workload())
    space = fitting.build(space_file.load("structured"), pruner, targets.load("cpu"), "avx512")
    (item,) = items.build(pruner, space, Savings())
    assert all(choice.saved == 0 for choice in item.choices)


def test_cuts_that_cannot_be_taken_apart_have_no_price_and_cost_the_others_nothing(monkeypatch):
    """One level of one axis fails, in whatever company; the rest is priced as ever. A dense model that fails is an error."""
    from tests.structure.test_branches import Blocks

    x = torch.randn(1, 3, 9, 9)
    data = [(torch.randn(4, 3, 9, 9), None)]
    workload = hwprune.Workload("blocks", randomise(Blocks(False)), (x,), data, data, metric="agreement")
    pruner, space, whole = priced(workload)
    bad = next(k for k in space.units if k.depth > 1)
    kept = axis_level(bad, 1)[0][bad.unit]
    right = CutSegments.cut

    def cut(self, counts, drop=()):
        if counts.get(bad.unit) == kept:
            raise UsageError("the shape of t can't be inferred")
        return right(self, counts, drop)

    monkeypatch.setattr(CutSegments, "cut", cut)
    savings = SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings()
    assert (bad.unit, 1) not in savings.saved
    assert {k: v for k, v in whole.saved.items() if k != (bad.unit, 1)} == pytest.approx(savings.saved)
    monkeypatch.setattr(CutSegments, "cut", lambda self, counts, drop=(): (_ for _ in ()).throw(UsageError("no shapes")))
    with pytest.raises(UsageError, match="no shapes"):
        SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings()


def test_prices_survive_the_study():
    _, _, savings = priced(plain())
    again = Savings.from_json(json.loads(json.dumps(savings.to_json())))
    assert again.saved == savings.saved and again.bytes_saved == savings.bytes_saved and again.share == savings.share
    assert set(again.coupled) == set(savings.coupled)
    for key, table in savings.coupled.items():
        np.testing.assert_array_equal(again.coupled[key], table)


def test_any_spelling_of_a_choice_is_recognised():
    """Another method, a method for a unit that stays dense, levels inside a branch that is gone: each stands for one choice."""
    pruner = Pruner(tiny_workload())
    space = fitting.build(INSIDE, pruner, targets.load("cpu"), "avx512")
    made = items.build(pruner, space, SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings())
    turn = items.canonical(space, made)
    names = {tuple(sorted(c.parameters.items())) for c in made[0].choices}
    axis, branch = (next(k for k in space.units if k.role == role) for role in ("channel", "branch"))
    for method in ("obs", "l2"):
        for level in range(4):
            for gone in (0, 1):
                now = {**axis.parameters(level, "channel", method), **branch.parameters(gone)}
                before = {f"level:{axis.unit}": level, f"method:{axis.unit}": method, f"level:{branch.unit}": gone}
                for spelled in (now, before):
                    found = turn(spelled)
                    assert tuple(sorted(found.items())) in names
                    assert axis.read(found)[0] == (0 if gone else level)


def test_a_tied_mask_saves_the_time_of_all_its_units():
    pruner = Pruner(plain())
    space = fitting.build(space_file.load("two-four"), pruner, targets.load("cpu"), "avx512", refused={"2:4": None})
    savings = SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings()
    alone = {item.name: item.choices[1].saved for item in items.build(pruner, space, savings, {"2:4": 0.3})}
    first, second = "b.weight", "c.weight"
    tied = dataclasses.replace(next(k for k in space.units if k.unit == first), tied=(second,))
    together = dataclasses.replace(space, units=tuple(tied if k.unit == first else k for k in space.units if k.unit != second))
    made = {item.name: item.choices[1].saved for item in items.build(pruner, together, savings, {"2:4": 0.3})}
    assert made[first] == pytest.approx(alone[first] + alone[second])


def test_masks_that_are_searched_against_the_measurement_are_still_proposed():
    pruner = Pruner(plain())
    space = fitting.build(space_file.load("two-four"), pruner, targets.load("cpu"), "avx512", all_patterns=True)
    for savings in (SavingsEstimator(pruner, space, CutSegments(pruner), by_macs).savings(), by_work(pruner, space)):
        for item in items.build(pruner, space, savings, {"2:4": 0.0}):
            assert item.choices[1].saved > 0


def test_what_is_not_searched_is_told_with_its_share_of_the_time_and_the_space_that_has_it():
    """Without its residual stream a depthwise-separable network has next to nothing to search."""
    _, _, savings = priced(image_workload("separable", SeparableNet()))
    again = Savings.from_json(json.loads(json.dumps(savings.to_json())))
    for one in (savings, again):
        assert one.unsearched == {"hidden": 2} and one.unsearched_share > 0.5
        share = round(100 * one.unsearched_share)
        assert note_on_unsearched(one) == (
            f"Not searched: 2 hidden axes ({share} % of the time is in layers that nothing else reaches; "
            "--space default searches them)."
        )
    _, _, whole = priced(image_workload("separable", SeparableNet()), "default")
    assert not whole.unsearched and whole.unsearched_share == 0 and not note_on_unsearched(whole)
    earlier = {key: value for key, value in savings.to_json().items() if not key.startswith("unsearched")}
    assert not note_on_unsearched(Savings.from_json(earlier))


def test_layers_that_something_searched_reaches_are_not_counted_as_unsearched():
    """The inner channels of a bottleneck reach its layers; only the stem and the head are left to the residual stream."""
    _, _, savings = priced(tiny_workload())
    assert savings.unsearched == {"hidden": 1}
    assert 0 < savings.unsearched_share < 0.2


def test_fewer_tokens_are_priced_with_what_they_cost_themselves():
    """What is saved behind the place, less the nodes that choose; and with what else is cut as a product."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    workload = hwprune.Workload(
        "vision", Vision(class_token=False).eval(), (x[:1],), [(x, None)], [(x, None)], metric="agreement"
    )
    pruner, file = Pruner(workload), dataclasses.replace(space_file.load("tokens"), roles=("token", "neuron"), patterns=())
    space = fitting.build(file, pruner, targets.load("cpu"), "avx512")
    pieces = CutSegments(pruner)
    savings = SavingsEstimator(pruner, space, pieces, by_macs).savings()
    segments = pieces.segments(pieces.cut({}))
    dense = sum(by_macs(segments)[s.signature] for s in segments)

    def real(counts):
        segments = pieces.segments(pieces.cut(counts))
        known = by_macs(segments)
        return 1 - sum(known[s.signature] for s in segments) / dense

    by_role = {role: [unit for unit in space.units if unit.role == role] for role in ("token", "neuron")}
    first, last = by_role["token"][0], by_role["token"][-1]
    for unit in (first, last):
        for level in (1, 3, unit.depth):
            assert savings.saved[unit.unit, level] == pytest.approx(real(axis_level(unit, level)[0]), abs=1e-9)
    assert savings.saved[first.unit, 1] < savings.saved[first.unit, first.depth]
    assert savings.saved[last.unit, last.depth] < savings.saved[first.unit, first.depth]
    # Neurons of the last block save less once there are fewer tokens: the product of what is left of both.
    neurons = by_role["neuron"][-1]
    level, other = first.depth, neurons.depth
    both = real({**axis_level(first, level)[0], **axis_level(neurons, other)[0]})
    key = next(key for key in savings.coupled if set(key) == {first.unit, neurons.unit})
    table = savings.coupled[key] if key[0] == first.unit else savings.coupled[key].T
    told = savings.saved[first.unit, level] + savings.saved[neurons.unit, other] + table[level, other]
    assert table[level, other] < 0
    assert told == pytest.approx(both, abs=0.02)
