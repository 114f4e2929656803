"""A model that cuts a table of positions to the tokens that come in is cut like any other."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.structure.onnx.graph import OnnxGraph

WIDTH, ROWS, HIDDEN = 6, 32, 10


def model(past: bool) -> onnx.ModelProto:
    """Words and positions, then an MLP; with ``past`` the positions begin after earlier tokens, as with a cache."""
    random = np.random.default_rng(0)
    weights = {
        "words": random.standard_normal((20, WIDTH)), "rows": random.standard_normal((ROWS, WIDTH)),
        "up": random.standard_normal((WIDTH, HIDDEN)), "down": random.standard_normal((HIDDEN, WIDTH)),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors.append(numpy_helper.from_array(np.arange(ROWS)[None], "numbers"))
    tensors += [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", [0]), ("one", [1]))]
    node = helper.make_node
    start = "earlier" if past else "zero"
    nodes = [
        node("Shape", ["ids"], ["now"], start=1, end=2),
        *([node("Shape", ["cache"], ["earlier"], start=1, end=2), node("Add", ["earlier", "now"], ["end"])] if past else []),
        node("Slice", ["numbers", start, "end" if past else "now", "one", "one"], ["places"]),
        node("Gather", ["rows", "places"], ["positions"]), node("Gather", ["words", "ids"], ["embedded"]),
        node("Add", ["embedded", "positions"], ["h"]), node("MatMul", ["h", "up"], ["u"]), node("Relu", ["u"], ["r"]),
        node("MatMul", ["r", "down"], ["y"]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])]
    if past:
        inputs.append(helper.make_tensor_value_info("cache", TensorProto.FLOAT, ["batch", "past"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("past", [False, True])
def test_the_mlp_is_cut_and_any_length_goes_in(past):
    dense = model(past)
    graph = OnnxGraph(dense)
    axis = next(a for a in graph.axes if ("up", 1) in a.members)
    assert axis.frozen is None and axis.size == HIDDEN
    keep = torch.arange(HIDDEN) % 2 == 0
    kept = {t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}
    masked = onnx.ModelProto.FromString(dense.SerializeToString())
    for tensor in masked.graph.initializer:
        if tensor.name == "up":
            tensor.CopyFrom(numpy_helper.from_array(kept["up"] * keep.numpy(), "up"))
    small = graph.cut({axis.name: keep})
    shapes = {t.name: tuple(t.dims) for t in small.graph.initializer}
    assert shapes["up"] == (WIDTH, HIDDEN // 2) and shapes["rows"] == (ROWS, WIDTH)
    for length in (3, 9):
        given = {"ids": np.arange(2 * length).reshape(2, length) % 20}
        if past:
            given["cache"] = np.zeros((2, 5), np.float32)
        found, wanted = (
            onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)[0]
            for m in (small, masked)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
