"""N:M layout as kernels see it, against enumeration."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.runtimes.sparsity import of_model

RANDOM = np.random.default_rng(0)


def model(nodes, weights, out_rank=2):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * out_rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def two_four(shape, axis):
    """Weights with exactly two of every four along ``axis`` left."""
    weight = RANDOM.standard_normal(shape).astype(np.float32) + 3
    moved = np.moveaxis(weight, axis, -1)
    flat = moved.reshape(-1, 4)
    for row in flat:
        row[RANDOM.permutation(4)[:2]] = 0
    return np.ascontiguousarray(np.moveaxis(flat.reshape(moved.shape), -1, axis))


CASES = {
    "conv": ([helper.make_node("Conv", ["x", "w"], ["y"], name="n")], (6, 8, 3, 3), 1),
    "matmul": ([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], (8, 6), 0),
    "gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], name="n")], (8, 6), 0),
    "gemm transB": ([helper.make_node("Gemm", ["x", "w"], ["y"], name="n", transB=1)], (6, 8), 1),
    "behind a transpose": (
        [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"], name="n")], (6, 8), 1,
    ),
    "behind a cast": (
        [helper.make_node("Cast", ["w"], ["t"], to=1), helper.make_node("MatMul", ["x", "t"], ["y"], name="n")], (8, 6), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_groups_run_along_the_reduction(case):
    nodes, shape, axis = CASES[case]
    weight = two_four(shape, axis)
    (found,) = of_model(model(nodes, {"w": weight}), 2, 4)
    assert (found.node, found.fits, found.groups, found.full) == ("n", True, weight.size // 4, 0)
    weight[tuple(0 if i != axis else slice(0, 4) for i in range(weight.ndim))] = 1.0
    (found,) = of_model(model(nodes, {"w": weight}), 2, 4)
    assert not found.fits
    assert found.full == 1
    assert "1 of" in found.why


def test_wrong_axis_does_not_pass():
    (found,) = of_model(model(CASES["matmul"][0], {"w": two_four((8, 8), 1)}), 2, 4)
    assert not found.fits


def test_size_that_is_no_multiple():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="stem")]
    (found,) = of_model(model(nodes, {"w": np.zeros((16, 3, 3, 3), np.float32)}), 2, 4)
    assert not found.fits
    assert "3 inputs are not a multiple of 4" in found.why


def test_zero_of_quantised_weights_is_the_zero_point():
    weight = two_four((8, 6), 0)
    quantised = np.where(weight == 0, 7, 50).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="n"),
    ]
    made = model(nodes, {"w": quantised, "s": np.float32(0.1), "z": np.int8(7)})
    assert of_model(made, 2, 4)[0].fits
    made = model(nodes, {"w": quantised, "s": np.float32(0.1), "z": np.int8(0)})
    assert not of_model(made, 2, 4)[0].fits


def test_activations_and_constants_without_reduction_are_left_out():
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], name="n")]
    assert of_model(model(nodes, {}), 2, 4) == []
    assert isinstance(model(nodes, {}), onnx.ModelProto)
