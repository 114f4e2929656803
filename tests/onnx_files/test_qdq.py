"""Files quantised in QDQ form: read, cut and written again with whole-number weights, in every form that the quantiser has."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import hwprune
from hwprune.onnx_files import qdq
from hwprune.pruning.pruner import Pruner
from hwprune.workload import onnx_file
from tests.conftest import TinyNet, randomise

FORMS = {
    "per tensor": {"weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8},
    "per channel": {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8, "per_channel": True},
    "unsigned": {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8},
}


STEPS = 0.05
"""What whole-number kernels, which round at other places, may be off from their simulation."""


class Reader(CalibrationDataReader):
    def __init__(self, data):
        self.left = iter(data)

    def get_next(self):
        part = next(self.left, None)
        return None if part is None else {"x": part}


@pytest.fixture(scope="module", params=FORMS)
def quantised(request, tmp_path_factory):
    """(file, inputs) of TinyNet in INT8."""
    folder = tmp_path_factory.mktemp("qdq")
    data = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.onnx.export(
        randomise(TinyNet()), (data[:2],), str(folder / "float.onnx"), dynamo=True, verbose=False, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )  # fmt: skip
    path = folder / "int8.onnx"
    quantize_static(
        str(folder / "float.onnx"), str(path), Reader(part.numpy() for part in data[:32].split(8)),
        quant_format=QuantFormat.QDQ, **FORMS[request.param],
    )  # fmt: skip
    return path, data


def run(model, x):
    given = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    return onnxruntime.InferenceSession(given).run(None, {"x": x.numpy()})[0]


def test_folding_gives_the_file_back(quantised):
    path, data = quantised
    before = onnx.load(str(path))
    after = qdq.folded(qdq.unfolded(before))
    mine = {item.name: onnx.numpy_helper.to_array(item) for item in after.graph.initializer}
    for item in before.graph.initializer:
        assert np.array_equal(mine[item.name], onnx.numpy_helper.to_array(item)), item.name
        assert mine[item.name].dtype == onnx.numpy_helper.to_array(item).dtype
    assert np.array_equal(run(after, data), run(path, data))


@torch.no_grad()
def test_cut_like_floating_point_ones_and_delivered_in_whole_numbers(quantised, tmp_path):
    path, data = quantised
    batches = [((part,), None) for part in data.split(8)]
    workload = onnx_file.load(path, {"validation": batches}, {}, None)
    assert np.abs(workload.model(data).numpy() - run(path, data)).max() < STEPS * np.abs(run(path, data)).max()
    pruner = Pruner(workload)
    free = [axis for axis in pruner.graph.axes if axis.frozen is None]
    assert {axis.size for axis in free} == {8, 64}
    assert all(axis.exact for axis in free)
    for axis in free:
        keep = {axis.name: torch.arange(axis.size) % 2 == 0}
        small = pruner.graph.cut(keep)
        assert torch.allclose(small(data), pruner.graph.mask(keep)(data), atol=1e-5)
        written = pruner.template.model(small, keep)
        assert written is not None
        assert np.abs(run(written, data) - small(data).numpy()).max() < STEPS * np.abs(small(data).numpy()).max()
        kinds = {item.name: item.data_type for item in written.graph.initializer if len(item.dims) > 1}
        assert set(kinds.values()) <= {TensorProto.INT8, TensorProto.UINT8}
        names = {item.name for item in onnx.load(str(path)).graph.initializer}
        assert set(kinds) <= names
        assert not [node for node in written.graph.node if node.name.startswith(qdq.MARK)]


def test_a_search_delivers_an_int8_file(quantised, tmp_path):
    path, data = quantised
    with torch.no_grad():
        labels = torch.from_numpy(run(path, data)).argmax(1)
    batches = list(zip([(part,) for part in data.split(8)], labels.split(8), strict=True))
    workload = onnx_file.load(path, {"validation": batches, "test": batches}, {"metric": "top1"}, None)
    result = hwprune.search(workload, trials=3, out=tmp_path / "run", seed=0)
    assert [trial for trial in result.trials if trial.state == "measured"], [trial.failure for trial in result.trials]


def test_gradients_pass_where_the_range_is_not_left():
    x = torch.tensor([-9.0, -0.31, 0.2, 9.0], requires_grad=True)
    y = torch.ops.hwprune.fake_quantize(x, torch.tensor(0.1), torch.tensor(3, dtype=torch.uint8), 0, 255, 0)
    assert torch.allclose(y, torch.tensor([-0.3, -0.3, 0.2, 9.0]))
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_rounded_as_the_runtime_rounds(dtype):
    """Ties to even, and numbers beyond the range."""
    x = np.array([[0.05, 0.15, -0.25, 40.0], [0.25, -0.35, -40.0, 0.1]], np.float32)
    scale, point = np.array([0.1, 0.05], np.float32), np.array([1, 0], dtype)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])], [helper.make_tensor_value_info("q", kind, [2, 4])],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(point, "z")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    wanted = run(model, torch.from_numpy(x))
    assert np.array_equal(qdq.quantise(x, scale, point, axis=0), wanted)
    steps = torch.ops.hwprune.fake_quantize(
        torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(point), np.iinfo(dtype).min, np.iinfo(dtype).max, 0
    )
    assert np.allclose(steps.numpy(), qdq.dequantise(wanted, scale, point, axis=0))
