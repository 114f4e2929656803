"""Gradients and Fisher information."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.calibration.collect import collect_statistics
from hwprune.errors import UsageError
from hwprune.structure.torch.analyse import trace
from tests.calibration.helpers import fixed_workload, statistics_of
from tests.calibration.test_collect import workload_of
from tests.conftest import randomise


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


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.score, self.box = (
            nn.Linear(5, 16),
            nn.Linear(16, 4),
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 6)),
        )

    def forward(self, x):
        y = torch.relu(self.body(x))
        return self.score(y), 100 * self.box(y)


@pytest.mark.parametrize("labelled", [False, True])
def test_what_only_another_output_reads_has_gradients(labelled):
    """A detector's boxes: without them the layers before them would be the cheapest to remove."""
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    model = TwoHeads().eval()
    batches = [(x[:32], torch.arange(32) % 4 if labelled else None), (x[32:], torch.arange(32) % 4 if labelled else None)]
    more = {"metric": "top1"} if labelled else {"metric": "agreement", "class_axis": (1, "none")}
    workload = hwprune.Workload("two", model, (x[:1],), batches, batches, **more)
    graph = trace(model, workload.example_inputs)
    found = collect_statistics(graph, workload, ["fisher"], labels="data" if labelled else "model").layers
    assert (found["box.0.weight"].fisher > 0).any()
    share = float(found["box.2.weight"].fisher.mean() / found["score.weight"].fisher.mean())
    assert 0.01 < share < 100  # by its own spread, not by its size of 100


class LossFirst(TwoHeads):
    def forward(self, x):
        score, box = super().forward(x)
        return score.square().mean(), score, box


def test_words_on_outputs_count_a_loss_among_them_too():
    """``class_axis`` is one word for each output: with a loss in front the same outputs are read alike."""
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for model, words in ((TwoHeads(), (1, "none")), (LossFirst(), ("none", 1, "none"))):
        batches = [(x[:32], None), (x[32:], None)]
        workload = hwprune.Workload("two", model.eval(), (x[:1],), batches, batches, metric="agreement", class_axis=words)
        found.append(collect_statistics(trace(model, workload.example_inputs), workload, ["fisher"], labels="model").layers)
    for name in ("score.weight", "box.2.weight"):
        assert torch.allclose(found[0][name].fisher, found[1][name].fisher)
