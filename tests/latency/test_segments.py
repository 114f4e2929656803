"""Segments: a partition of the graph, each piece computing what it computes inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwprune.errors import UsageError
from hwprune.latency.operator_versions import USUAL_OPSETS
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.structure.torch.analyse import trace
from hwprune.workload import demos
from tests.conftest import TinyNet, randomise


def exported(model, x, tmp_path):
    return onnx.load(str(to_onnx.to_onnx(model.eval(), (x,), tmp_path / "model.onnx")))


def run(model, feed):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize("name", ["tiny", "digits-vit"])
def test_pieces_put_together_compute_the_model(name, tmp_path):
    """Every node once, and the pieces run one after the other give the model's own output."""
    if name == "tiny":
        model, x = randomise(TinyNet()), torch.randn(1, 1, 8, 8)
    else:
        workload = demos.get(name)
        model, x = trace(workload.model, workload.example_inputs).module, workload.example_inputs[0]
    whole = exported(model, x, tmp_path)
    pieces = split(whole, [tuple(x.shape)])
    weights = {item.name: item for item in whole.graph.initializer}
    values = {whole.graph.input[0].name: x.numpy()}
    for piece in pieces:
        own = piece.model()
        for item in own.graph.initializer:  # random weights are for timing; here the true ones go in
            if item.name in weights:
                item.CopyFrom(weights[item.name])
        outputs = run(own, {key: values[key] for key in piece.inputs})
        for key, value in zip(piece.outputs, outputs, strict=True):
            assert value.shape == piece.tensors[key].shape
            values[key] = value
    (expected,) = run(whole, {whole.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(values[whole.graph.output[0].name], expected, rtol=1e-4, atol=1e-5)
    assert len(pieces) > 3


def test_random_weights_run_alone(tmp_path):
    for piece in split(exported(randomise(TinyNet()), torch.randn(1, 1, 8, 8), tmp_path), [(1, 1, 8, 8)]):
        outputs = run(piece.model(), dict(zip(piece.inputs, piece.samples(), strict=True)))
        assert all(np.isfinite(value).all() for value in outputs)


def test_signature_is_shape_and_wiring_not_weights(tmp_path):
    def of(model, size=8):
        return [
            piece.signature for piece in split(exported(model, torch.randn(1, 1, size, size), tmp_path), [(1, 1, size, size)])
        ]

    base = of(randomise(TinyNet(), 0))
    assert base == of(randomise(TinyNet(), 1))
    assert base != of(randomise(TinyNet(), 0), 16)
    same = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())])
    found = [p.signature for p in split(exported(same, torch.randn(1, 4, 8, 8), tmp_path), [(1, 4, 8, 8)])]
    assert len(found) == 3
    assert len(set(found)) == 1  # three equal layers are one entry of the table
    other = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, stride=1), nn.Sigmoid())
    assert split(exported(other, torch.randn(1, 4, 8, 8), tmp_path), [(1, 4, 8, 8)])[0].signature not in found


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "gemm"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), (1, 8, 10, 10), 10 * 10 * 16 * 8 * 9, (1, 100, 16, 72)),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 10 * 10 * 8 * 9, (8, 100, 1, 9)),
        (nn.Conv2d(8, 16, 3, stride=2), (2, 8, 9, 9), 2 * 4 * 4 * 16 * 72, (1, 32, 16, 72)),
        (nn.Linear(12, 5), (3, 12), 3 * 12 * 5, (1, 3, 5, 12)),
        (nn.Linear(12, 5), (2, 7, 12), 2 * 7 * 12 * 5, (1, 14, 5, 12)),
    ],
)
def test_work_is_counted_in_closed_form(layer, shape, macs, gemm, tmp_path):
    (piece,) = split(exported(layer, torch.randn(*shape), tmp_path), [shape])
    assert piece.macs == macs
    assert piece.gemm == gemm
    elements = int(np.prod(shape)) + sum(p.numel() for p in layer.parameters())
    assert piece.nbytes == 4 * (elements + np.prod(layer(torch.randn(*shape)).shape))


def test_shapes_that_do_not_fit_are_told(tmp_path):
    model = exported(randomise(TinyNet()), torch.randn(1, 1, 8, 8), tmp_path)
    with pytest.raises(UsageError, match="has shape"):
        split(model, [(1, 3, 8, 8)])
    with pytest.raises(UsageError, match="takes 1 inputs, 0"):
        split(model, [])


def test_graph_with_shape_arithmetic_and_constants():
    """Shape -> Slice -> Reshape is folded once the shapes are known; constants of shapes keep their values."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["y"], name="flat"),
    ]
    stored = [
        numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w"), numpy_helper.from_array(np.int64(0), "zero"),
        numpy_helper.from_array(np.array([0], np.int64), "axes"), numpy_helper.from_array(np.array([-1], np.int64), "rest"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    pieces = split(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), [(3, 1, 4, 4)])
    last = pieces[-1]
    assert last.tensors[last.outputs[0]].shape == (3, 32)
    for piece in pieces:
        run(piece.model(), dict(zip(piece.inputs, piece.samples(), strict=True)))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resizing_keeps_its_scales(mode, tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 2, 1))
    pieces = split(exported(model, torch.randn(1, 2, 4, 4), tmp_path), [(1, 2, 4, 4)])
    assert pieces[-1].tensors[pieces[-1].outputs[0]].shape == (1, 2, 8, 8)
    for piece in pieces:
        run(piece.model(), dict(zip(piece.inputs, piece.samples(), strict=True)))


def test_constants_in_every_form_are_no_inputs():
    nodes = [
        helper.make_node("Constant", [], ["a"], value_ints=[0]),
        helper.make_node("Cast", ["b"], ["b64"], to=TensorProto.INT64),
        helper.make_node("Concat", ["a", "b64"], ["target"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="m"),
        helper.make_node("Reshape", ["m", "target"], ["y"], name="r"),
    ]
    stored = [numpy_helper.from_array(np.array([-1], np.int32), "b"), numpy_helper.from_array(np.ones((8, 128), np.float32), "w")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    (piece,) = split(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert piece.inputs == ("x",)
    assert run(piece.model(), {"x": piece.samples()[0]})[0].shape == (2, 512)


def test_half_precision_files_are_sorted_and_split(tmp_path):
    path = to_onnx.to_onnx(randomise(TinyNet()), (torch.randn(1, 1, 8, 8),), tmp_path / "model.onnx")
    to_onnx.convert(path, "fp16")
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    pieces = split(model, [(1, 1, 8, 8)])
    assert any(tensor.kind == TensorProto.FLOAT16 for piece in pieces for tensor in piece.weights)
    for piece in pieces:
        run(piece.model(), dict(zip(piece.inputs, piece.samples(), strict=True)))


def test_tables_of_embeddings_are_not_read_whole(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(1000, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.out(self.table(x))

    ids = torch.zeros(1, 5, dtype=torch.int64)
    pieces = split(exported(Words(), ids, tmp_path), [(1, 5)])
    assert sum(tensor.elements for piece in pieces for tensor in piece.weights) == 8 * 4 + 4
    assert max(piece.nbytes for piece in pieces) < 1000


def test_signatures_of_what_hwprune_exports_are_those_of_stored_tables(tmp_path):
    """A change here makes every stored table useless: all its segments would be measured again."""
    assert USUAL_OPSETS[""] == to_onnx.OPSET
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False))
    pieces = split(exported(layers, torch.randn(1, 4, 8, 8), tmp_path), [(1, 4, 8, 8)])
    assert [piece.signature for piece in pieces] == ["ec08f34e446eea5f68df", "a860dfee8a568e7ae64b"]
