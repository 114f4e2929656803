"""One rule for how close outputs are."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.workload import closeness


@pytest.mark.parametrize(
    ("got", "wanted", "value"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-7, 0.0], [0.0, 0.0], 1e-5),  # rounding around zero
        ([3e-9, 1e-9], [1e-9, 2e-9], 2e-7),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, 1.0], [math.nan, 1.0], math.inf),
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([-math.inf, 1.0], [-math.inf, 1.0], 0.0),  # what a mask leaves out
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
    ],
)
def test_differences_by_hand(got, wanted, value):
    assert closeness.difference(torch.tensor(got), torch.tensor(wanted)) == pytest.approx(value, rel=1e-4)


def test_shapes_and_numbers_of_outputs():
    one, two = torch.ones(3), torch.ones(3, 1)
    assert closeness.difference(one, two) == math.inf
    assert closeness.largest([one], [one, one]) == math.inf
    assert closeness.largest([one, 2 * one], [one, one]) == 1.0
    assert closeness.largest([], []) == closeness.difference(torch.ones(0), torch.ones(0)) == 0.0
    assert closeness.difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == pytest.approx(1 / 3)
    assert closeness.difference(torch.tensor([True]), torch.tensor([False])) > 1


def test_the_lowest_precision_decides():
    half, single, brain = torch.ones(1).half(), torch.ones(1), torch.ones(1).bfloat16()
    assert closeness.precision([single]) == closeness.precision([]) == closeness.precision([torch.ones(1).double()]) == "fp32"
    assert closeness.precision([single, half]) == "fp16" and closeness.precision([half, brain, single]) == "bf16"
