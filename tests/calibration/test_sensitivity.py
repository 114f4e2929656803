"""Predicted divergence against what it must be: computed from outputs, without gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.calibration import gradients, sensitivity
from hwprune.pruning.pruner import Pruner
from tests.conftest import randomise, tiny_workload
from tests.structure.token_models import Vision


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 16)
        self.fc2 = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def workload(metric="agreement", examples=64):
    model = randomise(Mlp())
    data = torch.randn(examples, 6, generator=torch.Generator().manual_seed(1))
    batches = [(part, None) for part in data.split(16)]
    return hwprune.Workload("mlp", model, (data[:1],), batches, batches, metric=metric)


def expected(dense, pruned):
    """1/2 mean dz^T (diag p - p p^T) dz of the softened outputs."""
    p = (dense / gradients.TEMPERATURE).softmax(dim=1)
    dz = pruned - dense
    return float(((p * dz.square()).sum(1) - (p * dz).sum(1).square()).mean()) / 2


def predicted(pruner, key, options, seeds, unit):
    found = []
    for seed in range(seeds):
        rows = sensitivity.responses(
            pruner.graph, pruner.workload, pruner.units, {key: (unit, len(options))}, lambda _key: options, seed=seed
        )
        found.append(rows[key].square().mean(dim=0) / 2)
    return torch.stack(found).mean(dim=0)


@pytest.mark.parametrize("compensation", ["none", "obs"])
def test_an_axis_predicts_the_softened_divergence(compensation):
    """Only the second layer changes, so the outputs are linear in the change and the quadratic is exact in the mean."""
    pruner = Pruner(workload())
    unit = "fc1.weight:0"
    options = pruner.options(unit, "neuron", "obs", [0.25, 0.5, 0.75], compensation)
    found = predicted(pruner, "x", options, 300, unit)
    with torch.no_grad():
        inputs = torch.cat([x for (x,), _ in pruner.workload.batches("calibration")])
        model = pruner.workload.model
        hidden, dense = torch.relu(model.fc1(inputs)), model(inputs)
        for place, option in enumerate(options):
            solution = option.solutions.get("fc2.weight")
            weight = model.fc2.weight[:, option.keep] if solution is None else solution.weight
            bias = model.fc2.bias + (solution.shift if solution is not None and solution.shift is not None else 0)
            pruned = hidden[:, option.keep] @ weight.T + bias
            assert float(found[place]) == pytest.approx(expected(dense, pruned), rel=0.12)


def test_a_mask_predicts_the_softened_divergence():
    pruner = Pruner(workload())
    options = pruner.options("fc2.weight", "unstructured", "l1", [0.5], "none")
    (found,) = predicted(pruner, "x", options, 300, "fc2.weight")
    with torch.no_grad():
        inputs = torch.cat([x for (x,), _ in pruner.workload.batches("calibration")])
        model = pruner.workload.model
        pruned = torch.relu(model.fc1(inputs)) @ (model.fc2.weight * options[0].keep).T + model.fc2.bias
        assert float(found) == pytest.approx(expected(model(inputs), pruned), rel=0.12)


def test_a_branch_and_several_passes_over_the_data(monkeypatch):
    """What needs several passes gives the same as one; a branch's response is minus its value along the gradient."""
    pruner = Pruner(tiny_workload())
    unit = "conv1.weight:0"
    branch = next(name for name, one in pruner.units.items() if one.branch is not None)
    wanted = {"a": (unit, 2), "b": (unit, 2)}

    def options(key):
        return pruner.options(unit, "channel", "l2" if key == "a" else "obs", [0.25, 0.5], "none")

    def run():
        return sensitivity.responses(pruner.graph, pruner.workload, pruner.units, wanted, options, [branch])

    whole = run()
    monkeypatch.setattr(sensitivity, "MEMORY_LIMIT", 1)
    parts = run()
    assert set(whole) == {"a", "b", branch} == set(parts)
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key])
    # All channels of the branch gone is what dropping it is, but for the batch norm's constant behind it.
    assert whole[branch].shape == (20, 1)
    assert float(whole[branch].square().mean()) > 0


def test_a_model_without_gradients_says_so():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return torch.round(self.fc(x)).detach()

    data = [(torch.randn(8, 4), None)]
    pruner = Pruner(hwprune.Workload("rounds", Rounds().eval(), (data[0][0][:1],), data, data, metric="agreement"))
    options = pruner.options("fc.weight", "unstructured", "l1", [0.5], "none")
    try:
        rows = sensitivity.responses(
            pruner.graph, pruner.workload, pruner.units, {"x": ("fc.weight", 1)}, lambda _key: options
        )  # fmt: skip
    except hwprune.HwpruneError as error:
        assert "gradient" in str(error)
    else:
        assert not rows["x"].any()


def test_with_no_time_left_fewer_examples_have_to_do(monkeypatch):
    """All passes use the same ones, as many as the first had when the time was over; at least `LEAST_EXAMPLES`."""
    monkeypatch.setattr(sensitivity, "LEAST_EXAMPLES", 20)
    monkeypatch.setattr(sensitivity, "MEMORY_LIMIT", 1)  # one pass for each key
    pruner = Pruner(workload())
    variants = {name: pruner.options("fc1.weight:0", "neuron", "l2", [level]) for name, level in (("a", 0.25), ("b", 0.5))}
    wanted = dict.fromkeys(variants, ("fc1.weight:0", 1))
    told = []

    def asked(late):
        told.clear()
        return sensitivity.responses(
            pruner.graph, pruner.workload, pruner.units, wanted, variants.get, progress=lambda *x: told.append(x), late=late
        )

    whole, short = asked(lambda: False), asked(lambda: True)
    assert {len(rows) for rows in whole.values()} == {64}
    assert {len(rows) for rows in short.values()} == {len(short["a"])} and 20 <= len(short["a"]) < 64
    for key, rows in short.items():
        assert torch.allclose(rows, whole[key][: len(rows)])
    assert told[-1][0] == told[-1][1] == 2 * len(short["a"])
    assert asked(lambda: bool(told) and told[-1][0] > 64)["b"].shape == (64, 1)  # late in the second pass: it goes on


@pytest.mark.parametrize("form", ["token", "merge"])
def test_fewer_tokens_predict_the_softened_divergence(form):
    """At the levels at which the model is run; between them along straight lines."""
    torch.manual_seed(0)
    model = Vision(class_token=False).eval()
    x = torch.randn(256, 3, 8, 8)
    batches = [(part, None) for part in x.split(32)]
    pruner = Pruner(hwprune.Workload("vision", model, (x[:1],), batches, batches, metric="agreement"))
    axis = next(axis for axis in pruner.graph.token_axes if axis.form == form and axis.place == 1)
    levels = [1 / 16, 2 / 16, 3 / 16, 4 / 16, 5 / 16, 6 / 16, 7 / 16]
    found = []
    for seed in range(8):
        rows = sensitivity.responses(
            pruner.graph, pruner.workload, pruner.units, {}, lambda _key: [], seed=seed, tokens={"key": (axis.name, levels)}
        )["key"]
        assert rows.shape == (256, 7)
        found.append(rows)
    told = torch.stack([rows.square().mean(dim=0) / 2 for rows in found]).mean(dim=0)
    with torch.no_grad():
        for place in (0, 3, 6):
            cut = pruner.graph.cut({axis.name: torch.arange(16) < 16 - round(16 * levels[place])})
            assert float(told[place]) == pytest.approx(expected(model(x), cut(x)), rel=0.25)
    torch.testing.assert_close(found[0][:, 1], found[0][:, 0] * 2 / 3 + found[0][:, 3] / 3)
    torch.testing.assert_close(found[0][:, 5], found[0][:, 3] / 3 + found[0][:, 6] * 2 / 3)
