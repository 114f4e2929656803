"""What the maker of an ONNX file wrote into it is in the files that are made of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.cli.main import main

DRAW = np.random.default_rng(0)
NODES = (
    ("Conv", ["x", "w1", "b1"], ["c1"]), ("Relu", ["c1"], ["r1"]), ("Conv", ["r1", "w2", "b2"], ["c2"]), ("Relu", ["c2"], ["r2"]),
    ("GlobalAveragePool", ["r2"], ["p"]), ("Flatten", ["p"], ["f"]), ("Gemm", ["f", "w3", "b3"], ["y"]),
)  # fmt: skip


def made(path, kind=np.float32, names=None, io=None):
    shapes = {"w1": (24, 3, 3, 3), "b1": (24,), "w2": (24, 24, 3, 3), "b2": (24,), "w3": (24, 5), "b3": (5,)}
    arrays = {name: (DRAW.standard_normal(shape) * 0.2).astype(kind) for name, shape in shapes.items()}
    nodes = [helper.make_node(op, list(inputs), outputs, f"n{i}") for i, (op, inputs, outputs) in enumerate(NODES)]
    for node in nodes:
        node.input[:] = [(names or {}).get(name, name) for name in node.input]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", element, ["n", 3, 10, 10])],
        [helper.make_tensor_value_info("y", element, ["n", 5])],
        [numpy_helper.from_array(array, (names or {}).get(name, name)) for name, array in arrays.items()], doc_string="a graph",
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, {"names": "{0: 'cat', 1: 'dog'}", "stride": "32"})
    proto.doc_string, proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "ours", "we", "3", "org", 7
    onnx.save(proto, str(path))
    np.savez(path.parent / "data.npz", x=DRAW.standard_normal((40, 3, 10, 10)).astype(kind))
    return proto


def applied(folder):
    words = ["apply", "channel=0.5", str(folder / "m.onnx"), "--data", str(folder / "data.npz"), "--out", str(folder / "out")]
    assert main([*words, "--quiet"]) == 0
    path = folder / "out" / "model.onnx"
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return onnx.load(str(path))


def notes(proto):
    return (
        {p.key: p.value for p in proto.metadata_props}, proto.doc_string, proto.graph.doc_string, proto.producer_name,
        proto.producer_version, proto.domain, proto.model_version,
    )  # fmt: skip


@pytest.mark.parametrize("template", [True, False])
def test_notes_are_kept(tmp_path, template, monkeypatch):
    wanted = notes(made(tmp_path / "m.onnx"))
    if not template:  # the file is exported from the module
        monkeypatch.setattr("hwprune.onnx_files.template.Template.model", lambda *_: None)
    assert notes(applied(tmp_path)) == wanted


@pytest.mark.parametrize(
    "names",
    [
        {"w1": "enc", "w2": "enc.w", "b1": "enc.w.q", "b2": "a..b", "w3": "a.b.", "b3": "training"},
        {"w1": "net.0", "b1": "net", "w2": "net.0.weight", "b2": "w", "w3": "w.", "b3": ".w"},
        {"w1": "forward", "b1": "parameters", "w2": "eval", "b2": "0", "w3": "onnx_graph", "b3": "c.d/e:f"},
        {"w1": "c1_", "b1": "r1.", "w2": "x.x", "b2": "y_y", "w3": "Conv", "b3": "mean"},
    ],
)
def test_names_that_are_legal_in_onnx(tmp_path, names):
    """One is the prefix of another, has empty parts, or is called like a method of a module."""
    wanted = {names[name] for name in ("w1", "w2", "w3", "b1", "b2", "b3")}
    made(tmp_path / "m.onnx", names=names)
    assert {item.name for item in applied(tmp_path).graph.initializer} == wanted


def test_sixteen_bits(tmp_path):
    """Rounding in 16 bits is no operator that was understood wrongly."""
    made(tmp_path / "m.onnx", np.float16)
    found = applied(tmp_path)
    assert {item.data_type for item in found.graph.initializer} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_opsets_are_converted_and_said(tmp_path, opset, capsys):
    proto = made(tmp_path / "m.onnx")
    proto.opset_import[0].version, proto.ir_version = opset, 4
    onnx.save(proto, str(tmp_path / "m.onnx"))
    found = applied(tmp_path)
    assert found.opset_import[0].version == 17 and notes(found) == notes(proto)
    assert f"has opset {opset}: it is converted to 17" in capsys.readouterr().err
    x = np.load(tmp_path / "data.npz")["x"]
    before, after = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (tmp_path / "m.onnx", tmp_path / "out" / "model.onnx")
    )
    assert (after - before).std() < 0.7 * before.std()
