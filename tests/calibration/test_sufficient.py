"""Inputs of the train split where calibration has too few."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hwprune.calibration import sufficient
from hwprune.pruning.pruner import Pruner
from hwprune.workload import batches
from hwprune.workload.workload import Workload


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


def split(count, seed, size=8):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 6, generator=draw), torch.randint(3, (count,), generator=draw)
    return list(zip(x.split(size), y.split(size), strict=True))


def workload(train, calibration=None, width=40):
    data = split(16, 0)
    return Workload(
        name="mlp", model=Mlp(width).eval(), example_inputs=(torch.zeros(2, 6),), calibration=calibration or data,
        validation=split(16, 1), train=train, metric="top1",
    )  # fmt: skip


def inputs(loader):
    return torch.cat([x[0] if isinstance(x, tuple) else x for x, _ in loader])


def test_a_wide_layer_gets_as_many_as_it_wants_and_none_twice():
    calibration, other = split(16, 0), split(200, 3)
    pruner = Pruner(workload(calibration + other))
    assert sufficient.wanted_examples(pruner.layers, pruner.graph.module) == 52  # 1.3 x 40
    assert (batches.example_count(pruner.workload), pruner.added) == (52, 36)
    found = inputs(pruner.workload.calibration)
    assert len(found.unique(dim=0)) == 52
    assert torch.equal(found[:16], inputs(calibration))
    known = {tuple(row) for row in inputs(other).tolist()}
    assert all(tuple(row) in known for row in found[16:].tolist())
    again = Pruner(workload(calibration + other)).workload
    assert torch.equal(inputs(again.calibration), found)


def test_targets_stay_with_their_inputs():
    data = split(200, 3)
    pruner = Pruner(workload(data))
    label = {tuple(row): int(y) for xs, ys in data for row, y in zip(xs.tolist(), ys, strict=True)}
    pairs = [
        (tuple(row), int(y))
        for (xs,), ys in pruner.workload.batches("calibration")
        for row, y in zip(xs.tolist(), ys, strict=True)
    ]
    assert all(label[row] == y for row, y in pairs[16:])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_loader_over_a_list_of_examples(shuffle):
    examples = [(x[0], y[0]) for x, y in split(200, 3, size=1)]
    first, second = (
        Pruner(workload(torch.utils.data.DataLoader(examples, batch_size=16, shuffle=shuffle))).workload for _ in range(2)
    )
    assert batches.example_count(first) == 52
    assert torch.equal(inputs(first.calibration), inputs(second.calibration))


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return torch.randn(6), index % 3


def test_what_is_augmented_at_random_is_not_used():
    pruner = Pruner(workload(torch.utils.data.DataLoader(Augmented(), batch_size=8)))
    assert (batches.example_count(pruner.workload), pruner.added) == (16, 0)


class Broken(Augmented):
    def __getitem__(self, index):
        raise OSError("the disk is gone")


def test_data_that_can_not_be_read_are_left_to_whoever_needs_them():
    broken = torch.utils.data.DataLoader(Broken(), batch_size=8)
    assert Pruner(workload(broken)).added == 0
    assert Pruner(workload(split(200, 3), calibration=broken)).added == 0


def test_without_labels_where_calibration_has_them_nothing_is_added():
    assert Pruner(workload([(x, None) for x, _ in split(200, 3)])).added == 0


def test_enough_examples_stay_as_they_are():
    mine = workload(split(200, 3), calibration=split(60, 5))
    assert Pruner(mine).workload is mine


def test_positions_count_and_convolutions_want_none():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 64), nn.Linear(64, 8)

        def forward(self, x):
            return self.two(torch.relu(self.one(x))).mean(dim=1)

    def made(length):
        x = torch.randn(4, length, 8)
        w = replace(workload(None), model=Tokens().eval(), example_inputs=(x[:1],), calibration=[(x, torch.zeros(4).long())])
        pruner = Pruner(replace(w, validation=w.calibration))
        return sufficient.wanted_examples(pruner.layers, pruner.graph.module)

    assert made(4) == 83  # 1.3 x 64
    assert made(256) == 16  # 64 positions an input are enough: 64 x 64 / 256

    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 64, 3), nn.Linear(64, 4)

        def forward(self, x):
            return self.head(self.conv(x).mean(dim=(2, 3)))

    x = torch.randn(2, 3, 8, 8)
    data = [(x, torch.zeros(2).long())]
    w = replace(workload(None), model=Convolution().eval(), example_inputs=(x[:1],), calibration=data, validation=data)
    pruner = Pruner(w)
    assert sufficient.wanted_examples(pruner.layers, pruner.graph.module) == 0


def test_options_are_solved_from_fewer_than_repairs_are_fitted_to(monkeypatch):
    """Their statistics take a pass with gradients, and gain next to nothing from more; the user's own are all used."""
    monkeypatch.setattr(sufficient, "ENOUGH_FOR_OPTIONS", 24)
    pruner = Pruner(workload(split(200, 3)))
    assert pruner.statistics(["gram"]).examples == 24
    assert batches.example_count(pruner.workload) == 52
    monkeypatch.setattr(sufficient, "ENOUGH_FOR_OPTIONS", 8)
    assert Pruner(workload(split(200, 3))).statistics(["gram"]).examples == 16
