"""The ONNX side: shape computations, rules, cut against masked, and the importer against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import hwprune
from hwprune.errors import UsageError, WorkloadError
from hwprune.onnx_files import OnnxModule, tidy
from hwprune.onnx_files.template import Template
from hwprune.structure.onnx.graph import OnnxGraph
from tests.conftest import randomise
from tests.structure.torch.test_graph import MODELS, free_axes, relative


def run(model, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {node.name: np.asarray(x) for node, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def net(nodes, weights, shape=("n", 6), out=("n", 3), opset=17, dtype=TensorProto.FLOAT):
    """A model of nodes between input x and output y."""
    generator = np.random.default_rng(0)
    made = []
    for name, value in weights.items():
        array = generator.standard_normal(value).astype(np.float32) * 0.5 if isinstance(value, tuple) else value
        made.append(numpy_helper.from_array(np.asarray(array), name))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        made,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


N = helper.make_node
INTS = lambda *values: np.array(values, dtype=np.int64)  # noqa: E731


def shape_computations():
    """Reshape whose shape is computed as TorchScript exports do: Shape, Gather, Div, Concat."""
    return net(
        [
            N("MatMul", ["x", "w"], ["a"]),
            N("Shape", ["a"], ["s"]), N("Gather", ["s", "zero"], ["n"], axis=0), N("Gather", ["s", "one"], ["c"], axis=0),
            N("Div", ["c", "two"], ["half"]), N("Unsqueeze", ["n", "axis0"], ["n1"]), N("Unsqueeze", ["half", "axis0"], ["h1"]),
            N("Concat", ["n1", "two1", "h1"], ["shape"], axis=0), N("Reshape", ["a", "shape"], ["b"]),
            N("Transpose", ["b"], ["t"], perm=[0, 2, 1]), N("Relu", ["t"], ["r"]),
            N("Reshape", ["r", "back"], ["f"]), N("MatMul", ["f", "v"], ["y"]),
        ],
        {"w": (6, 8), "v": (8, 3), "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "axis0": INTS(0), "two1": INTS(2), "back": INTS(0, -1)},
    )  # fmt: skip


def scale_from_a_size():
    """Attention whose scale is computed from the size of the head, which a cut must not change."""
    return net(
        [
            N("MatMul", ["x", "wq"], ["q"]), N("MatMul", ["x", "wk"], ["k"]), N("MatMul", ["x", "wv"], ["v"]),
            N("Shape", ["q"], ["s"]), N("Gather", ["s", "last"], ["d"], axis=0), N("Cast", ["d"], ["df"], to=1), N("Sqrt", ["df"], ["root"]),
            N("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), N("MatMul", ["q", "kt"], ["qk"]), N("Div", ["qk", "root"], ["scores"]),
            N("Softmax", ["scores"], ["p"], axis=-1), N("MatMul", ["p", "v"], ["z"]), N("MatMul", ["z", "o"], ["y"]),
        ],
        {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8), "o": (8, 3), "last": np.int64(-1)}, ("n", 5, 6), ("n", 5, 3),
    )  # fmt: skip


def equal_split():
    return net(
        [N("MatMul", ["x", "w"], ["a"]), N("Split", ["a"], ["b", "c"], axis=1, num_outputs=2), N("MatMul", ["b", "v"], ["d"]),
         N("Sigmoid", ["c"], ["e"]), N("MatMul", ["e", "u"], ["f"]), N("Add", ["d", "f"], ["y"])],
        {"w": (6, 8), "v": (4, 3), "u": (4, 3)}, opset=18,
    )  # fmt: skip


def gemm_forms():
    return net(
        [N("Gemm", ["x", "w", "b"], ["a"], transB=1, alpha=0.5, beta=2.0), N("Relu", ["a"], ["r"]), N("Gemm", ["r", "v"], ["y"])],
        {"w": (8, 6), "b": (8,), "v": (8, 3)},
    )


def group_norm_by_instance_norm():
    """As exporters write it, with scales of ones that several norms share."""
    nodes = [N("Conv", ["x", "k"], ["a0"])]
    for i in range(2):
        nodes += [
            N("Reshape", [f"a{i}", "grouped"], [f"g{i}"]), N("InstanceNormalization", [f"g{i}", "ones", "zeros"], [f"n{i}"]),
            N("Reshape", [f"n{i}", "whole"], [f"b{i}"]), N("Mul", [f"b{i}", f"gain{i}"], [f"c{i}"]), N("Relu", [f"c{i}"], [f"d{i}"]),
            N("Conv", [f"d{i}", f"k{i}"], [f"a{i + 1}"]),
        ]  # fmt: skip
    nodes += [N("GlobalAveragePool", ["a2"], ["p"]), N("Flatten", ["p"], ["y"])]
    return net(
        nodes,
        {"k": (8, 3, 1, 1), "k0": (8, 8, 1, 1), "k1": (3, 8, 1, 1), "gain0": (8, 1, 1), "gain1": (8, 1, 1), "grouped": INTS(0, 2, -1),
         "whole": INTS(-1, 8, 6, 6), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)},
        ("n", 3, 6, 6),
    )  # fmt: skip


def quantised():
    """Weights and activations in QDQ form."""
    return net(
        [
            N("QuantizeLinear", ["x", "sx", "zx"], ["xq"]), N("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
            N("DequantizeLinear", ["wq", "sw", "zw"], ["w"], axis=0), N("Conv", ["xd", "w"], ["a"]), N("Relu", ["a"], ["r"]),
            N("QuantizeLinear", ["r", "sx", "zx"], ["rq"]), N("DequantizeLinear", ["rq", "sx", "zx"], ["rd"]),
            N("DequantizeLinear", ["vq", "sv", "zv"], ["v"], axis=0), N("Conv", ["rd", "v"], ["c"]),
            N("GlobalAveragePool", ["c"], ["p"]), N("Flatten", ["p"], ["y"]),
        ],
        {"sx": np.float32(0.05), "zx": np.uint8(128), "wq": np.random.default_rng(1).integers(-90, 90, (8, 3, 3, 3)).astype(np.int8),
         "sw": np.linspace(0.005, 0.02, 8).astype(np.float32), "zw": np.zeros(8, np.int8),
         "vq": np.random.default_rng(2).integers(-90, 90, (3, 8, 1, 1)).astype(np.int8), "sv": np.full(3, 0.02, np.float32), "zv": np.zeros(3, np.int8)},
        ("n", 3, 6, 6),
    )  # fmt: skip


def grouped_conv():
    return net(
        [N("Conv", ["x", "a"], ["h"]), N("Conv", ["h", "d"], ["i"], group=8, pads=[1, 1, 1, 1]), N("Clip", ["i", "low", "high"], ["j"]),
         N("Conv", ["j", "g"], ["k"], group=2), N("GlobalAveragePool", ["k"], ["p"]), N("Flatten", ["p"], ["q"]), N("MatMul", ["q", "v"], ["y"])],
        {"a": (8, 3, 1, 1), "d": (8, 1, 3, 3), "g": (6, 4, 1, 1), "v": (6, 3), "low": np.float32(0), "high": np.float32(6)}, ("n", 3, 6, 6),
    )  # fmt: skip


def strided_slices():
    return net(
        [
            N("MatMul", ["x", "w"], ["a"]),
            N("Slice", ["a", "start", "end", "axis", "step"], ["b"]),
            N("MatMul", ["b", "v"], ["y"]),
        ],
        {"w": (6, 8), "v": (4, 3), "start": INTS(-7), "end": INTS(8), "axis": INTS(1), "step": INTS(2)},
    )


def resized():
    return net(
        [N("Conv", ["x", "k"], ["a"]), N("Resize", ["a", "", "scales"], ["b"], mode="linear"), N("Conv", ["b", "k2"], ["c"]),
         N("GlobalAveragePool", ["c"], ["p"]), N("Flatten", ["p"], ["y"])],
        {"k": (8, 3, 1, 1), "k2": (3, 8, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}, ("n", 3, 6, 6),
    )  # fmt: skip


def gemm_with_a_column():
    return net([N("MatMul", ["x", "w"], ["a"]), N("Gemm", ["m", "v", "c"], ["b"]), N("MatMul", ["a", "b"], ["y"])],
               {"w": (6, 8), "m": (8, 4), "v": (4, 3), "c": (8, 1)})  # fmt: skip


def quantised_and_cast():
    """Removed entries of a quantised tensor are the zero point, not zero."""
    return net(
        [N("MatMul", ["x", "w"], ["a"]), N("QuantizeLinear", ["a", "s", "z"], ["q"]), N("Cast", ["q"], ["f"], to=1),
         N("ReduceSum", ["f", "last"], ["r"], keepdims=1), N("MatMul", ["r", "v"], ["y"])],
        {"w": (6, 8), "s": np.float32(0.05), "z": np.uint8(128), "last": INTS(-1), "v": (1, 3)},
    )  # fmt: skip


GRAPHS = {
    f.__name__: f
    for f in (
        shape_computations,
        scale_from_a_size,
        equal_split,
        gemm_forms,
        group_norm_by_instance_norm,
        quantised,
        grouped_conv,
        strided_slices,
        resized,
        gemm_with_a_column,
    )
}


def random_input(model, batch=3):
    shape = [dim.dim_value or batch for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def some(axes, seed):
    generator = torch.Generator().manual_seed(seed)
    keeps = {}
    for axis in axes:
        keep = torch.rand(axis.size, generator=generator) < 0.5
        keep[int(torch.randint(axis.size, (), generator=generator))] = True
        keeps[axis.name] = keep
    return keeps


@pytest.mark.parametrize("name", GRAPHS)
def test_cut_equals_masked_in_onnx_runtime(name):
    model = GRAPHS[name]()
    onnx.checker.check_model(model)
    graph = OnnxGraph(model)
    axes = free_axes(graph)
    assert axes, [axis.frozen for axis in graph.axes]
    x = random_input(model)
    assert relative(run(graph.cut({}), x), run(model, x)) < 1e-6
    for seed in range(4):
        keeps = some(axes, seed)
        cut = graph.cut(keeps)
        onnx.checker.check_model(cut)
        assert relative(run(cut, x), run(graph.mask(keeps), x)) < 1e-5
        size = [sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (cut, graph.model)]
        assert size[0] < size[1] or all(bool(keep.all()) for keep in keeps.values())
    every = some(free_axes(graph, exact=False), 9)
    run(graph.cut(every), x)


@pytest.mark.parametrize("name", GRAPHS)
def test_import_computes_what_the_runtime_computes(name):
    model = GRAPHS[name]()
    module = OnnxModule(OnnxGraph(model)).eval()
    for batch in (1, 4):
        x = random_input(model, batch)
        with torch.no_grad():
            assert relative(module(x), run(model, x)) < 1e-5


@pytest.mark.parametrize("name", sorted(set(GRAPHS) - {"quantised"}))
def test_an_imported_model_is_cut_and_written_from_its_own_file(name, tmp_path):
    model = GRAPHS[name]()
    module = OnnxModule(OnnxGraph(model)).eval()
    x = random_input(model)
    graph = hwprune.trace(module, (x[:1],))
    template = Template(graph, (x[:1],), module.onnx_graph, module.onnx_initializers)
    keeps = some(free_axes(graph, exact=False), 3)
    assert keeps
    small = graph.cut(keeps)
    assert template.write(small, keeps, tmp_path / "m.onnx")
    with torch.no_grad():
        assert relative(run(onnx.load(tmp_path / "m.onnx"), x), small(x)) < 1e-5


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["option-a", "fused", "gqa", "grouped", "torch"])
@pytest.mark.filterwarnings("ignore")
def test_exports_of_pytorch_are_read_back(name, dynamo, tmp_path):
    make, _ = MODELS[name]
    model, x = randomise(make()), torch.randn(2, 3, 8, 8)
    with tidy.quiet():
        if dynamo:
            torch.onnx.export(
                model, (x,), tmp_path / "m.onnx", dynamo=True, dynamic_shapes=({0: torch.export.Dim.AUTO},), verbose=False
            )
        else:
            torch.onnx.export(
                model, (x,), tmp_path / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}, opset_version=14
            )
    module = OnnxModule(OnnxGraph(onnx.load(tmp_path / "m.onnx"))).eval()
    y = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert relative(module(y), model(y)) < 1e-5
    mine = {(axis.role, axis.size) for axis in free_axes(hwprune.trace(module, (x,)))}
    theirs = {(axis.role, axis.size) for axis in free_axes(hwprune.trace(model, (x,)))}
    assert theirs <= mine


def test_external_data(tmp_path):
    model = gemm_forms()
    onnx.save(gemm_forms(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    graph = OnnxGraph(onnx.load(tmp_path / "m.onnx"))
    x = random_input(model)
    assert relative(run(graph.cut({}), x), run(model, x)) < 1e-6
    with pytest.raises(UsageError, match="external data"):
        OnnxGraph(onnx.load(tmp_path / "m.onnx", load_external_data=False))


def test_an_operator_without_a_rule_freezes_and_says_so():
    model = net(
        [N("MatMul", ["x", "w"], ["a"]), N("Hardmax", ["a"], ["h"]), N("MatMul", ["h", "v"], ["y"])], {"w": (6, 8), "v": (8, 3)}
    )
    graph = OnnxGraph(model)
    assert {axis.frozen for axis in graph.axes if axis.size == 8} == {"Hardmax (h): no rule for Hardmax"}
    x = torch.randn(4, 6)
    assert relative(OnnxModule(graph)(x), run(model, x)) < 1e-6  # it is computed all the same


def test_what_can_not_be_read_is_refused():
    with pytest.raises(UsageError, match="opset 11"):
        OnnxGraph(net([N("MatMul", ["x", "w"], ["y"])], {"w": (6, 3)}, opset=11))
    custom = net([N("MatMul", ["x", "w"], ["a"]), N("FusedThing", ["a"], ["y"], domain="com.example")], {"w": (6, 3)})
    custom.opset_import.append(helper.make_opsetid("com.example", 1))
    graph = OnnxGraph(custom)
    assert not free_axes(graph)
    with pytest.raises(WorkloadError, match="com.example::FusedThing"):
        OnnxModule(graph)


def test_batch_norm_is_folded_only_where_it_may():
    """Not where the convolution's output is read by something else too."""
    nodes = [N("Conv", ["x", "k"], ["a"]), N("BatchNormalization", ["a", "g", "b", "m", "v"], ["n"]), N("Add", ["n", "a"], ["s"]),
             N("Conv", ["s", "k2"], ["c"]), N("BatchNormalization", ["c", "g", "b", "m", "v"], ["d"]), N("GlobalAveragePool", ["d"], ["p"]), N("Flatten", ["p"], ["y"])]  # fmt: skip
    model = net(nodes, {"k": (8, 3, 1, 1), "k2": (8, 8, 1, 1), "g": (8,), "b": (8,), "m": (8,), "v": np.linspace(0.5, 2, 8).astype(np.float32)}, ("n", 3, 4, 4), ("n", 8))  # fmt: skip
    folded = tidy.fold(model)
    assert [node.op_type for node in folded.graph.node].count("BatchNormalization") == 1
    x = random_input(model)
    assert relative(run(folded, x), run(model, x)) < 1e-5


def test_quantised_zeros_are_not_zero():
    graph = OnnxGraph(quantised_and_cast())
    assert [axis.exact for axis in graph.axes if axis.size == 8 and not axis.frozen] == [False]


def test_arguments_are_no_axes():
    assert not any(name == "scales" for axis in OnnxGraph(resized()).axes if not axis.frozen for name, _ in axis.members)


def test_float_ranges_and_old_group_norms_are_read():
    OnnxGraph(net([N("Range", ["a", "b", "c"], ["r"]), N("Mul", ["x", "r"], ["m"]), N("MatMul", ["m", "w"], ["y"])],
                  {"a": np.float32(0), "b": np.float32(6), "c": np.float32(1), "w": (6, 3)}))  # fmt: skip
    norm = net([N("Conv", ["x", "k"], ["a"]), N("GroupNormalization", ["a", "g", "b"], ["n"], num_groups=2), N("Conv", ["n", "k2"], ["c"]), N("GlobalAveragePool", ["c"], ["p"]), N("Flatten", ["p"], ["y"])],
               {"k": (8, 3, 1, 1), "g": (8,), "b": (8,), "k2": (3, 8, 1, 1)}, ("n", 3, 4, 4), opset=21)  # fmt: skip
    assert {axis.size for axis in free_axes(OnnxGraph(norm), exact=False)} == {2, 4}


def test_sizes_computed_from_free_ones_are_fixed_to_the_example():
    """Height and width are free, and a stride halves them."""
    from hwprune.workload.onnx_file import import_module

    model = net([N("Conv", ["x", "k"], ["a"], strides=[2, 2]), N("Shape", ["a"], ["s"]), N("Reshape", ["a", "s"], ["b"]), N("GlobalAveragePool", ["b"], ["p"]), N("Flatten", ["p"], ["y"])],
                {"k": (3, 3, 2, 2)}, ("n", 3, "h", "w"))  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert relative(import_module(model, (x,))(x), run(model, x)) < 1e-5
