"""Compensations on whole models, and candidates stitched together from options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.compensation import COMPENSATIONS, Context, canonical, lockstep, parse
from hwprune.errors import CandidateFailure, UnknownNameError, UsageError
from hwprune.onnx_files import recipe_files
from hwprune.pruning.pruner import Pruner
from tests.conftest import TinyNet, randomise, tiny_workload
from tests.test_calibrate import workload_of


def images(n=64, channels=3, size=12, seed=0):
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    return F.avg_pool2d(torch.randn(n, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed)), 3, 1) * 3


class Plain(nn.Module):
    """No batch norm; strides, groups, a depthwise layer, and two inputs of one layer (a concat)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.join = nn.Conv2d(32, 16, 1)
        self.groups = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=4)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], dim=1)))
        return self.fc(torch.relu(self.groups(torch.relu(self.join(x)))).mean(dim=(2, 3)))


@pytest.fixture
def plain():
    return workload_of(randomise(Plain()), (images(48),), batch=24)  # all positions fit into the rows of the statistics


def loss(workload, module):
    """Mean squared change of the outputs, as a share of their variance."""
    x = torch.cat([inputs[0] for inputs, _ in workload.calibration])
    with torch.no_grad():
        y, z = workload.model(x), module(x)
    return float((y - z).square().mean() / y.var(dim=0).mean())


def test_names_are_joined_by_plus():
    assert [one.name for one in parse("batchnorm+obs")] == ["obs", "batchnorm"]
    assert canonical("batchnorm+sequential+obs") == "obs+sequential+batchnorm"
    assert parse("none") == []
    with pytest.raises(UnknownNameError, match=r"joined by \+"):
        parse("obs+magic")
    with pytest.raises(UsageError, match="exclude each other"):
        parse("obs+lstsq")


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


def test_composition_cut_then_two_four_then_sequential(plain, tmp_path):
    """The mask holds through every later step, on disk too, and stored decisions give the same candidate."""
    pruner = Pruner(plain)
    choices = (
        hwprune.UnitChoice("a.weight:0", "channel", 0.5, "obs"),
        hwprune.UnitChoice("join.weight", "2:4", 0.5, "sparsegpt"),
        hwprune.UnitChoice("fc.weight", "unstructured", 0.7, "wanda"),
        hwprune.UnitChoice("groups.weight", "2:4", 0.5, "obs"),
    )
    for steps in ("none", "obs", "lstsq", "obs+sequential", "obs+meanvar"):
        candidate = pruner.prune(hwprune.Recipe(choices, steps))
        state = candidate.module.state_dict()
        assert state["join.weight"].shape == (16, 24, 1, 1)
        assert ((state["join.weight"] != 0).reshape(16, 6, 4).sum(dim=2) <= 2).all()
        assert ((state["groups.weight"] != 0).reshape(24, 4, 9).sum(dim=1) <= 2).all()
        assert int((state["fc.weight"] == 0).sum()) == round(0.7 * 240)
    folder = tmp_path / "out"
    candidate = pruner.prune(hwprune.Recipe(choices, "obs+sequential"))
    candidate.export(folder)
    stored = recipe_files.read_recipe(folder / "recipe.json")
    again = Pruner(plain).prune(stored.recipe, stored.keeps, stored.masks, stored.orders)
    for name, tensor in candidate.module.state_dict().items():
        assert torch.allclose(tensor, again.module.state_dict()[name], rtol=1e-3, atol=1e-3), name


def test_permuted_two_four_computes_the_same_before_the_mask_and_keeps_more(tmp_path):
    workload = tiny_workload()
    pruner = Pruner(workload)
    kept = {}
    for pattern in ("2:4", "2:4:permuted"):
        recipe = hwprune.Recipe(
            (
                hwprune.UnitChoice("conv1.weight:0", "channel", 0.25, "l1"),
                hwprune.UnitChoice("conv2.weight", pattern, 0.5, "l1"),
            )
        )
        candidate = pruner.prune(recipe)
        weight = candidate.module.state_dict()["conv2.weight"]
        assert ((weight != 0).reshape(8, 12, 4, 3, 3).sum(dim=2) == 2).all()
        kept[pattern] = float(weight.abs().sum())
    assert kept["2:4:permuted"] > kept["2:4"]
    assert sorted(candidate.orders["conv1.weight:0"].tolist()) == list(range(48))
    # The order is carried to what makes the axis: without the mask, the module is the cut model.
    orders = candidate.orders
    plain = pruner.graph.cut(candidate.keeps)
    other = pruner.graph.cut(candidate.keeps)
    pruner.graph.reorder(other, candidate.keeps, orders)
    x = torch.randn(5, 1, 8, 8)
    assert not torch.equal(plain.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])
    assert torch.allclose(plain(x), other(x), atol=1e-5)
    folder = tmp_path / "out"
    candidate.export(folder)
    stored = recipe_files.read_recipe(folder / "recipe.json")
    assert stored.orders["conv1.weight:0"].tolist() == orders["conv1.weight:0"].tolist()
    again = pruner.prune(stored.recipe, stored.keeps, stored.masks, stored.orders)
    assert torch.allclose(again.module(x), candidate.module(x), atol=1e-5)
    for steps in ("obs", "obs+sequential"):
        repaired = pruner.prune(hwprune.Recipe(recipe.choices, steps))
        weight = repaired.module.state_dict()["conv2.weight"]
        assert ((weight != 0).reshape(8, 12, 4, 3, 3).sum(dim=2) <= 2).all()
        assert torch.isfinite(repaired.module(x)).all()


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


def test_batch_norm_reestimation_against_its_definition():
    """The dense statistics, moved by the change of mean and scaled by the ratio of variances of the layer's outputs on the data."""
    workload = tiny_workload()
    pruner = Pruner(workload)
    candidate = pruner.prune(hwprune.Recipe((hwprune.UnitChoice("conv1.weight:0", "channel", 0.5, "l1"),), "batchnorm"))
    keep = candidate.keeps["conv1.weight:0"]
    model = workload.model
    batches = [inputs for inputs, _ in workload.calibration]
    own, dense = [], []
    for x in batches:
        hidden = torch.relu(model.bn1(model.conv1(torch.relu(model.bn(model.stem(x))))))
        dense.append(model.conv2(hidden).detach())
        own.append(F.conv2d(hidden[:, keep], model.conv2.weight[:, keep], padding=1).detach())

    def moments(ys):
        y = torch.cat(ys)
        return y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)

    (mean, variance), (dense_mean, dense_variance) = moments(own), moments(dense)
    state = candidate.module.state_dict()
    assert torch.allclose(state["bn2.running_mean"], model.bn2.running_mean + mean - dense_mean, atol=1e-4)
    assert torch.allclose(state["bn2.running_var"], model.bn2.running_var * variance / dense_variance, rtol=1e-3)
    assert torch.equal(state["bn1.running_mean"], model.bn1.running_mean[keep])  # nothing changed before it


def test_reestimation_that_is_not_finite_is_a_failed_candidate():
    module = Pruner(tiny_workload()).graph.cut({})
    context = Context(module, lambda: [(torch.full((4, 1, 8, 8), float("inf")),)])
    with pytest.raises(CandidateFailure, match="not finite"):
        COMPENSATIONS["batchnorm"].apply(module, context)


def test_examples_are_limited_by_memory(plain, monkeypatch):
    pruner = Pruner(plain)
    context = Context(pruner.graph.module, pruner._calibration, pruner.graph.matrices)
    assert sum(len(inputs[0]) for inputs in lockstep.choose_batches(context)) == 48
    per_example = 2 * 4 * 3 * 12 * 12
    few = lockstep.choose_batches(context, limit=per_example)
    assert sum(len(inputs[0]) for inputs in few) == 24  # at least the first batch
    monkeypatch.setattr(lockstep, "BATCH", 8)
    some = lockstep.choose_batches(context, limit=16 * 2 * 64 * 12 * 12 * 4)
    assert 8 <= sum(len(inputs[0]) for inputs in some) < 48


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


def test_branches_are_ranked_by_influence():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(6, 6)
            self.small, self.large = nn.Linear(6, 6), nn.Linear(6, 6)
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.small(x)
            x = x + self.large(x)
            return self.fc(x)

    model = randomise(Two())
    with torch.no_grad():
        model.small.weight *= 0.01
        model.small.bias *= 0.01
    pruner = Pruner(workload_of(model, (torch.randn(40, 6),)))
    (choice,) = hwprune.uniform_recipe(pruner, "branch", 0.5, compensation="none").choices
    candidate = pruner.prune(hwprune.Recipe((choice,), "none"))
    assert "small.weight" not in candidate.module.state_dict()
    with pytest.raises(UsageError, match="drops 0 of 2"):
        hwprune.uniform_recipe(pruner, "branch", 0.1)


def test_global_scope_takes_one_threshold():
    workload = tiny_workload()
    pruner = Pruner(workload)
    recipe = hwprune.uniform_recipe(pruner, "unstructured", 0.6, "lamp", "none", scope="global")
    candidate = pruner.prune(recipe)
    matrices = [pruner.units[name].weights[name] for name in ("stem.weight", "conv1.weight", "conv2.weight", "fc.weight")]
    total = sum(w.numel() for w in matrices)
    zeros = sum(int((~mask).sum()) for mask in candidate.masks.values())
    assert zeros == pytest.approx(0.6 * total, abs=len(matrices))
    scores = {name: hwprune.criteria.get("lamp").scores(pruner.units[name].weights[name]) for name in candidate.masks}
    highest_gone = max(float(scores[name][~mask].max()) for name, mask in candidate.masks.items() if not mask.all())
    lowest_kept = min(float(scores[name][mask].min()) for name, mask in candidate.masks.items())
    assert highest_gone <= lowest_kept
    with pytest.raises(UsageError, match="scope global"):
        hwprune.uniform_recipe(pruner, "2:4", 0.5, "lamp", scope="global")


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
