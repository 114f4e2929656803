"""GatherND as PyTorch computes it, beside ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from hwprune.onnx_files import OnnxModule
from hwprune.structure.onnx.graph import OnnxGraph


@pytest.mark.parametrize(
    ("x", "index", "batch"),
    [((3, 4, 5), (3, 2, 1), 1), ((3, 4, 5, 2), (3, 2, 1), 1), ((3, 4), (3, 2, 1), 1), ((3, 4, 5), (3, 2), 1), ((4, 5), (3, 2), 0),
     ((3, 4, 5, 2), (3, 4, 2, 1), 2), ((3, 4, 5), (3, 6, 2), 1)],
)  # fmt: skip
def test_batches_and_depths(x: tuple[int, ...], index: tuple[int, ...], batch: int) -> None:
    draw = np.random.default_rng(0)
    places = np.stack(
        [draw.integers(-x[batch + k], x[batch + k], index[:-1]) for k in range(index[-1])], axis=-1
    )  # negative ones count from the end
    node = helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=batch)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x), helper.make_tensor_value_info("i", TensorProto.INT64, index)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    values = draw.standard_normal(x).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(None, {"x": values, "i": places})
    made = OnnxModule(OnnxGraph(model)).eval()(torch.from_numpy(values), torch.from_numpy(places))
    np.testing.assert_array_equal(made.numpy(), wanted)
