"""Tensors called like operators, and what a model returns beside tensors: the file loads and computes the same."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import hwprune
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.workload.workload import all_tensors

NAMES = [
    "mean", "sub", "add", "mul", "relu", "linear", "conv2d", "flatten", "getitem", "view", "x", "x_1", "output", "val_0", "mu",
    "_to_copy", "addmm", "t", "permute", "convolution", "scale", "bias", "weight", "input_1", "main_graph", "hwprune_own",
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, name, kind, returns="tensor"):
        super().__init__()
        torch.manual_seed(0)
        self.name, self.returns = name, returns
        value = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        if kind == "buffer":
            self.register_buffer(name, value)
        else:
            setattr(self, name, nn.Parameter(value))
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        features = self.body((x - getattr(self, self.name)) * getattr(self, self.name))
        scores = self.head(features.mean((2, 3)))
        return {
            "tensor": lambda: scores, "number": lambda: (scores, 7), "text": lambda: {"scores": scores, "name": "x"},
            "float": lambda: [scores, 1.5, features], "size": lambda: (scores, x.shape[0]), "none": lambda: (scores, None),
            "loss": lambda: {"loss": scores.square().mean(), "scores": scores},
        }[self.returns]()  # fmt: skip


def written(net, folder):
    x = torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    data = [(x, None)]
    workload = hwprune.Workload("net", net.eval(), (x[:1],), data, data, metric="agreement")
    pruner = Pruner(workload)
    candidate = pruner.prune(uniform_recipe(pruner, "channel", 0.5, "l1", "none"))
    candidate.export(folder)
    path = folder / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x[:3].numpy()})
    return got, all_tensors(candidate.module(x[:3])), onnx.load(str(path)), candidate


QUICK = ("mean", "relu", "x_1", "val_0", "addmm", "weight", "main_graph")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name in QUICK and place else pytest.mark.slow)
        for name in NAMES
        for place, kind in enumerate(("parameter", "buffer"))
    ],
)
def test_a_tensor_called_like_an_operator(tmp_path, name, kind):
    got, wanted, proto, candidate = written(Net(name, kind), tmp_path)
    assert torch.allclose(torch.from_numpy(got[0]), wanted[0], atol=1e-5)
    onnx.checker.check_model(proto, full_check=True)
    stored = {item.name for item in proto.graph.initializer}
    assert name in stored and {"body.0.weight", "head.weight"} <= stored  # names are those of the module
    assert sum(p.numel() for p in candidate.module.parameters()) < sum(p.numel() for p in Net(name, kind).parameters())


@pytest.mark.parametrize("returns", ["number", "text", "float", "size", "none", "loss"])
def test_what_is_no_tensor_is_left_out_of_the_file(tmp_path, returns):
    got, wanted, _, _ = written(Net("mu", "buffer", returns), tmp_path)
    assert len(got) == len(wanted) == (2 if returns in ("float", "loss") else 1)
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(torch.from_numpy(mine), theirs, atol=1e-5)
