"""What an ONNX file takes and gives: made-up inputs and their sizes, chosen outputs, operators of scikit-learn's exporter."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.cli.main import main
from hwprune.errors import UsageError, WorkloadError
from hwprune.pruning.pruner import Pruner
from hwprune.workload import loading, onnx_signature

N, VALUE = helper.make_node, helper.make_tensor_value_info


def weight(name, *shape):
    return numpy_helper.from_array((np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32), name)


def stored(path, nodes, inputs, outputs, weights, opsets=(("", 17),)):
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in opsets], ir_version=9)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def free_sizes(tmp_path):
    """A network that 16 x 16 pixels are too few for."""
    nodes = [
        N("Conv", ["x", "a"], ["h"], strides=[4, 4]), N("Relu", ["h"], ["r"]), N("Conv", ["r", "b"], ["i"]),
        N("GlobalAveragePool", ["i"], ["p"]), N("Flatten", ["p"], ["y"]),
    ]  # fmt: skip
    return stored(
        tmp_path / "free.onnx", nodes, [VALUE("x", TensorProto.FLOAT, ["n", 3, "h", "w"])], [VALUE("y", TensorProto.FLOAT, ["n", 4])],
        [weight("a", 16, 3, 7, 7), weight("b", 4, 16, 5, 5)],
    )  # fmt: skip


def test_made_up_sizes_that_do_not_run_are_asked_for(free_sizes, capsys):
    assert main(["inspect", str(free_sizes)]) == 2
    told = capsys.readouterr().err
    assert "--shape 1x3x224x224" in told
    assert "x is ?x3x?x?" in told
    assert main(["inspect", str(free_sizes), "--shape", "1x3x64x64"]) == 0
    assert "a:0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "says"),
    [("1x3x64", "the model takes x: 4 sizes"), ("1x4x64x64", "a size of 4 where the model has 3"), ("1x3xaxb", "must be sizes")],
)
def test_wrong_sizes(free_sizes, shape, says):
    with pytest.raises(UsageError, match=says):
        loading.load(f"{free_sizes} shape={shape}", structure_only=True)


@pytest.fixture
def classifier(tmp_path):
    """As scikit-learn's exporter writes a scaler with a small network: a label, and probabilities as a map."""
    nodes = [
        N("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5] * 6, scale=[2.0] * 6),
        N("MatMul", ["s", "w1"], ["a"]), N("Relu", ["a"], ["r"]), N("MatMul", ["r", "w2"], ["z"]), N("Softmax", ["z"], ["p"], axis=1),
        N("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        N("ZipMap", ["p"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]  # fmt: skip
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, [])))
    outputs = [
        VALUE("label", TensorProto.INT64, ["n"]), VALUE("p", TensorProto.FLOAT, ["n", 3]), helper.make_value_info("map", maps),
    ]  # fmt: skip
    path = stored(
        tmp_path / "classifier.onnx", nodes, [VALUE("x", TensorProto.FLOAT, ["n", 6])], outputs, [weight("w1", 6, 32), weight("w2", 32, 3)],
        (("", 17), ("ai.onnx.ml", 3)),
    )  # fmt: skip
    x = np.random.default_rng(0).random((60, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(60) % 3)
    return path


def test_a_map_among_the_outputs_is_named_with_the_way_out(classifier):
    with pytest.raises(WorkloadError, match="output map of .* is no tensor") as raised:
        loading.load(f"{classifier} data={classifier.parent / 'data.npz'}")
    assert "output=label,p" in str(raised.value)
    with pytest.raises(UsageError, match="has no output q; it has label, p, map"):
        loading.load(f"{classifier} output=q data={classifier.parent / 'data.npz'}")


@pytest.mark.parametrize("output", ["p", "label,p", "p,label", "label"])
@torch.no_grad()
def test_chosen_outputs_stay(classifier, output):
    workload = loading.load(f"{classifier} output={output} metric=top1 data={classifier.parent / 'data.npz'}")
    names = output.split(",")
    assert [item.name for item in workload.model.onnx_model.graph.output] == names
    pruner = Pruner(workload)
    axis = next(axis for axis in pruner.graph.axes if axis.frozen is None)
    assert axis.size == 32
    keep = {axis.name: torch.arange(32) < 8}
    small = pruner.template.model(pruner.graph.cut(keep), keep)
    assert [item.name for item in small.graph.output] == names
    assert ("ai.onnx.ml", "Scaler") in {(node.domain, node.op_type) for node in small.graph.node}
    assert "ZipMap" not in {node.op_type for node in small.graph.node}


def test_declared_inputs_leave_weights_out(classifier):
    (one,) = onnx_signature.declared(onnx.load(str(classifier)))
    assert (one.name, one.dtype, one.sizes) == ("x", torch.float32, (None, 6))


@pytest.mark.parametrize("batch", [1, 8])
@torch.no_grad()
def test_a_fixed_batch_is_the_one_that_is_measured(tmp_path, batch):
    """A Reshape to [batch, -1] takes no other, so example inputs have as many examples."""
    nodes = [
        N("MatMul", ["x", "w1"], ["a"]),
        N("Relu", ["a"], ["r"]),
        N("Reshape", ["r", "shape"], ["f"]),
        N("MatMul", ["f", "w2"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([batch, -1], np.int64), "shape")
    path = stored(
        tmp_path / "m.onnx", nodes, [VALUE("x", TensorProto.FLOAT, [batch, 6])], [VALUE("y", TensorProto.FLOAT, [batch, 3])],
        [weight("w1", 6, 32), weight("w2", 32, 3), shape],
    )  # fmt: skip
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((40, 6)).astype(np.float32))
    workload = loading.load(f"{path} data={tmp_path / 'd.npz'}")
    assert workload.example_inputs[0].shape == (batch, 6)
    pruner = Pruner(workload)
    keep = {axis.name: torch.arange(32) < 8 for axis in pruner.graph.axes if axis.frozen is None}
    assert len(keep) == 1
    small = pruner.graph.cut(keep)
    assert small(workload.example_inputs[0]).shape == (batch, 3)
