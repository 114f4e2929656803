"""One step of the optimizer."""

from __future__ import annotations

import copy
import dataclasses

import torch

from hwprune.recovery.loop.run import train
from hwprune.recovery.plan import Plan
from tests.recovery.conftest import batches
from tests.recovery.helpers import cut


def test_two_batches_accumulated_are_one_batch_of_twice_the_size(stripes):
    """Without dropout and batch statistics; gradients are averaged, not added."""
    plain = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*[iter(batches(128, 1, 16))] * 2, strict=True)]
    halves = [half for x, y in plain for half in zip(x.split(16), y.split(16), strict=True)]
    found = []
    for data, count in ((plain, 1), (halves, 2)):
        workload = dataclasses.replace(stripes.workload, train=_InOrder(data))
        module = copy.deepcopy(cut(stripes).module)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.dropout.default:
                node.args = (node.args[0], 0.0, node.args[2])
        module.recompile()
        train(module, workload, Plan("finetune", 1, accumulate=count, norms="frozen"), keep_best=False)
        found.append(module.state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


class _InOrder:
    """A loader that is no list, so it is not shuffled."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(self.data)
