"""Cut and masked are compared on everything that a model returns."""

from __future__ import annotations

import torch

from hwprune.pruning import cut_check
from tests.pruning.test_file_check import Two, X


def test_cuts_are_compared_on_every_output():
    first, second = Two().eval(), Two().eval()
    assert cut_check.relative_difference(first, second, X) == 0.0
    with torch.no_grad():
        second.two.weight.mul_(1.5)
    assert cut_check.relative_difference(second, first, X) > 0.1
    with torch.no_grad():
        second.two.weight[0, 0] = float("nan")
    assert not cut_check.relative_difference(second, first, X) <= 1e9
