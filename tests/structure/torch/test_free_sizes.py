"""A free number of tokens changes nothing of what is found and learned of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwprune.pruning.pruner import Pruner
from hwprune.structure.torch import capture
from hwprune.structure.torch.free_sizes import batch_symbols, has_tokens, symbols_of
from hwprune.workload.workload import Workload


class Encoder(nn.Module):
    """A small transformer over words, with positions and a mask."""

    def __init__(self, first=False):
        super().__init__()
        self.words, self.rows, self.first = nn.Embedding(30, 16), nn.Embedding(40, 16), first
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=not first)
        self.head = nn.Linear(16, 3)

    def forward(self, ids, mask):
        hidden = self.words(ids) + self.rows(torch.arange(ids.shape[1], device=ids.device))[None]
        if self.first:  # as PyTorch's own attention does: the sequence first
            hidden = self.block(hidden.transpose(0, 1), src_key_padding_mask=mask == 0).transpose(0, 1)
        else:
            hidden = self.block(hidden, src_key_padding_mask=mask == 0)
        weights = mask.unsqueeze(-1).float()
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def workload(first):
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 30, (24, 9)), torch.ones(24, 9, dtype=torch.int64)
    mask[::2, 6:] = 0
    data = [((ids, mask), torch.randint(0, 3, (24,)))]
    return Workload("texts", Encoder(first).eval(), (ids[:2], mask[:2]), data, data)


@pytest.mark.parametrize("first", [False, True])
def test_statistics_and_units_are_those_of_a_fixed_length(monkeypatch, first):
    found = []
    for free in (True, False):
        if not free:
            monkeypatch.setattr(capture, "has_tokens", lambda _: False)
        pruner = Pruner(workload(first))
        assert pruner.graph.module.meta["free_length"] is free
        layers = pruner.statistics(("gram", "fisher", "taylor_in")).layers
        free_axes = {(axis.role, axis.size) for axis in pruner.graph.axes if axis.frozen is None}
        found.append((layers, free_axes, [name for name, unit in pruner.units.items() if unit.matrix is not None]))
    (free, free_axes, free_matrices), (fixed, fixed_axes, fixed_matrices) = found
    assert free_axes == fixed_axes and free_matrices == fixed_matrices and set(free) == set(fixed)
    for name in fixed:
        for field in ("covariance", "mean", "fisher", "taylor_in"):
            wanted, got = getattr(fixed[name], field), getattr(free[name], field)
            assert (wanted is None) == (got is None), (name, field)
            if wanted is not None:
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6, msg=f"{name} {field}")
    assert all(layer.fisher is not None for layer in free.values())


def test_the_batch_is_told_from_the_tokens():
    given = workload(False)
    module = capture.capture(given.model, given.example_inputs)
    batches = batch_symbols(module)
    ids = next(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
    assert symbols_of(ids.shape[0]) <= batches and symbols_of(ids.shape[1]) and not symbols_of(ids.shape[1]) & batches
    assert symbols_of(7) == set()


def test_where_tokens_come_in():
    ids, mask = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)
    assert has_tokens([ids, mask]) and has_tokens([ids, ids.bool()]) and not has_tokens([mask])
    assert not has_tokens([ids, ids[:, :3]])  # two lengths
    assert not has_tokens([ids[:, :1]])  # torch.export takes 1 for a constant
