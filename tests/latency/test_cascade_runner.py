"""The delivered runner: how sure a model is, and which examples reach the second one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from hwprune.latency.cascade_runner import Cascade, ExitRule


def spec(**given):
    return {"output": 0, "axis": 1, "probabilities": False, "temperature": 1.0, "threshold": 0.8} | given


def test_confidence_is_the_probability_of_the_answer():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    wanted = (logits / 2.5).softmax(1).amax(1).numpy()
    assert ExitRule(spec(temperature=2.5)).confidence([logits.numpy()]) == pytest.approx(wanted, rel=1e-5)
    probabilities = logits.softmax(1)
    assert ExitRule(spec(probabilities=True, temperature=2.5)).confidence([probabilities.numpy()]) == pytest.approx(
        wanted, rel=1e-4
    )


def test_decisions_positions_and_other_outputs():
    logits = torch.tensor([[2.0], [-3.0], [0.1]])
    wanted = torch.maximum(logits.sigmoid(), 1 - logits.sigmoid())[:, 0].numpy()
    assert ExitRule(spec(axis=None)).confidence([logits.numpy()]) == pytest.approx(wanted, rel=1e-5)
    likely = logits.sigmoid().numpy()
    assert ExitRule(spec(axis=None, probabilities=True)).confidence([likely]) == pytest.approx(wanted, rel=1e-5)
    maps = torch.randn(2, 3, 4, 5)
    least = maps.softmax(1).amax(1).reshape(2, -1).amin(1).numpy()
    assert ExitRule(spec(output=1)).confidence([logits.numpy(), maps.numpy()]) == pytest.approx(least, rel=1e-5)
    last = torch.randn(2, 4, 3)
    assert ExitRule(spec(axis=2)).confidence([last.numpy()]) == pytest.approx(last.softmax(2).amax(2).amin(1).numpy(), rel=1e-5)


def test_large_logits_do_not_overflow():
    assert ExitRule(spec()).confidence([np.array([[1e4, -1e4]], np.float32)]).tolist() == [1.0]


def _scaled(path, factor):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "f"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])], [onnx.numpy_helper.from_array(np.float32(factor), "f")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_only_unsure_examples_reach_the_second_model(tmp_path):
    _scaled(tmp_path / "first.onnx", 1.0)
    _scaled(tmp_path / "second.onnx", -100.0)
    (tmp_path / "cascade.json").write_text(json.dumps({"steps": ["first.onnx", "second.onnx"], "decision": spec()}))
    cascade = Cascade(tmp_path)
    x = np.array([[3.0, 0.0], [0.1, 0.0], [0.0, 4.0]], np.float32)
    (found,) = cascade.run([x])
    assert found.tolist() == [[3.0, 0.0], [pytest.approx(-10.0), 0.0], [0.0, 4.0]] and cascade.gone_on == pytest.approx(1 / 3)
    assert cascade.run([x[:1]])[0].tolist() == [[3.0, 0.0]] and cascade.run([x[1:2]])[0].tolist() == [[pytest.approx(-10.0), 0.0]]
    assert cascade.gone_on == pytest.approx(2 / 5)
