"""Every layer repaired with the inputs that it really gets."""

from __future__ import annotations

import torch
from torch import nn

import hwprune
from hwprune.compensation import COMPENSATIONS, Context
from hwprune.pruning.pruner import Pruner
from tests.calibration.test_collect import workload_of
from tests.compensation.helpers import images
from tests.conftest import TinyNet, randomise, tiny_workload


def loss(workload, module):
    """Mean squared change of the outputs, as a share of their variance."""
    x = torch.cat([inputs[0] for inputs, _ in workload.calibration])
    with torch.no_grad():
        y, z = workload.model(x), module(x)
    return float((y - z).square().mean() / y.var(dim=0).mean())


def test_every_step_makes_the_outputs_more_like_the_dense_ones(plain):
    pruner = Pruner(plain)
    found = {}
    for steps in ("none", "bias", "meanvar", "obs", "obs+bias", "obs+sequential", "sequential"):
        candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, "l1", steps))
        pruner.check_cut(candidate)
        found[steps] = loss(plain, candidate.module)
    assert found["bias"] < found["none"]
    assert found["obs"] < found["none"]
    assert found["obs+bias"] < min(found["obs"], found["bias"])
    assert found["obs+sequential"] < found["obs"]
    assert found["sequential"] < found["bias"]
    assert found["meanvar"] < found["none"]


def test_weights_of_a_layer_fed_by_two_axes_are_solved_for_both_together(plain):
    """Against least squares on the layer's own inputs."""
    pruner = Pruner(plain)
    recipe = hwprune.Recipe(
        (hwprune.UnitChoice("a.weight:0", "channel", 0.5, "l1"), hwprune.UnitChoice("b.weight:0", "channel", 0.25, "l1")), "obs"
    )
    candidate = pruner.prune(recipe)
    kept = torch.cat([candidate.keeps["a.weight:0"], candidate.keeps["b.weight:0"]])
    x = torch.cat([inputs[0] for inputs, _ in plain.calibration])
    model = plain.model
    with torch.no_grad():
        joined = torch.relu(model.depthwise(torch.cat([torch.relu(model.a(x)), torch.relu(model.b(x))], dim=1)))
        columns = joined.movedim(1, -1).reshape(-1, 32).double()
        target = columns @ model.join.weight.reshape(16, 32).double().T
        covariance = torch.cov(columns.T, correction=0)
        ridge = 0.01 * covariance.diagonal().mean()
        w = model.join.weight.reshape(16, 32).double()
        h = covariance + ridge * torch.eye(32)
        expected = torch.linalg.solve(h[kept][:, kept], (w @ h)[:, kept].T).T
        shift = target.mean(dim=0) - columns[:, kept].mean(dim=0) @ expected.T
    state = candidate.module.state_dict()
    assert torch.allclose(state["join.weight"].reshape(16, -1).double(), expected, atol=1e-4)
    assert torch.allclose(state["join.bias"].double(), model.join.bias.double() + shift, atol=1e-3)


def test_groups_and_depthwise_channels_are_cut_with_their_repairs(plain):
    pruner = Pruner(plain)
    names = {unit.name: unit.role for unit in pruner.units.values() if unit.axis is not None}
    assert names["join.weight:0/0"] == "group" or "group" in names.values()
    group = next(name for name, role in names.items() if role == "group")
    for steps in ("none", "obs", "obs+sequential", "meanvar"):
        candidate = pruner.prune(hwprune.Recipe((hwprune.UnitChoice(group, "group", 0.5, "obs"),), steps))
        pruner.check_cut(candidate)
        assert loss(plain, candidate.module) < 10


def test_a_model_that_was_not_pruned_is_not_changed():
    """Re-estimation is relative: other data than the training's do not move a dense model."""
    workload = tiny_workload()
    pruner = Pruner(workload)
    for name in ("batchnorm", "sequential", "bias", "meanvar"):
        module = pruner.graph.cut({})
        COMPENSATIONS[name].apply(module, Context(pruner.graph.module, pruner._calibration, pruner.graph.matrices))
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                assert torch.allclose(tensor, pruner.graph.module.state_dict()[key], rtol=1e-4, atol=1e-5), (name, key)


def test_axes_of_one_and_channels_that_never_fire():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 2, 1)
            self.b = nn.Conv2d(2, 1, 1)
            self.c = nn.Conv2d(1, 4, 1)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x))))).mean(dim=(2, 3))

    model = randomise(Narrow())
    with torch.no_grad():
        model.a.bias[0] = -1e4  # dead behind its ReLU
    pruner = Pruner(workload_of(model, (images(),)))
    recipe = hwprune.uniform_recipe(pruner, "channel", 0.5, "obs", "obs+sequential")
    assert [choice.unit for choice in recipe.choices] == ["a.weight:0"]  # one channel can't be halved
    candidate = pruner.prune(recipe)
    assert candidate.keeps["a.weight:0"].tolist() == [False, True]
    x = images()
    assert torch.allclose(candidate.module(x), model(x), atol=1e-3)  # the dead one was free


def test_transposed_weights_and_shared_layers():
    """GPT-2's x @ weight + bias, and a layer used twice, whose weights may change but whose bias may not."""

    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.b1 = nn.Parameter(torch.zeros(6, 20)), nn.Parameter(torch.zeros(20))
            self.w2, self.b2 = nn.Parameter(torch.zeros(20, 6)), nn.Parameter(torch.zeros(6))
            self.twice = nn.Linear(6, 6)

        def forward(self, x):
            x = torch.addmm(self.b2, torch.relu(torch.addmm(self.b1, x, self.w1)), self.w2)
            return self.twice(torch.relu(self.twice(x)))

    workload = workload_of(randomise(Products()), (torch.randn(200, 6, generator=torch.Generator().manual_seed(0)),), batch=50)
    pruner = Pruner(workload)
    losses = [
        loss(workload, pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5, "obs", steps)).module)
        for steps in ("none", "obs", "obs+sequential")
    ]
    assert losses[0] > losses[1]
    assert losses[2] < losses[0]
    masked = pruner.prune(hwprune.Recipe((hwprune.UnitChoice("w2", "unstructured", 0.5, "sparsegpt"),), "obs"))
    assert int((masked.module.state_dict()["w2"] == 0).sum()) == 60


def test_random_networks_survive_every_method_and_compensation():
    workload = tiny_workload()
    pruner = Pruner(workload)
    x = workload.calibration[0][0]
    for name in hwprune.criteria.CRITERIA:
        candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, name, "obs+batchnorm"))
        assert torch.isfinite(candidate.module(x)).all(), name
        assert candidate.module.state_dict()["conv2.weight"].shape == (8, 32, 3, 3)


def test_half_precision_models_keep_their_type():
    model = randomise(TinyNet()).to(torch.bfloat16)
    data = torch.randn(20, 1, 8, 8, dtype=torch.bfloat16)
    workload = hwprune.Workload("half", model, (data[:1],), [(data, None)], [(data, None)], metric="agreement")
    pruner = Pruner(workload)
    candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, "obs", "obs+sequential"))
    assert candidate.module.state_dict()["conv2.weight"].dtype == torch.bfloat16
    assert torch.isfinite(candidate.module(data)).all()
