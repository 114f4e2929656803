"""Models in the forms that quantisers understand: the same numbers, and INT8 of them is right."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.deploy.normalising import normalise
from hwprune.deploy.quantise import quantise

DRAW = np.random.default_rng(0)


def draw(*shape, scale=1.0):
    return (DRAW.standard_normal(shape) * scale).astype(np.float32)


def model(nodes, stored, columns=16, out=5, notes=True):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()], doc_string="the graph",
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if notes:
        helper.set_model_props(made, {"names": "cat,dog"})
        made.doc_string = "ours"
    return made


def two_gemms(alpha=1.0, beta=1.0, first=0, second=0, weight="own", bias="own", zero=False):
    w, b = draw(64, 64, scale=0.15), draw(64)
    stored = {"wi": draw(16, 64, scale=0.3), "w": w, "b": b, "wo": draw(64, 5, scale=0.2)}
    if weight == "own":
        stored["w2"] = w.copy()
    if bias == "own":
        stored["b2"] = b.copy()
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "wi"], ["a"]), node("Relu", ["a"], ["a1"]),
        node("Gemm", ["a1", "w", "b"], ["c"], "g1", alpha=alpha, beta=0.0 if zero else beta, transB=first), node("Relu", ["c"], ["c1"]),
        node("Gemm", ["c1", "w" if weight == "shared" else "w2", "b" if bias == "shared" else "b2"], ["d"], "g2", transB=second),
        node("Relu", ["d"], ["d1"]), node("MatMul", ["d1", "wo"], ["y"]),
    ]  # fmt: skip
    return model(nodes, stored)


def run(made, x):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


CASES = {
    "plain": {}, "alpha": {"alpha": 0.5}, "beta": {"beta": 2.0}, "both": {"alpha": 3.0, "beta": -0.5}, "no bias": {"zero": True},
    "shared": {"weight": "shared"}, "two layouts": {"weight": "shared", "second": 1}, "bias": {"bias": "shared"},
    "all": {"weight": "shared", "bias": "shared", "second": 1, "alpha": 0.7, "beta": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_quantised_gemms_are_what_they_were(name, precision, tmp_path):
    made, x = two_gemms(**CASES[name]), draw(80, 16)
    wanted = run(made, x)
    same = onnx.ModelProto()
    same.CopyFrom(made)
    normalise(same)
    onnx.checker.check_model(same)
    assert np.abs(run(same, x) - wanted).max() <= 2e-5 * np.abs(wanted).max()
    quantise(made, precision, lambda: [[x[i : i + 20]] for i in range(0, 80, 20)], tmp_path / "q.onnx")
    quantised = onnx.load(str(tmp_path / "q.onnx"))
    off = (run(quantised, x) - wanted).std() / wanted.std()
    assert off < {"int8": 0.12, "int4": 0.4, "fp16": 0.005}[precision]  # before: 0.16 to 0.39
    assert {p.key: p.value for p in quantised.metadata_props} == {"names": "cat,dog"} and quantised.doc_string == "ours"


def test_what_needs_no_change_gets_none():
    made = two_gemms()
    before = made.SerializeToString()
    normalise(made)
    assert made.SerializeToString() == before


def test_a_weight_that_one_layout_reads_stays_one():
    made = two_gemms(weight="shared")
    normalise(made)
    assert sum(len(item.dims) == 2 and tuple(item.dims) == (64, 64) for item in made.graph.initializer) == 1
    made = two_gemms(weight="shared", second=1)
    normalise(made)
    assert sum(tuple(item.dims) == (64, 64) for item in made.graph.initializer) == 2
