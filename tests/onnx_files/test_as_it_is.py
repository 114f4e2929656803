"""Nodes that are left to the runtime: the file is read, what is around them is cut, and the node stands as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import WorkloadError
from hwprune.onnx_files import OnnxModule
from hwprune.pruning.pruner import Pruner
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.workload import onnx_file

N, VALUE = helper.make_node, helper.make_tensor_value_info


def weight(name, *shape):
    draw = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array((draw.standard_normal(shape) * 0.3).astype(np.float32), name)


def number(name, value, dtype):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(middle, extra, after="o"):
    """Two layers, the node in question on 12 features, two layers."""
    nodes = [
        N("MatMul", ["x", "w1"], ["a"]), N("Relu", ["a"], ["r"]), N("MatMul", ["r", "w2"], ["h"]), *middle,
        N("Reshape", [after, "rows"], ["o2"]), N("MatMul", ["o2", "w3"], ["b"]), N("Relu", ["b"], ["r2"]), N("MatMul", ["r2", "w4"], ["y"]),
    ]  # fmt: skip
    weights = [weight("w1", 8, 32), weight("w2", 32, 12), weight("w3", 12, 32), weight("w4", 32, 3)]
    graph = helper.make_graph(
        nodes, "g", [VALUE("x", TensorProto.FLOAT, ["n", 8])], [VALUE("y", TensorProto.FLOAT, ["n", 3])],
        [*weights, number("rows", [-1, 12], np.int64), *extra],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return proto


def branching():
    then = helper.make_graph([N("Mul", ["h", "two"], ["t"])], "then", [], [VALUE("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([N("Neg", ["h"], ["e"])], "else", [], [VALUE("e", TensorProto.FLOAT, None)])
    middle = [
        N("ReduceMean", ["x"], ["mean"], keepdims=0), N("Greater", ["mean", "nothing"], ["yes"]),
        N("If", ["yes"], ["o"], then_branch=then, else_branch=other),
    ]  # fmt: skip
    return model(middle, [number("two", 2, np.float32), number("nothing", 0, np.float32)])


def looping():
    body = helper.make_graph(
        [N("Identity", ["cond"], ["co"]), N("MatMul", ["state", "w5"], ["s1"]), N("Tanh", ["s1"], ["so"])],
        "body",
        [VALUE("i", TensorProto.INT64, []), VALUE("cond", TensorProto.BOOL, []), VALUE("state", TensorProto.FLOAT, None)],
        [VALUE("co", TensorProto.BOOL, []), VALUE("so", TensorProto.FLOAT, None)],
    )
    extra = [weight("w5", 12, 12), number("trips", 3, np.int64), number("go", True, np.bool_)]
    return model([N("Loop", ["trips", "go", "h"], ["l"], body=body), N("Relu", ["l"], ["o"])], extra)


def scanning():
    body = helper.make_graph(
        [N("Add", ["state", "row"], ["sum"]), N("Identity", ["sum"], ["out"])],
        "body",
        [VALUE("state", TensorProto.FLOAT, [12]), VALUE("row", TensorProto.FLOAT, [12])],
        [VALUE("sum", TensorProto.FLOAT, [12]), VALUE("out", TensorProto.FLOAT, [12])],
    )
    return model(
        [N("Scan", ["start", "h"], ["last", "o"], body=body, num_scan_inputs=1)], [number("start", [0] * 12, np.float32)]
    )


def exclusive_sums():
    """A form of an operator that hwprune computes otherwise."""
    return model([N("CumSum", ["h", "axis"], ["o"], exclusive=1)], [number("axis", 1, np.int64)])


def optional_result():
    middle = [
        N("Reshape", ["h", "all"], ["flat"]), N("Unique", ["flat"], ["u", "", "inverse"]), N("Gather", ["u", "inverse"], ["o"]),
    ]  # fmt: skip
    return model(middle, [number("all", [-1], np.int64)])


CASES = {"If": branching, "Loop": looping, "Scan": scanning, "CumSum": exclusive_sums, "Unique": optional_result}


@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_what_is_around_is_cut(kind, tmp_path):
    proto = CASES[kind]()
    path = tmp_path / "model.onnx"
    onnx.save(proto, str(path))
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    batches = [((part,), None) for part in rows.split(8)]
    workload = onnx_file.load(path, {"validation": batches}, {"class_axis": "none"}, None)
    model = workload.model
    assert isinstance(model, OnnxModule)
    assert model.kept_nodes == [kind]
    pruner = Pruner(workload)
    free = {(name, dim) for axis in pruner.graph.axes if axis.frozen is None for name, dim in axis.members}
    assert {("w1", 1), ("w4", 0)} <= free
    assert pruner.template is not None
    assert pruner.template.reason is None, pruner.template.reason
    graph = model.onnx_graph
    keep = {axis.name: torch.arange(axis.size) % 2 == 0 for axis in graph.axes if axis.frozen is None}
    assert len(keep) == 2
    small = graph.cut(keep)
    assert kind in {node.op_type for node in small.graph.node}
    for x in (rows[:8], rows[:3], rows):
        got, wanted = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x.numpy()})[0] for m in (small, graph.mask(keep))
        )
        assert np.abs(got - wanted).max() < 1e-5
        dense = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})[0]
        assert np.abs(dense - model(x).numpy()).max() < 1e-5
        assert np.abs(wanted - dense).max() > 1e-3


def test_scalars_keep_their_rank():
    """A Loop refuses a condition of one entry where it wants a number without dims."""
    graph = OnnxGraph(looping())
    whole = graph.cut_leaves({}, {item.name: numpy_helper.to_array(item) for item in graph.model.graph.initializer})
    assert [list(item.dims) for item in whole.graph.initializer if item.name in ("trips", "go")] == [[], []]
    onnxruntime.InferenceSession(whole.SerializeToString())


@pytest.mark.parametrize("kind", ["QLinearMatMul", "MatMulInteger"])
def test_operator_form_is_refused_with_the_way_out(kind):
    extra = [number("w", np.ones((12, 12)), np.int8), number("s", 0.1, np.float32), number("z", 0, np.int8)]
    middle = [N("QuantizeLinear", ["h", "s", "z"], ["q"])]
    middle += (
        [N("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"]), N("DequantizeLinear", ["p", "s", "z"], ["o"])]
        if kind == "QLinearMatMul"
        else [N("MatMulInteger", ["q", "w", "z", "z"], ["p"]), N("Cast", ["p"], ["o"], to=1)]
    )
    with pytest.raises(WorkloadError, match="quantised in a form") as raised:
        OnnxModule(OnnxGraph(model(middle, extra)))
    assert "--quantize int8" in str(raised.value)
    assert "QDQ" in str(raised.value)
