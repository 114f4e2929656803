"""Statistics against unfolding, autograd on single examples, and float64."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.calibration import gram, passes
from hwprune.calibration.collect import GRADIENT, INFLUENCE, collect_statistics
from hwprune.errors import UsageError, WorkloadError
from hwprune.layers import layer as layer_table
from hwprune.pruning.pruner import Pruner
from hwprune.structure.torch.analyse import trace
from tests.conftest import randomise, tiny_workload


class Geometries(nn.Module):
    """Stride, padding, dilation, groups, depthwise, one dim, a linear layer over positions, and one weight used twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2, bias=False)
        self.c = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.d = nn.Conv1d(8, 6, 2, stride=2)
        self.e = nn.Linear(6, 5)
        self.shared = nn.Linear(5, 5)

    def forward(self, x):
        x = F.relu(self.b(self.a(x)))
        x = self.c(x)
        x = self.d(x.flatten(2)).transpose(1, 2)
        x = self.shared(torch.tanh(self.shared(self.e(x))))
        return x.mean(dim=1)


def workload_of(model, inputs, targets=None, metric="top1", batch=4, **more):
    with torch.no_grad():
        targets = model(*inputs).argmax(dim=1) if targets is None else targets
    batches = [
        (tuple(x[i : i + batch] for x in inputs), None if metric == "agreement" else targets[i : i + batch])
        for i in range(0, len(inputs[0]), batch)
    ]
    return hwprune.Workload("w", model, tuple(x[:1] for x in inputs), batches, batches, metric=metric, **more)


@pytest.fixture
def geometries():
    model = randomise(Geometries())
    x = torch.randn(10, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return workload_of(model, (x,))


def unfolded(layer, x, groups):
    """(groups, rows, d) by `torch.nn.functional.unfold`, float64."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).double()
    if isinstance(layer, nn.Conv1d):
        x, kernel, stride, dilation, padding = (
            x[:, :, None],
            (1, *layer.kernel_size),
            (1, *layer.stride),
            (1, *layer.dilation),
            (0, *layer.padding),
        )
    else:
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
        padding = (1, 1) if layer.padding == "same" else layer.padding
    columns = F.unfold(x.double(), kernel, dilation, padding, stride)  # (batch, C k, positions)
    return columns.reshape(len(x), groups, -1, columns.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)


def layer_inputs(model, x):
    seen = {}
    handles = [
        layer.register_forward_hook(lambda m, i, o, n=name: seen.setdefault(n, []).append(i[0].detach()))
        for name, layer in model.named_modules()
        if hasattr(layer, "weight")
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def test_gram_matrices_in_every_geometry(geometries):
    """Everything fits the rows here, so the float32 sums must equal the float64 ones on all positions."""
    graph = trace(geometries.model, geometries.example_inputs)
    found = collect_statistics(graph, geometries)
    assert found.examples == 10
    assert set(found.layers) == {f"{name}.weight" for name in ("a", "b", "c", "d", "e", "shared")}
    x = torch.cat([inputs[0] for inputs, _ in geometries.calibration])
    for name, inputs in layer_inputs(geometries.model, x).items():
        layer = getattr(geometries.model, name)
        groups = getattr(layer, "groups", 1)
        columns = torch.cat([unfolded(layer, one, groups) for one in inputs], dim=1)
        expected = columns.mT @ columns / columns.shape[1]
        statistics = found.layers[f"{name}.weight"]
        assert statistics.rows == columns.shape[1]
        assert torch.allclose(statistics.mean.double(), columns.mean(dim=1), atol=1e-5)
        assert torch.allclose(statistics.gram, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())), name
        assert torch.allclose(statistics.input_square, statistics.gram.diagonal(dim1=1, dim2=2).float())
        channels = torch.cat(
            [
                i.movedim(1, -1).reshape(-1, i.shape[1])
                if i.ndim == 4 or isinstance(layer, nn.Conv1d)
                else i.reshape(-1, i.shape[-1])
                for i in inputs
            ]
        )
        assert torch.allclose(statistics.channel_mean, channels.mean(dim=0), atol=1e-5)
        assert torch.allclose(statistics.channel_variance, channels.var(dim=0, unbiased=False), rtol=1e-3, atol=1e-4)
        assert torch.allclose(statistics.channel_zero, (channels == 0).float().mean(dim=0), atol=1e-6)
        assert torch.allclose(statistics.channel_abs, channels.abs().mean(dim=0), atol=1e-5)


def test_several_passes_for_a_small_memory_limit_give_the_same(geometries):
    graph = trace(geometries.model, geometries.example_inputs)
    whole, split = collect_statistics(graph, geometries), collect_statistics(graph, geometries, memory=1)
    for name, statistics in whole.layers.items():
        assert torch.equal(statistics.gram, split.layers[name].gram)


def test_sampled_positions_are_close_to_all_of_them(geometries, monkeypatch):
    graph = trace(geometries.model, geometries.example_inputs)
    exact = collect_statistics(graph, geometries).layers["a.weight"].gram
    monkeypatch.setattr(gram, "MIN_ROWS", 200)
    monkeypatch.setattr(gram, "ROWS_PER_COLUMN", 1)
    sampled = collect_statistics(graph, geometries).layers["a.weight"]
    assert 190 <= sampled.rows <= 210
    assert 0.01 < float((sampled.gram - exact).norm() / exact.norm()) < 0.5
    again = collect_statistics(graph, geometries).layers["a.weight"]
    assert torch.equal(sampled.gram, again.gram)  # the positions are seeded


def test_gradients_against_autograd_on_single_examples(geometries):
    model = geometries.model
    found = collect_statistics(trace(model, geometries.example_inputs), geometries, ["fisher"], labels="data")
    sums = {}
    for inputs, targets in geometries.calibration:
        for i in range(len(targets)):
            model.zero_grad()
            F.cross_entropy(model(inputs[0][i : i + 1]), targets[i : i + 1]).backward()
            for name, parameter in model.named_parameters():
                if name.endswith("weight"):
                    sums.setdefault(name, []).append(parameter.grad.clone())
    model.zero_grad()
    for name, gradients in sums.items():
        g = torch.stack(gradients)
        w = dict(model.named_parameters())[name].detach()
        statistics = found.layers[name]
        scale = float(g.abs().max())
        assert torch.allclose(statistics.grad_abs, g.abs().mean(dim=0), rtol=1e-3, atol=1e-4 * scale), name
        assert torch.allclose(statistics.fisher, g.square().mean(dim=0), rtol=1e-3, atol=1e-4 * scale**2), name
        product = w * g
        others = [d for d in range(product.ndim) if d not in (0, 1)]
        assert torch.allclose(
            statistics.taylor_out, product.sum(dim=[d for d in others] + ([2] if 2 not in others else [])), atol=1e-3 * scale
        ), name
        groups = getattr(model.get_submodule(name.removesuffix(".weight")), "groups", 1)
        by_in = (
            product.reshape(len(g), groups, -1, *product.shape[2:]).sum(dim=2).reshape(len(g), w.shape[1] * groups, -1).sum(dim=2)
        )
        assert torch.allclose(statistics.taylor_in, by_in, atol=1e-3 * scale), name


def test_a_convolution_that_reads_an_axis_knows_the_effect_of_zeroing_it():
    """taylor_in is the exact derivative of the loss in the direction of the channel's disappearance."""
    workload = tiny_workload("top1")
    found = (
        collect_statistics(trace(workload.model, workload.example_inputs), workload, ["taylor_in"], labels="data")
        .layers["conv2.weight"]
        .taylor_in
    )
    inputs, targets = workload.calibration[0]
    gate = torch.ones(64, requires_grad=True)
    handle = workload.model.conv2.register_forward_pre_hook(lambda m, i: (i[0] * gate[:, None, None],))
    F.cross_entropy(workload.model(inputs[:1]), targets[:1]).backward()
    handle.remove()
    workload.model.zero_grad()
    assert torch.allclose(found[0], gate.grad, atol=1e-5)


def test_labels_are_drawn_from_the_model_where_there_are_none(geometries):
    batches = [(inputs, None) for inputs, _ in geometries.calibration]
    workload = dataclasses.replace(geometries, calibration=batches, validation=batches, metric="agreement")
    graph = trace(workload.model, workload.example_inputs)
    one, again = (collect_statistics(graph, workload, GRADIENT).layers["e.weight"].fisher for _ in range(2))
    assert torch.equal(one, again)
    assert one.any()
    given, drawn = (
        collect_statistics(graph, geometries, GRADIENT, labels=labels).layers["e.weight"].fisher for labels in ("data", "model")
    )
    assert torch.equal(drawn, one)
    assert torch.equal(collect_statistics(graph, geometries, GRADIENT).layers["e.weight"].fisher, drawn)  # a classifier
    assert not torch.equal(given, drawn)


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.round(self.fc(x))


def test_no_gradient_is_said():
    workload = workload_of(randomise(Rounded()), (torch.randn(8, 4),))
    graph = trace(workload.model, workload.example_inputs)
    with pytest.raises(UsageError, match="no gradient of the loss reaches"):
        collect_statistics(graph, workload, ["fisher"])
    with pytest.raises(UsageError, match="no gradient"):
        hwprune.uniform_recipe(workload, "unstructured", 0.5, "obd") and Pruner(workload).prune(
            hwprune.uniform_recipe(workload, "unstructured", 0.5, "obd")
        )


def test_activations_that_are_not_finite_name_the_layer(geometries):
    with torch.no_grad():
        geometries.model.a.bias.fill_(float("inf"))
    with pytest.raises(WorkloadError, match=r"input of layer b\.weight holds NaN or infinity"):
        collect_statistics(trace(geometries.model, geometries.example_inputs), geometries)


def test_a_loss_that_does_not_fit_is_said(geometries):
    workload = dataclasses.replace(geometries, loss=lambda outputs, targets: outputs)
    with pytest.raises(WorkloadError, match="scalar"):
        collect_statistics(trace(workload.model, workload.example_inputs), workload, ["fisher"])


def test_one_calibration_example_is_enough(geometries):
    inputs, targets = geometries.calibration[0]
    workload = dataclasses.replace(geometries, calibration=[((inputs[0][:1],), targets[:1])])
    pruner = Pruner(workload)
    for compensation in ("obs", "sequential", "meanvar", "bias"):
        candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, "obs", compensation))
        assert torch.isfinite(candidate.module(inputs[0])).all()


class Padding(nn.Module):
    """Tokens are averaged under a mask, as in sentence encoders."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, ids, mask):
        y = self.fc2(torch.relu(self.fc1(self.embed(ids)))) * mask[..., None]
        return y.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def test_padding_is_found_and_left_out():
    model = randomise(Padding())
    ids = torch.randint(1, 20, (12, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.randint(2, 7, (12, 1), generator=torch.Generator().manual_seed(1))).float()
    ids = torch.where(mask > 0, ids, torch.zeros_like(ids))
    workload = workload_of(model, (ids, mask))
    found = collect_statistics(trace(model, workload.example_inputs), workload).layers["fc1.weight"]
    x = model.embed(ids).detach()[mask > 0]
    assert found.rows == int(mask.sum())
    assert torch.allclose(found.gram[0].float(), x.T @ x / len(x), atol=1e-5)


def test_influence_is_one_minus_the_cosine():
    workload = tiny_workload()
    graph = trace(workload.model, workload.example_inputs)
    (branch,) = graph.branches
    found = collect_statistics(graph, workload, [INFLUENCE]).influence[branch.name]
    seen = {}
    workload.model.bn.register_forward_hook(lambda m, i, o: seen.__setitem__("skip", torch.relu(o.detach())))
    workload.model.bn2.register_forward_hook(lambda m, i, o: seen.__setitem__("branch", o.detach()))
    inputs, _ = workload.calibration[0]
    with torch.no_grad():
        workload.model(inputs)
    expected = 1 - F.cosine_similarity(seen["skip"], seen["skip"] + seen["branch"], dim=1).mean()
    assert found == pytest.approx(float(expected), abs=1e-4)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.never = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.fc(x))
        if float(x.sum()) < -1:
            x = self.never(x)
        return self.out(x)


def test_models_that_can_not_be_traced_are_calibrated_by_hooks():
    model = randomise(Untraceable())
    workload = workload_of(model, (torch.randn(40, 4),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = Pruner(workload)
    assert pruner.untraceable
    layers = pruner.statistics(["gram", "fisher"]).layers
    assert set(layers) == {"fc.weight", "out.weight"}
    x = torch.cat([inputs[0] for inputs, _ in workload.calibration])
    assert torch.allclose(layers["fc.weight"].gram[0].float(), x.T @ x / 40, atol=1e-5)
    recipe = hwprune.Recipe((hwprune.UnitChoice("fc.weight", "unstructured", 0.5, "sparsegpt"),), "obs")
    candidate = pruner.prune(recipe)
    assert int((candidate.module.state_dict()["fc.weight"] == 0).sum()) == 12
    with pytest.raises(UsageError, match="never reaches it"):
        pruner.prune(hwprune.Recipe((hwprune.UnitChoice("never.weight", "unstructured", 0.5, "wanda"),), "none"))


def test_the_callers_matmul_precision_comes_back():
    torch.set_float32_matmul_precision("high")
    try:
        with passes.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_constants_go_to_the_bias_or_into_the_batch_norm(geometries):
    graph = trace(geometries.model, geometries.example_inputs)
    found = layer_table.find(graph.module, graph.matrices)
    assert (found["a.weight"].bias, found["b.weight"].bias) == ("a.bias", None)
    assert not found["b.weight"].movable
    assert found["shared.weight"].bias is None  # it is added twice
    tiny = tiny_workload()
    graph = trace(tiny.model, tiny.example_inputs)
    assert layer_table.find(graph.module, graph.matrices)["conv2.weight"].running_mean == "bn2.running_mean"
