"""ONNX's recurrent layers: computed as the runtime does, cut as they are masked, in all their forms."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import hwprune
from hwprune.onnx_files import OnnxModule
from hwprune.structure.onnx.graph import OnnxGraph

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FORMS = [
    ("LSTM", "forward", {}), ("LSTM", "reverse", {}), ("LSTM", "bidirectional", {}),
    ("GRU", "forward", {}), ("GRU", "bidirectional", {}), ("GRU", "reverse", {"linear_before_reset": 1}),
    ("GRU", "bidirectional", {"linear_before_reset": 1}),
    ("RNN", "bidirectional", {}), ("RNN", "forward", {"activations": ["Relu"]}),
    ("LSTM", "forward", {"activations": ["HardSigmoid", "Softsign", "Tanh"]}), ("LSTM", "forward", {"clip": 0.7}),
]  # fmt: skip
AS_IT_IS = [("HardSigmoid", "Softsign", "Tanh"), 0.7]


def model(kind, direction, attributes, extra=()):
    """MatMul, a recurrent layer, MatMul over (steps, batch, features); ``extra``: names among B, P, initial_h, initial_c."""
    rng = np.random.default_rng(3)
    ways, hidden, width, gates = (2 if direction == "bidirectional" else 1), 6, 8, GATES[kind]
    sizes = {"wi": (5, width), "W": (ways, gates * hidden, width), "R": (ways, gates * hidden, hidden), "wo": (hidden * ways, 3)}
    sizes |= {"B": (ways, 2 * gates * hidden)} if "B" in extra else {}
    sizes |= {"P": (ways, 3 * hidden)} if "P" in extra else {}
    inputs = ["a", "W", "R", "B" if "B" in extra else "", "", "h0" if "h0" in extra else "", "", "P" if "P" in extra else ""]
    sizes |= {"h0": (ways, 3, hidden)} if "h0" in extra else {}
    while not inputs[-1]:
        inputs.pop()
    made = [numpy_helper.from_array((rng.standard_normal(size) * 0.4).astype(np.float32), name) for name, size in sizes.items()]
    made.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "shape"))
    nodes = [
        helper.make_node("MatMul", ["x", "wi"], ["a"]),
        helper.make_node(kind, inputs, ["Y", "Yh"], hidden_size=hidden, direction=direction, **attributes),
        helper.make_node("Transpose", ["Y"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "wo"], ["y"]),
    ]
    batch = 3 if "h0" in extra else "n"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [4, batch, 5])], [value("y", TensorProto.FLOAT, [4, batch, 3])], made
    )
    made_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made_model)
    return made_model


def run(proto, x):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x.numpy()})[0]


def hidden_axis(graph):
    return next(axis for axis in graph.axes if any(name == "R" and dim == 2 for name, dim in axis.members))


@pytest.mark.parametrize("extra", [("B",), (), ("B", "h0")], ids=["biases", "plain", "start"])
@pytest.mark.parametrize(("kind", "direction", "attributes"), FORMS)
@torch.no_grad()
def test_computed_and_cut(kind, direction, attributes, extra):
    proto, x = model(kind, direction, attributes, extra), torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    dense = run(proto, x)
    graph = OnnxGraph(proto)
    module = OnnxModule(graph).eval()
    assert np.abs(module(x).numpy() - dense).max() < 1e-5
    kept = bool(attributes) and next(iter(attributes.values())) in ([*AS_IT_IS[0]], AS_IT_IS[1])
    assert module.kept_nodes == ([kind] if kept else [])
    free = [axis for axis in graph.axes if axis.frozen is None]
    assert [axis.size for axis in free] == [8, 6]
    for axis in free:
        keep = {axis.name: torch.arange(axis.size) % 2 == 0}
        cut, masked = run(graph.cut(keep), x), run(graph.mask(keep), x)
        assert np.abs(masked - dense).max() > 1e-3
        assert axis.exact
        assert np.abs(cut - masked).max() < 1e-5
    traced = hwprune.trace(module, (x,))
    if not kept:
        assert hidden_axis(traced).frozen is None
        keep = {hidden_axis(traced).name: torch.arange(6) % 2 == 0}
        assert torch.allclose(traced.cut(keep)(x), traced.mask(keep)(x), atol=1e-5)


def test_peepholes_go_with_their_units():
    proto, x = model("LSTM", "forward", {}, ("B", "P")), torch.randn(4, 3, 5)
    graph = OnnxGraph(proto)
    assert np.abs(OnnxModule(graph).eval()(x).detach().numpy() - run(proto, x)).max() < 1e-5
    axis = hidden_axis(graph)
    keep = {axis.name: torch.arange(6) % 2 == 0}
    assert np.abs(run(graph.cut(keep), x) - run(graph.mask(keep), x)).max() < 1e-5
    assert next(t for t in graph.cut(keep).graph.initializer if t.name == "P").dims == [1, 9]


def test_an_activation_that_is_not_zero_at_zero_is_not_exact():
    graph = OnnxGraph(model("RNN", "forward", {"activations": ["Sigmoid"]}))
    assert "zero" in str(hidden_axis(graph).inexact_reason)
