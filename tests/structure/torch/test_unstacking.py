"""Stacked recurrent layers, taken apart: the same numbers, in eval and in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune


class Reader(nn.Module):
    def __init__(self, layer, given=False):
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x):
        if not self.given:
            return self.layer(x)
        directions = 2 if self.layer.bidirectional else 1
        start = x.new_full((self.layer.num_layers * directions, x.shape[0], self.layer.hidden_size), 0.3)
        return self.layer(x, (start, start * 2) if isinstance(self.layer, nn.LSTM) else start)


def flat(outputs):
    first, states = outputs
    return torch.cat([first.flatten(), *(s.flatten() for s in (states if isinstance(states, tuple) else (states,)))])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@torch.no_grad()
def test_layers_one_by_one_give_the_same(kind, both, given):
    torch.manual_seed(0)
    model = Reader(kind(6, 5, 3, batch_first=True, bidirectional=both), given).eval()
    graph = hwprune.trace(model, (torch.randn(2, 4, 6),))
    assert sum(getattr(n.target, "__name__", "").endswith(".input") for n in graph.module.graph.nodes) == 3
    x = torch.randn(3, 4, 6)
    assert torch.allclose(flat(graph.module(x)), flat(model(x)), atol=1e-6)


@torch.no_grad()
def test_dropout_between_layers_follows_train():
    model = Reader(nn.LSTM(6, 32, 2, batch_first=True, dropout=0.5)).eval()
    x = torch.randn(2, 4, 6)
    module = hwprune.trace(model, (x,)).module
    assert torch.equal(module(x)[0], module(x)[0])
    module.train()
    assert not torch.equal(module(x)[0], module(x)[0])


def test_gradients_reach_every_layer():
    model = Reader(nn.GRU(6, 5, 2, batch_first=True, bidirectional=True))
    module = hwprune.trace(model, (torch.randn(2, 4, 6),)).module
    module.train()
    module(torch.randn(2, 4, 6))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@torch.no_grad()
def test_a_start_that_is_not_zero_is_not_exact():
    graph = hwprune.trace(Reader(nn.LSTM(6, 5, batch_first=True), given=True), (torch.randn(2, 4, 6),))
    axis = next(axis for axis in graph.axes if ("layer.weight_hh_l0", 1) in axis.members)
    assert axis.frozen or "does not start from zero" in str(axis.inexact_reason)
