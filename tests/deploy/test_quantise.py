"""Quantised files: what they hold, that pruning survives, and what can't be."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwprune.deploy import onnx_quantisers, quantise
from hwprune.errors import CandidateFailure, UnknownNameError, UsageError
from hwprune.latency import fingerprint
from hwprune.pruning.pruner import Pruner
from hwprune.runtimes import sparsity
from tests.conftest import randomise

rng = np.random.default_rng(0)


def linear(weight: np.ndarray, bias: np.ndarray | None = None, gemm: bool = False, **settings) -> onnx.ModelProto:
    """y = x W (+ b), one node."""
    rows = weight.shape[1] if settings.get("transB") else weight.shape[0]
    inputs = ["x", "w"] + (["b"] if bias is not None else [])
    node = helper.make_node("Gemm" if gemm else "MatMul", inputs, ["y"], name="layer", **settings)
    stored = [numpy_helper.from_array(weight, "w")] + ([numpy_helper.from_array(bias, "b")] if bias is not None else [])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def data(rows, columns=128):
    return rng.standard_normal((rows, columns)).astype(np.float32)


def test_eight_bits_keep_zeros_and_the_n_of_m_pattern(tmp_path):
    weight = data(128, 64)
    groups = np.abs(weight.T.reshape(64, 32, 4))
    keep = groups.argsort(-1).argsort(-1) >= 2
    weight = (weight.T.reshape(64, 32, 4) * keep).reshape(64, 128).T.copy()
    x = data(64)
    facts = quantise.quantise(linear(weight), "int8", lambda: [[x]], tmp_path / "m.onnx")
    assert (facts.layers, facts.weighted, facts.examples) == (1, 1, 64) and len(facts.calibration) == 64
    assert facts.zeros >= 1.0
    (layout,) = sparsity.layouts(tmp_path / "m.onnx", 2, 4)
    assert layout.fits and layout.groups == 64 * 32
    stored = next(numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer if len(i.dims) == 2)
    assert stored.dtype == np.int8 and not stored[weight == 0].any()
    # Per channel: an eighth bit of each column's own largest weight, and of the largest activation.
    step = np.abs(weight).max(0) / 127 + np.abs(x).max() / 127
    assert (np.abs(run(tmp_path / "m.onnx", x) - x @ weight) < step * 128 * 3).all()


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("turned", [0, 1])
def test_four_bits_take_a_gemm_as_well(tmp_path, turned, biased):
    weight = data(128, 96)
    bias = data(1, 96)[0] if biased else None
    model = linear(weight.T.copy() if turned else weight, bias, gemm=True, transB=turned)
    x = data(5)
    facts = quantise.quantise(model, "int4", lambda: [], tmp_path / "m.onnx")
    assert (facts.layers, facts.examples) == (1, 0)
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "MatMulNBits" in kinds and "Gemm" not in kinds
    wanted = x @ weight + (bias if biased else 0)
    # Round to nearest in blocks of 32 with 16 levels: each weight is off by at most half a step of its block.
    steps = np.abs(weight.reshape(4, 32, 96)).max(1, keepdims=True).repeat(32, 1).reshape(128, 96) / 8
    bound = np.abs(x) @ steps + np.abs(wanted) * 0.05 + 0.05 * np.abs(x).max()
    assert (np.abs(run(tmp_path / "m.onnx", x) - wanted) < bound).all()
    assert (tmp_path / "m.onnx").stat().st_size < weight.nbytes / 4


def test_a_small_layer_stays_as_it_is_and_nothing_quantised_is_a_failure(tmp_path):
    with pytest.raises(CandidateFailure, match="none of the model's 1 weighted operators can be held in int4"):
        quantise.quantise(linear(data(32, 16)), "int4", lambda: [], tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_products_of_two_activations_stay_in_32_bits(tmp_path):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)

    x = torch.randn(2, 5, 32)
    from hwprune.onnx_files import to_onnx

    model = to_onnx.exported(randomise(Attention()), (x,))
    facts = quantise.quantise(model, "int8", lambda: [[x.numpy()]], tmp_path / "m.onnx")
    assert (facts.layers, facts.weighted) == (3, 3)
    made = onnx.load(tmp_path / "m.onnx")
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    plain = [node for node in made.graph.node if node.op_type == "MatMul" and makers.get(node.input[1]) != "DequantizeLinear"]
    assert len(plain) == 2


def test_a_convolutional_network_runs_in_eight_bits_from_end_to_end(tmp_path, tiny):
    pruner = Pruner(tiny)
    pruner.template.write(pruner.graph.module, {}, tmp_path / "dense.onnx", ())
    x = torch.cat([inputs[0] for inputs, _ in tiny.batches("validation")]).numpy()
    before = (tmp_path / "dense.onnx").read_bytes()
    model = onnx.load_from_string(before)
    for precision, tolerance in (("int8", 0.05), ("fp16", 5e-3)):
        facts = quantise.quantise(model, precision, lambda: [[x]], tmp_path / f"{precision}.onnx")
        assert facts.layers == facts.weighted == 4
        name = model.graph.input[0].name
        got, wanted = (
            onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {name: x})[0]
            for p in (tmp_path / f"{precision}.onnx", tmp_path / "dense.onnx")
        )
        assert np.abs(got - wanted).max() < tolerance * np.abs(wanted).max()
    assert model.SerializeToString() == onnx.load_from_string(before).SerializeToString()  # the caller's model is left alone


def test_gpus_get_signed_activations_without_a_zero_point(tmp_path):
    x = data(16)
    quantise.quantise(linear(data(128, 64)), "int8", lambda: [[x]], tmp_path / "m.onnx", onnx_quantisers.Integers(symmetric=True))
    made = onnx.load(tmp_path / "m.onnx")
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    points = [stored[node.input[2]] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert points and all(point.dtype == np.int8 and not point.any() for point in points)


@pytest.mark.parametrize(("saturating", "most"), [(False, 127), (True, 64)])
def test_kernels_that_would_overflow_get_weights_of_seven_bits(tmp_path, saturating, most):
    x = data(16)
    integers = onnx_quantisers.Integers(saturating=saturating)
    facts = quantise.quantise(linear(data(128, 64)), "int8", lambda: [[x]], tmp_path / "m.onnx", integers)
    stored = [numpy_helper.to_array(item) for item in onnx.load(tmp_path / "m.onnx").graph.initializer]
    largest = max(int(np.abs(array.astype(int)).max()) for array in stored if array.dtype == np.int8 and array.ndim == 2)
    assert largest == most and facts.bits == (7 if saturating else 8)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse avx avx2", True), ("avx2 avx512f", True), ("avx2 avx512f avx512_vnni", False), ("avx2 avx_vnni", False), ("", False)],
)
def test_cpus_whose_kernels_overflow(monkeypatch, flags, expected):
    monkeypatch.setattr(fingerprint, "_cpuinfo", lambda: {"flags": flags})
    assert fingerprint.saturates() is expected


def test_names_are_checked():
    assert quantise.parse(" int8, int4") == ("int8", "int4") and quantise.parse("") == ()
    with pytest.raises(UnknownNameError, match="int8"):
        quantise.parse("int7")
    with pytest.raises(UsageError, match="twice"):
        quantise.parse("int8,int8")


def test_a_quantiser_that_raises_is_a_failure_with_its_reason(tmp_path, monkeypatch):
    import onnxruntime.quantization

    def broken(*_args, **_kwargs):
        raise RuntimeError("no kernel today\nand more")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", broken)
    with pytest.raises(CandidateFailure, match="int8: RuntimeError: no kernel today$"):
        quantise.quantise(linear(data(128, 64)), "int8", lambda: [[data(4)]], tmp_path / "m.onnx")


# -- what a review found ------------------------------------------------------------------------------


def test_nodes_without_names_are_quantised_too(tmp_path):
    """An ONNX file need not name its nodes, and quantisers tell nodes apart by nothing else."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    stored = [numpy_helper.from_array(data(128, 128), "a"), numpy_helper.from_array(data(128, 16), "b")]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 128])], [value("y", 1, ["n", None])], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert quantise.quantise(model, "int8", lambda: [[data(8)]], tmp_path / "8.onnx").layers == 2
    assert quantise.quantise(model, "int4", lambda: [], tmp_path / "4.onnx").layers == 2


def test_a_model_with_a_fixed_batch_is_calibrated_by_whole_batches(tmp_path):
    model = linear(data(128, 64))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 100
    facts = quantise.quantise(model, "int8", lambda: [[data(100)]] * 4, tmp_path / "m.onnx")
    assert facts.layers == 1 and facts.examples == 300  # the first batches that hold 256


def test_zeros_of_four_bits_are_counted(tmp_path):
    weight = data(128, 64)
    weight[:64] = 0
    facts = quantise.quantise(linear(weight), "int4", lambda: [], tmp_path / "m.onnx")
    assert facts.zeros >= 1.0  # round to nearest makes some more


def test_a_weight_that_is_shared_both_ways_round_is_not_confused(tmp_path):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "w"], ["y"], transB=1)]
    weight = data(128, 128)
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", 128])], [value("y", 1, ["n", None])], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantise.quantise(model, "int4", lambda: [], tmp_path / "m.onnx")
    x = data(4)
    wanted = x @ weight @ weight.T
    assert np.abs(run(tmp_path / "m.onnx", x) - wanted).max() < 0.3 * np.abs(wanted).max()
