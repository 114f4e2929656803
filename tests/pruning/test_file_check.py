"""A written file is loaded and run before it is called done."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hwprune import runtimes
from hwprune.errors import CandidateFailure
from hwprune.onnx_files import to_onnx
from hwprune.pruning.file_check import check_file

X = (torch.randn(2, 6, generator=torch.Generator().manual_seed(0)),)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        x = self.body(x).relu()
        return self.one(x), self.two(x)


def changed(path, name, change):
    proto = onnx.load(str(path))
    for item in proto.graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(item)), name))
    onnx.save(proto, str(path))


@pytest.mark.parametrize("name", ["one.weight", "two.weight"])
def test_every_output_is_compared(tmp_path, name):
    module, path = Two().eval(), tmp_path / "m.onnx"
    to_onnx.to_onnx(module, X, path)
    assert check_file(path, module, X) < 1e-5
    changed(path, name, lambda array: 2 * array)
    with pytest.raises(CandidateFailure, match="computes something else"):
        check_file(path, module, X)


@pytest.mark.parametrize("runtime", [True, False])
def test_a_file_that_does_not_load(tmp_path, runtime, monkeypatch):
    module, path = Two().eval(), tmp_path / "m.onnx"
    to_onnx.to_onnx(module, X, path)
    if not runtime:
        monkeypatch.setattr(runtimes, "missing", lambda _name: "not installed")
        assert check_file(path, module, X) == 0.0
    proto = onnx.load(str(path))
    proto.graph.node.append(onnx.helper.make_node("Relu", ["one.weight"], [proto.graph.node[0].output[0]]))  # a second definition
    onnx.save(proto, str(path))
    with pytest.raises(CandidateFailure, match="does not load and run" if runtime else "no valid ONNX file"):
        check_file(path, module, X)
