"""Axes side by side in one dim, on a target that likes some widths better than others."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.sampling import concatenation
from hwprune.searching.sampling.savings import axis_level, structural
from hwprune.searching.sampling.savings_estimator import SavingsEstimator
from hwprune.searching.space import fitting, space_file
from tests.searching.networks import CifarResNet, image_workload


class Padded(nn.Module):
    """The shortcut without parameters of He et al. 2015: every second pixel, new channels are zero."""

    def __init__(self, new):
        super().__init__()
        self.new = new

    def forward(self, x):
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


def padded_resnet():
    model = CifarResNet()
    for block in model.blocks:
        if not isinstance(block.shortcut, nn.Identity):
            block.shortcut = Padded(block.conv1.out_channels - block.conv1.in_channels)
    return model


class Inception(nn.Module):
    """Four branches side by side, twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(32, 24, 3, padding=1) for _ in range(4))
        self.second = nn.ModuleList(nn.Conv2d(96, 24, 3, padding=1) for _ in range(4))
        self.fc = nn.Linear(96, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for branches in (self.first, self.second):
            x = torch.cat([torch.relu(branch(x)) for branch in branches], dim=1)
        return self.fc(x.mean((2, 3)))


def tiles(segments):
    """A convolution's channels are rounded up to a multiple of 16, and any that is no multiple costs a third more."""
    found = {}
    for s in segments:
        seconds = 1e-6
        for constant in s.constants.values():
            if len(constant.dims) == 4:
                out, inner, *kernel = constant.dims
                positions = s.macs / prod(constant.dims)
                odd = sum(width % 16 > 0 for width in (out, inner))
                seconds += 1e-9 * positions * prod(kernel) * out * inner * (1 + odd / 3)
        found[s.signature] = seconds
    return found


def built(model):
    pruner = Pruner(image_workload("net", model))
    space = fitting.build(space_file.load("default"), pruner, targets.load("cpu"), "avx2")
    return pruner, space


@pytest.mark.parametrize("model", [padded_resnet, Inception])
def test_no_combination_of_cuts_is_told_to_save_much_more_than_it_does(model):
    pruner, space = built(model())
    pieces = CutSegments(pruner)
    savings = SavingsEstimator(pruner, space, pieces, tiles).savings()
    axes = [one for one in space.units if structural(one) and one.role != "branch"]

    def seconds(counts):
        segments = pieces.segments(pieces.cut(counts, ()))
        known = tiles(segments)
        return sum(known[s.signature] for s in segments)

    dense, draw, off = seconds({}), np.random.default_rng(0), []
    for depth in np.linspace(0.2, 1.0, 12):
        levels = {one.unit: int(np.clip(round(draw.normal(depth, 0.15) * one.depth), 0, one.depth)) for one in axes}
        told = 1 - sum(savings.saved[unit, level] for unit, level in levels.items() if level)
        told -= sum(
            float(table[levels[a], levels[b]]) for (a, b), table in savings.coupled.items() if a in levels and b in levels
        )
        counts = {}
        for one in axes:
            counts |= axis_level(one, levels[one.unit])[0]
        off.append(told - seconds(counts) / dense)
    assert np.abs(off).max() < 0.2
    assert abs(np.mean(off)) < 0.1


def test_who_lies_side_by_side():
    pruner, space = built(padded_resnet())
    (group,) = concatenation.groups([one for one in space.units if structural(one)], pruner)
    assert len(group.members) == 5  # the first stage's channels, and what each later stage adds before and behind
    assert {one.role for one in group.members} == {"hidden"}
    pruner, space = built(Inception())
    groups = concatenation.groups([one for one in space.units if structural(one)], pruner)
    assert sorted(len(group.members) for group in groups) == [4, 4]


def test_what_is_in_a_row_is_no_group():
    pruner, space = built(CifarResNet())
    assert concatenation.groups([one for one in space.units if structural(one)], pruner) == []


def test_every_level_of_every_member_has_its_part_of_a_cut_of_all():
    pruner, space = built(padded_resnet())
    (group,) = concatenation.groups([one for one in space.units if structural(one)], pruner)
    group.cut_all(lambda counts, drop: [])  # nothing is left of the layers
    names = {unit: frozenset(["a", "b"] if number else ["a"]) for number, unit in enumerate(sorted(group.units))}
    weights = {(one.unit, level): float(level) for one in group.members for level in range(1, one.depth + 1)}
    gone = group.gone({"a": 2.0, "b": 1.0}, names, {}, weights)
    assert set(gone) == set(weights)
    for levels in group.cuts:
        assert sum(sum(gone[key].values()) for key in levels) <= 3.0 + 1e-9
