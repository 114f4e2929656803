"""Two models in one file with an ``If``: both branches, every kind of answer, and NVIDIA's builder."""

from __future__ import annotations

import io
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import version_converter
from torch import nn

from hwprune.errors import UsageError
from hwprune.latency.cascade_runner import ExitRule
from hwprune.onnx_files.cascade_file import with_if


class Net(nn.Module):
    def __init__(self, seed, classes, end):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.end = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, classes)), end

    def forward(self, x):
        return self.end(6 * self.body(x))


def _model(seed, classes=4, end=lambda x: x):
    program = torch.onnx.export(
        Net(seed, classes, end).eval(), (torch.zeros(2, 6),), dynamo=True, input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: "n"},), verbose=False,
    )  # fmt: skip
    return program.model_proto


def _run(model, x):
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return onnxruntime.InferenceSession(buffer.getvalue()).run(None, {"x": x})[0]


KINDS = {
    "logits": (4, lambda x: x, {"axis": 1, "probabilities": False}),
    "probabilities": (4, lambda x: x.softmax(1), {"axis": 1, "probabilities": True}),
    "decisions": (1, lambda x: x, {"axis": None, "probabilities": False}),
    "likely": (1, torch.sigmoid, {"axis": None, "probabilities": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_what_the_two_models_give(kind):
    classes, end, reading = KINDS[kind]
    first, second = _model(0, classes, end), _model(1, classes, end)
    decision = {"output": 0, "temperature": 1.3, "threshold": 0.7, **reading}
    both = with_if(first, second, decision)
    decide = ExitRule(decision)
    taken = set()
    rows = torch.randn(60, 1, 6, generator=torch.Generator().manual_seed(2)).numpy()
    for row in rows * np.linspace(0.1, 3, 60, dtype=np.float32)[:, None, None]:
        mine = _run(first, row)
        sure = bool(decide.sure([mine]).all())
        taken.add(sure)
        assert np.array_equal(_run(both, row), mine if sure else _run(second, row))
    assert taken == {True, False}


def test_a_batch_goes_on_as_a_whole():
    first, second = _model(0), _model(1)
    decision = {"output": 0, "axis": 1, "probabilities": False, "temperature": 1.0, "threshold": 0.8}
    x = 3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(2)).numpy()
    sure = ExitRule(decision).sure([_run(first, x)])
    assert 0 < sure.sum() < 12
    both = with_if(first, second, decision)
    assert np.array_equal(_run(both, x), _run(second, x)) and np.array_equal(_run(both, x[sure]), _run(first, x[sure]))


def test_older_operators_and_models_that_do_not_fit():
    decision = {"output": 0, "axis": 1, "probabilities": False, "temperature": 1.0, "threshold": 0.8}
    old = [version_converter.convert_version(_model(seed), 17) for seed in (0, 1)]
    x = np.ones((1, 6), np.float32)
    wanted = {tuple(_run(model, x)[0]) for model in old}
    assert tuple(_run(with_if(*old, decision), x)[0]) in wanted
    with pytest.raises(UsageError, match="versions"):
        with_if(old[0], _model(1), decision)
    other = _model(1)
    other.graph.input[0].name = "z"
    for node in other.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "z" if name == "x" else name
    with pytest.raises(UsageError, match="other inputs"):
        with_if(_model(0), other, decision)


def test_nvidias_builder_takes_it(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    from hwprune.deploy.build_check import ToBuild, check_builds
    from hwprune.records import target as targets

    decision = {"output": 0, "axis": 1, "probabilities": False, "temperature": 1.0, "threshold": 0.8}
    onnx.save(with_if(_model(0), _model(1), decision), tmp_path / "both.onnx")
    built = check_builds([ToBuild("both", tmp_path / "both.onnx", [[1, 6]])], targets.load("rtx-4090"), limit_s=120)
    assert built["both"].builds, built["both"].reason
    assert list(itertools.chain(built["both"].refused)) == []
