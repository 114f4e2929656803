"""Models and data on which statistics and repairs once were wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.calibration.collect import collect_statistics
from hwprune.errors import UsageError, WorkloadError
from hwprune.layers.statistics import LayerStatistics
from hwprune.pruning.database import Database, calibration_fingerprint
from hwprune.pruning.pruner import Pruner
from hwprune.structure.torch.analyse import trace
from hwprune.workload import batches
from tests.conftest import randomise, tiny_workload
from tests.test_calibrate import workload_of
from tests.test_compensation import loss


def statistics_of(model, inputs, names=("gram",), **options):
    workload = workload_of(model, inputs, torch.zeros(len(inputs[0]), dtype=torch.int64), **options.pop("more", {}))
    return collect_statistics(trace(model, workload.example_inputs), workload, names, **options).layers


class ClassToken(nn.Module):
    """The query of one token only is used; keys and values of all."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids):
        x = self.embed(ids)
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.o(y[:, 0])


def test_layers_that_share_an_input_use_every_position_that_matters_to_one_of_them():
    model = randomise(ClassToken())
    ids = torch.randint(0, 50, (40, 6), generator=torch.Generator().manual_seed(0))
    x = model.embed(ids).detach().reshape(-1, 8)
    for name in ("q.weight", "k.weight", "v.weight"):
        assert torch.allclose(statistics_of(model, (ids,))[name].gram[0].float(), x.T @ x / len(x), atol=1e-5)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.h = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.pool, self.token = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, ids):
        h = torch.tanh(self.h(self.embed(ids)))
        return self.pool(h[:, 0]), self.token(h)


def test_positions_that_matter_to_any_output_count():
    model = randomise(TwoOutputs())
    ids = torch.randint(0, 50, (30, 5), generator=torch.Generator().manual_seed(0))
    workload = workload_of(model, (ids,), torch.zeros(30, dtype=torch.int64))
    found = collect_statistics(trace(model, (ids[:1],)), workload).layers["h.weight"]
    assert found.rows == 150


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.h, self.t = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.t(torch.relu(self.h(torch.relu(self.i(x)))).transpose(0, 1)).mean(dim=0)


def test_rows_of_sequence_first_layers_belong_together():
    model = randomise(SequenceFirst())
    workload = workload_of(model, (torch.randn(128, 7, 6, generator=torch.Generator().manual_seed(0)),), batch=64)
    pruner = Pruner(workload)
    choice = (hwprune.UnitChoice("h.weight", "unstructured", 0.3, "l1"),)
    found = {
        steps: loss(workload, pruner.prune(hwprune.Recipe(choice, steps)).module) for steps in ("none", "obs", "obs+sequential")
    }
    assert found["obs+sequential"] <= found["obs"] < found["none"]


class NormOverTokens(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.a, self.fc, self.norm = nn.Linear(6, 16), nn.Linear(16, 16, bias=False), nn.BatchNorm1d(tokens)

    def forward(self, x):
        return self.norm(self.fc(torch.relu(self.a(x)))).mean(dim=1)


@pytest.mark.parametrize("tokens", [10, 16])
def test_a_batch_norm_over_tokens_is_no_place_for_a_bias(tokens):
    model = randomise(NormOverTokens(tokens))
    workload = workload_of(model, (torch.randn(64, tokens, 6, generator=torch.Generator().manual_seed(0)),), batch=32)
    pruner = Pruner(workload)
    assert not pruner.layers["fc.weight"].movable
    recipe = hwprune.uniform_recipe(pruner, "neuron", 0.5, "obs", "obs")
    assert torch.equal(pruner.prune(recipe).module.state_dict()["norm.running_mean"], model.norm.running_mean)


class OnAConstant(nn.Module):
    """A small network on a table of positions, as in Swin v2: nothing of it depends on the examples."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("table", torch.randn(rows, 2))
        self.positions, self.fc = nn.Linear(2, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(x + self.positions(self.table).mean(dim=0))


@pytest.mark.parametrize("rows", [49, 32])
def test_layers_that_do_not_depend_on_the_examples_have_no_gradient_statistics(rows):
    found = statistics_of(randomise(OnAConstant(rows)), (torch.randn(32, 5),), ["fisher"], more={"batch": 32})
    assert "positions.weight" not in found
    assert "fc.weight" in found


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.fc(x.reshape(4, 6, 8).transpose(0, 1)))).mean(dim=0)


def fixed_workload(extra=0):
    model = randomise(FixedBatch())
    x = torch.randn(8 + extra, 6, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8 + extra, dtype=torch.int64)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
    return hwprune.Workload("fixed", model, (x[:4],), batches, batches[:2])


def test_gradients_of_models_with_a_fixed_batch():
    workload = fixed_workload()
    found = collect_statistics(trace(workload.model, workload.example_inputs), workload, ["fisher"], labels="data").layers[
        "fc.weight"
    ]
    squares = []
    for x, y in workload.calibration:
        for i in range(4):
            output = workload.model(x)[i : i + 1]
            (g,) = torch.autograd.grad(F.cross_entropy(output, y[i : i + 1]), [workload.model.fc.weight])
            squares.append(g.square())
    assert torch.allclose(found.fisher, torch.stack(squares).mean(dim=0), rtol=1e-3, atol=1e-6)


def test_a_batch_of_another_size_is_said_where_the_model_has_a_fixed_one():
    pruner = Pruner(fixed_workload(extra=2))
    with pytest.raises(WorkloadError, match="drop_last"):
        pruner.statistics(["gram"])
    with pytest.raises(WorkloadError, match="drop_last"):
        pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5, "l1", "sequential"))


def test_fisher_information_does_not_depend_on_the_batches():
    model = randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
    found = []
    for batch in (4, 16):
        workload = dataclasses.replace(workload_of(model, (x,), y, batch=batch), loss=weighted)
        found.append(collect_statistics(trace(model, (x[:1],)), workload, ["fisher"]).layers["0.weight"].fisher)
    assert torch.allclose(*found, rtol=1e-4)


def test_examples_are_counted_where_a_sampler_draws_them():
    data = torch.utils.data.TensorDataset(torch.randn(400, 3, 12, 12), torch.zeros(400, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(data, batch_size=8, sampler=torch.utils.data.SubsetRandomSampler(range(64)))

    class Endless:
        def __iter__(self):
            return iter(list(loader))

    workload = dataclasses.replace(
        tiny_workload(), calibration=loader, example_inputs=(torch.randn(1, 3, 12, 12),), metric="top1"
    )
    assert batches.example_count(workload) == 64
    assert batches.example_count(dataclasses.replace(workload, calibration=Endless())) == 64


def test_a_large_mean_does_not_swallow_the_covariance():
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) + 3000
    for found in (
        LayerStatistics.of_inputs(x),
        statistics_of(randomise(nn.Sequential(nn.Linear(6, 3))), (x,), more={"batch": 1000})["0.weight"],
    ):
        values = torch.linalg.eigvalsh(found.hessian(centred=True)[0])
        assert float(values.min()) > 0.8
        assert float(values.max()) < 1.2
        assert torch.allclose(found.channel_variance, torch.ones(6), atol=0.1)


class TiedAndUntraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = torch.relu(self.a(x))
        if float(x.sum()) < -1:
            x = x + 1
        return self.b(x * 10)


def test_a_weight_of_two_modules_sees_the_inputs_of_both():
    model = randomise(TiedAndUntraceable())
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    pruner = Pruner(workload_of(model, (x,)))
    both = torch.cat([x, torch.relu(model.a(x)).detach() * 10])
    assert pruner.layers["a.weight"].bias is None
    assert torch.allclose(pruner.statistics(["gram"]).layers["a.weight"].mean[0], both.mean(dim=0), atol=1e-4)
    assert pruner.default_compensation() == "obs"


@pytest.mark.parametrize("batch", [1, 20])
def test_norms_that_have_not_converged_are_carried_over_all_the_same(batch):
    """Running statistics far from those of the batches, and batches of one."""
    workload = tiny_workload("top1")
    with torch.no_grad():
        for norm in (workload.model.bn, workload.model.bn1, workload.model.bn2):
            norm.running_mean.mul_(0.1)
            norm.running_var.mul_(0.3)
    data = torch.cat([inputs for inputs, _ in workload.validation])
    labels = torch.cat([targets for _, targets in workload.validation])
    workload = dataclasses.replace(workload, calibration=list(zip(data.split(batch), labels.split(batch), strict=True)))
    pruner = Pruner(workload)

    def change(steps):
        candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, "l1", steps))
        with torch.no_grad():
            y, z = workload.model(data), candidate.module(data)
        return float((y - z).square().mean() / y.var(dim=0).mean())

    assert change("batchnorm") < change("none")
    assert change("obs+sequential+batchnorm") == pytest.approx(change("obs+sequential"))


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.fc(self.embed(ids)))).mean(dim=1)


def test_a_head_tied_to_the_embedding_is_left_out_of_uniform_recipes():
    ids = torch.randint(0, 20, (16, 4), generator=torch.Generator().manual_seed(0))
    pruner = Pruner(workload_of(randomise(TiedHead()), (ids,)))
    for criterion in ("obs", "wanda", "taylor"):
        recipe = hwprune.uniform_recipe(pruner, "unstructured", 0.5, criterion)
        assert [choice.unit for choice in recipe.choices] == ["fc.weight"]
        pruner.prune(recipe)


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, ids):
        return self.fc(self.embed(ids)).mean(dim=1).argmax(dim=1)


def test_outputs_without_a_gradient():
    model = randomise(Answers())
    ids = torch.randint(0, 20, (16, 4))
    workload = hwprune.Workload("answers", model, (ids[:1],), [(ids, None)], [(ids, None)], metric="agreement")
    graph = trace(model, (ids[:1],))
    assert collect_statistics(graph, workload).layers["fc.weight"].rows == 64
    with pytest.raises(UsageError, match="has a gradient"):
        collect_statistics(graph, workload, ["fisher"])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x, scale):
        return self.b(torch.relu(self.a(x * scale)))


def test_inputs_without_a_batch_are_not_divided():
    model = randomise(Scaled())
    x, scale = torch.randn(100, 8), torch.ones(8)
    y = torch.zeros(100, dtype=torch.int64)
    workload = hwprune.Workload("scaled", model, (x[:2], scale), [((x, scale), y)], [((x, scale), y)])
    pruner = Pruner(workload)
    pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5, "obs", "obs+sequential"))


def test_n_of_m_with_another_sparsity_is_refused():
    pruner = Pruner(tiny_workload())
    with pytest.raises(UsageError, match="removes 0.5"):
        pruner.prune(hwprune.Recipe((hwprune.UnitChoice("conv2.weight", "2:4", 0.9, "l1"),)))


def test_the_database_is_keyed_by_loss_targets_and_what_the_model_computes(tmp_path):
    def folder(workload):
        pruner = Pruner(workload)
        return Database(tmp_path, workload, pruner.fingerprint, pruner.graph.module).folder

    workload = tiny_workload("top1")
    same = folder(workload)
    assert folder(tiny_workload("top1")) == same
    assert folder(dataclasses.replace(workload, loss=F.nll_loss)) != same
    relabelled = [(x, (y + 1) % 4) for x, y in workload.calibration]
    assert folder(dataclasses.replace(workload, calibration=relabelled)) != same
    nested = [[(x, {"y": y + i}) for x, y in workload.calibration] for i in (0, 1)]
    prints = {
        calibration_fingerprint(dataclasses.replace(workload, calibration=data, metric=lambda o, t: o[:, 0])) for data in nested
    }
    assert len(prints) == 2

    class Other(type(workload.model)):
        def forward(self, x):
            return super().forward(torch.cos(x))

    other = Other()
    other.load_state_dict(workload.model.state_dict())
    assert folder(dataclasses.replace(workload, model=other.eval())) != same


def test_shuffled_data_are_the_same_data():
    workload = tiny_workload("top1")
    data = torch.utils.data.TensorDataset(
        torch.cat([x for x, _ in workload.validation]), torch.cat([y for _, y in workload.validation])
    )
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    shuffled = dataclasses.replace(workload, calibration=loader)
    assert calibration_fingerprint(shuffled) == calibration_fingerprint(shuffled)
