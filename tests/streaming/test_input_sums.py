"""Sums of what a layer is given are the statistics that a list of all rows would give."""

from __future__ import annotations

import copy

import pytest
import torch

from hwprune.errors import WorkloadError
from hwprune.layers.statistics import LayerStatistics
from hwprune.streaming.block_layers import linears
from hwprune.streaming.input_sums import BlockInputs, InputSums, cross_of, statistics_of
from tests.streaming.helpers import first_block, seen_by


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_sums_are_those_of_all_rows(shift):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + shift
    first = InputSums(x[:10].mean(0))
    second = InputSums(first.shift)
    first.add(x[:10])
    second.add(x[10:25].view(3, 5, 6))
    second.add(x[25:])
    found, wanted = statistics_of([first, second], "layer"), LayerStatistics.of_inputs(x)
    for name in ("covariance", "mean", "input_square", "channel_mean", "channel_variance", "channel_abs", "channel_zero"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-3, atol=1e-4, msg=name)
    assert found.rows == 40


def test_without_products_there_are_squares_alone():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 3
    found = []
    for products in (True, False):
        sums = InputSums(x.mean(0), products)
        sums.add(x)
        found.append(statistics_of([sums, InputSums(x.mean(0), products)], "layer"))
    assert found[1].covariance is None and found[0].covariance is not None
    for name in ("mean", "input_square", "channel_variance", "channel_abs", "channel_zero"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name))


def test_products_with_the_dense_inputs(tmp_path, folder, words):
    """Of the windows that were asked for, also where the cut layer has fewer columns."""
    block, states = first_block(folder, words, tmp_path)
    dense = copy.deepcopy(block)
    with torch.no_grad():
        block.layer.mlp.up_proj.weight.mul_(0.5)
    (down,) = [linear for linear in linears(block) if "down_proj" in linear.name]
    inputs = BlockInputs(block, states, [0, 2], [5], dense, states)
    for sums, which in zip(inputs.sums(down), ([0, 2], [5]), strict=True):
        x, y = (seen_by(one, states, "mlp.down_proj", which).double() for one in (dense, block))
        torch.testing.assert_close(cross_of([sums]), x.T @ y / len(x), rtol=1e-4, atol=1e-5)
        assert sums.rows == 16 * len(which)
    assert BlockInputs(block, states, [0], [1]).beside is False


def test_inputs_that_are_no_numbers_are_told():
    sums = InputSums(torch.zeros(3))
    sums.add(torch.tensor([[1.0, float("inf"), 2.0]]))
    with pytest.raises(WorkloadError, match="the input of mlp.up_proj holds NaN or infinity"):
        statistics_of([sums], "mlp.up_proj")
