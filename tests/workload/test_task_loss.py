"""The loss where the user gave none, against formulas of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.calibration.collect import collect_statistics
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.workload.task_loss import task_loss

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=DRAW)


class Shaped(nn.Module):
    """A linear layer whose output has any shape."""

    def __init__(self, *shape, last=None):
        super().__init__()
        self.linear, self.shape, self.last = nn.Linear(6, int(np.prod(shape or (1,)))), shape, last or nn.Identity()

    def forward(self, x):
        return self.last(self.linear(x).reshape(len(x), *self.shape))


def made(model, targets, **changes):
    batches = [(X[:15], targets[:15]), (X[15:], targets[15:])]
    fields = {"name": "w", "model": model.eval(), "example_inputs": (X[:1],), "calibration": batches, "validation": batches}
    return hwprune.Workload(**{**fields, **changes})


def value(workload, targets):
    return float(task_loss(workload, workload.model)(workload.model(X).detach(), targets))


@pytest.mark.parametrize("shape", [(1,), ()])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("kind", [torch.long, torch.float32])
def test_one_column_has_the_loss_of_a_coin(shape, sigmoid, kind):
    torch.manual_seed(0)
    model = Shaped(*shape, last=nn.Sigmoid() if sigmoid else None)
    targets = (X[:, 0] > 0.2).to(kind)
    z = model.linear(X).detach().double().numpy()[:, 0]
    p = 1 / (1 + np.exp(-z))
    y = targets.numpy().astype(float)
    wanted = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert value(made(model, targets), targets) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((5,), 1), ((4, 5), 2), ((5, 4), 1), ((3, 4, 5), 3)])
@pytest.mark.parametrize("softmax", [False, True])
def test_cross_entropy_along_the_dim_of_the_classes(shape, axis, softmax):
    torch.manual_seed(0)
    model = Shaped(*shape, last=nn.Softmax(axis) if softmax else None)
    logits = model.linear(X).detach().reshape(40, *shape)
    targets = torch.randint(0, 5, (40, *shape[: axis - 1], *shape[axis:]), generator=DRAW)
    p = np.moveaxis(logits.double().softmax(axis).numpy(), axis, -1).reshape(-1, 5)
    wanted = -np.log(p[np.arange(len(p)), targets.numpy().reshape(-1)]).mean()
    assert value(made(model, targets), targets) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("targets", [torch.arange(40) % 5, (torch.arange(40) % 5)[:, None], (torch.arange(40) % 5).float(),
                                     nn.functional.one_hot(torch.arange(40) % 5, 5)])  # fmt: skip
def test_labels_in_other_forms(targets):
    torch.manual_seed(0)
    model = Shaped(5)
    wanted = float(nn.functional.cross_entropy(model(X).detach(), torch.arange(40) % 5))
    assert value(made(model, targets), targets) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_numbers_have_their_squared_error(shape):
    torch.manual_seed(0)
    model, targets = Shaped(1), 3 + torch.randn(shape, generator=DRAW)
    wanted = np.square(model(X).detach().numpy()[:, 0] - targets.numpy().reshape(-1)).mean()
    assert value(made(model, targets, metric="mse"), targets) == pytest.approx(wanted, rel=1e-5)


def test_soft_labels_keep_their_cross_entropy():
    torch.manual_seed(0)
    model, targets = Shaped(5), torch.randn(40, 5, generator=DRAW).softmax(1)
    wanted = float(nn.functional.cross_entropy(model(X).detach(), targets))
    own = lambda out, y: (out.argmax(1) == y.argmax(1)).float()  # noqa: E731
    assert value(made(model, targets, metric=own), targets) == pytest.approx(wanted, rel=1e-5)


def test_the_users_own_loss_is_left_alone():
    own = lambda out, y: out.sum()  # noqa: E731
    workload = made(Shaped(1), (X[:, 0] > 0).long(), loss=own)
    assert task_loss(workload, workload.model) is own


def test_gradients_of_a_binary_classifier_are_not_zero():
    """A cross entropy over one class is zero for any model, and so were all gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    targets = (X[:, 0] > 0).long()
    workload = made(net, targets)
    found = collect_statistics(Pruner(workload).graph, workload, {"fisher"}, labels="data")
    assert len(found.layers) == 2 and all(float(s.fisher.abs().max()) > 0 for s in found.layers.values())


def test_fine_tuning_of_a_binary_classifier_learns(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    targets = (X[:, 0] > 0).long()
    workload = made(net, targets)
    workload = dataclasses.replace(workload, train=list(workload.validation) * 20)
    pruner = Pruner(workload)
    recovered = hwprune.recover(pruner, pruner.prune(Recipe(())), "finetune:3")
    assert recovered.outcome.before.value < 0.9 < recovered.outcome.after.value
