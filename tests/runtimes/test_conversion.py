"""Conversions: kept, made again when the file changes, checked, and survived."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hwprune import runtimes
from hwprune.deploy import converters, known_forms
from hwprune.errors import UsageError
from hwprune.runtimes import RuntimeSettings, conversion
from hwprune.runtimes.conversion import Converted, Signature, difference
from hwprune.runtimes.converter_process import ConversionError

SHAPE = (1, 3, 8, 8)


def write(path: Path, seed: int = 0, batch: int | str = "batch", activation: str = "Relu") -> Path:
    """A convolution and an activation, with a free batch, whose shape is computed by operators as exporters write it."""
    draw = np.random.default_rng(seed)
    weight = numpy_helper.from_array(draw.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    sizes = numpy_helper.from_array(np.array([-1], np.int64), "minus_one")
    zero = numpy_helper.from_array(np.array([0], np.int64), "zero")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="conv"),
        helper.make_node(activation, ["c"], ["a"], name="activation"),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "minus_one"], ["target"], axis=0),
        helper.make_node("Reshape", ["a", "target"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", 1, [batch, 3, 8, 8])
    y = helper.make_tensor_value_info("y", 1, [batch, 256])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, sizes, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), str(path))
    return path


def computed(path: Path, x: np.ndarray) -> np.ndarray:
    """By the operators' definitions, without a runtime."""
    from onnx.reference import ReferenceEvaluator

    (out,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    return out


def usable(name: str):
    runtime = runtimes.get(name)
    if reason := runtime.missing():
        pytest.skip(reason)
    return runtime


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch):
    monkeypatch.setattr(conversion, "_REFUSED", {})


def test_is_kept_and_made_again_when_the_file_changes(tmp_path):
    runtime = usable("mnn")
    path = write(tmp_path / "model.onnx")
    first = runtime.convert(path, (SHAPE,))
    stamp = (first.folder / "model.mnn").stat().st_mtime_ns
    assert (runtime.convert(path, (SHAPE,)).folder / "model.mnn").stat().st_mtime_ns == stamp
    write(path, seed=1)
    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    (out,) = runtime.load(path, RuntimeSettings(shapes=(SHAPE,))).run([x])
    np.testing.assert_allclose(out, computed(path, x), atol=1e-4)
    assert not list(tmp_path.glob("**/.*")), "a partial folder was left"


def test_other_shapes_have_a_conversion_of_their_own(tmp_path):
    runtime = usable("mnn")
    path = write(tmp_path / "model.onnx")
    folders = {runtime.convert(path, ((n, *SHAPE[1:]),)).folder.name for n in (1, 4)}
    assert folders == {"1x3x8x8", "4x3x8x8"}


@pytest.mark.parametrize("name", ["mnn", "ncnn"])
def test_a_file_that_computes_something_else_is_refused(name, tmp_path):
    runtime = usable(name)
    path, other = write(tmp_path / "model.onnx"), write(tmp_path / "other.onnx", seed=1)
    made, wrong = runtime.convert(path, (SHAPE,)), runtime.convert(other, (SHAPE,))
    for file in runtime.files:
        (made.folder / file).write_bytes((wrong.folder / file).read_bytes())
    with pytest.raises(ConversionError, match=r"computes something else than the ONNX file: output y differs by"):
        runtime.load(path, RuntimeSettings(shapes=(SHAPE,)))


def test_expected_outputs_are_those_of_the_definitions(tmp_path):
    """What everything is compared with comes from the folded model; the definitions say what the model as it was computes."""
    path = write(tmp_path / "model.onnx")
    signature = converters.fix_sizes(path, [list(SHAPE)], tmp_path / "fixed.onnx", tmp_path / "expected.npz")
    with np.load(tmp_path / "expected.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["out000"], computed(path, arrays["in000"]), atol=1e-5)
    assert signature == {"inputs": [["x", "float32", list(SHAPE)]], "outputs": [["y", "float32", [1, 256]]]}
    folded = onnx.load(str(tmp_path / "fixed.onnx"))
    assert "Shape" not in {node.op_type for node in folded.graph.node}
    assert {node.domain for node in folded.graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize(
    ("name", "operator", "text"),
    [
        ("ncnn", "Det", r"ncnn has no layer Det \(node activation\)"),
        ("executorch", "Det", r"PyTorch has no operator Det \(node activation\)"),
        ("mnn", "Det", "computes something else"),  # its converter says nothing
    ],
)
def test_refused_operators_are_named(name, operator, text, tmp_path):
    runtime = usable(name)
    x, y = helper.make_tensor_value_info("x", 1, SHAPE), helper.make_tensor_value_info("y", 1, SHAPE[:2])
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="first"), helper.make_node(operator, ["r"], ["y"], name="activation")]
    path = tmp_path / "model.onnx"
    graph = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), str(path))
    with pytest.raises(ConversionError, match=text) as caught:
        runtime.load(path, RuntimeSettings(shapes=(SHAPE,)))
    if name != "mnn":
        assert caught.value.refused == [{"operator": operator, "name": "activation"}]


def test_changes_are_seen_wherever_they_are(tmp_path):
    """Weights in a file of another name, names that a shell would expand, folders that look like the file's own."""
    runtime = usable("tract")
    x, y = (helper.make_tensor_value_info(name, 1, [1, 3]) for name in "xy")
    path = tmp_path / "model[1].onnx"
    (tmp_path / "model[1].onnx.d").mkdir()
    for factor in (2.0, 5.0):
        weight = numpy_helper.from_array(np.full((1, 3), factor, np.float32), "w")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        made = runtime.convert(path, ((1, 3),))
        given, wanted = conversion.expected(made)
        np.testing.assert_allclose(wanted[0], factor * given[0], rtol=1e-6)


def test_each_runtime_is_checked_for_itself(tmp_path, monkeypatch):
    """tract and ONNX Runtime Web read the same form; that the one computes right says nothing of the other."""
    from hwprune.runtimes import tract

    runtime, other = usable("tract"), usable("onnxruntime-web")
    path = write(tmp_path / "model.onnx")
    other.load(path, RuntimeSettings(shapes=(SHAPE,)))
    real = tract.TractRunner._infer
    monkeypatch.setattr(tract.TractRunner, "_infer", lambda self, arrays: [7 * x for x in real(self, arrays)])
    with pytest.raises(ConversionError, match="tract computes something else"):
        runtime.load(path, RuntimeSettings(shapes=(SHAPE,)))


def two_inputs(path: Path) -> Path:
    """``y = x * s`` with a single number s, and an input that nothing reads."""
    infos = [helper.make_tensor_value_info("x", 1, [1, 3]), helper.make_tensor_value_info("unread", 7, [1, 2])]
    infos.append(helper.make_tensor_value_info("s", 1, []))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "s"], ["y"])], "g", infos, [helper.make_tensor_value_info("y", 1, [1, 3])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("name", ["tract", "mnn", "litert", "executorch", "onnxruntime-web"])
def test_single_numbers_and_unread_inputs(name, tmp_path):
    runtime = usable(name)
    runner = runtime.load(two_inputs(tmp_path / "model.onnx"), RuntimeSettings(shapes=((1, 3), (1, 2), ())))
    given = [np.array([[1.0, 2.0, 3.0]], np.float32), np.zeros((1, 2), np.int64), np.array(4.0, np.float32)]
    runner.bind(given)()
    np.testing.assert_allclose(runner.run(given)[0], [[4.0, 8.0, 12.0]])


def test_sizes_of_every_input_count(tmp_path):
    usable("mnn")
    path = two_inputs(tmp_path / "model.onnx")
    folders = {conversion.convert("onnx", path, [(1, 3), (1, n), ()]).folder.name for n in (2, 4)}
    assert len(folders) == 2


def test_forms_that_converters_know_compute_the_same(tmp_path):
    x = np.array([[[[1.0, np.nan, -np.inf, 0.0], [np.inf, 2.0, np.nan, 3.0]] * 2]], np.float32)
    steps = {"starts": [0, 0], "ends": [9, 2**31], "axes": [2, -1], "steps": [2, 3]}
    stored = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in steps.items()]
    nodes = [
        helper.make_node("IsNaN", ["x"], ["nan"], name="guard"),
        helper.make_node("Slice", ["x", *steps], ["part"], name="s"),
    ]
    outputs = [helper.make_tensor_value_info("nan", 9, x.shape), helper.make_tensor_value_info("part", 1, (1, 1, 2, 2))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, x.shape)], outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    onnx.save(model, str(tmp_path / "before.onnx"))
    assert known_forms.nan_tests_as_comparisons(model) == 1
    assert known_forms.strided_slices_as_pools(model) == 1
    assert {node.op_type for node in model.graph.node} == {"Equal", "Not", "MaxPool"}
    onnx.save(model, str(tmp_path / "after.onnx"))
    given = {"x": np.nan_to_num(x, nan=5.0)}  # a pool may lose a NaN; a slice of one is of no use to anybody
    for name in ("before", "after"):
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(["nan"], {"x": x})[0], np.isnan(x))
        np.testing.assert_array_equal(session.run(["part"], given)[0], given["x"][:, :, ::2, ::3])
    short = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    short.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 0], np.int64), "starts"))
    assert known_forms.strided_slices_as_pools(short) == 0, "one that begins elsewhere stays"


def fake_process(folder: Path, body: str) -> str:
    """A Python that runs ``body`` in place of the converter; REQUEST holds the line that it was sent."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\nimport json, os, signal, sys, time\nREQUEST = sys.stdin.readline()\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_hanging_converter_is_ended_once_and_remembered(tmp_path, monkeypatch):
    path = write(tmp_path / "model.onnx")
    monkeypatch.setenv("HWPRUNE_MNN_PYTHON", fake_process(tmp_path, "open('pid', 'w').write(str(os.getpid())); time.sleep(600)"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match=r"ended after 1 s"):
        conversion.convert("mnn", path, [SHAPE], limit_s=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    (tmp_path / "pid").unlink()
    with pytest.raises(ConversionError, match=r"ended after 1 s"):
        conversion.convert("mnn", path, [SHAPE], limit_s=1.0)
    assert not (tmp_path / "pid").exists(), "it was tried again"


def test_dying_converter_is_an_error_and_the_next_one_works(tmp_path, monkeypatch):
    usable("mnn")
    path = write(tmp_path / "model.onnx")
    monkeypatch.setenv("HWPRUNE_MNN_PYTHON", fake_process(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(ConversionError, match=f"died \\(exit code -{signal.SIGSEGV.value}\\)"):
        conversion.convert("mnn", path, [SHAPE])
    monkeypatch.delenv("HWPRUNE_MNN_PYTHON")
    monkeypatch.setattr(conversion, "_REFUSED", {})
    assert (conversion.convert("mnn", path, [SHAPE]).folder / "model.mnn").is_file()


def test_python_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HWPRUNE_MNN_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="HWPRUNE_MNN_PYTHON names"):
        conversion.convert("mnn", write(tmp_path / "model.onnx"), [SHAPE])


def test_mnn_converts_without_its_makers_command(tmp_path):
    """``mnnconvert`` installs a package and reports the model's digest and size over the network."""
    usable("mnn")
    (tmp_path / "out").mkdir()
    request = {"kind": "mnn", "source": str(write(tmp_path / "m.onnx")), "shapes": [SHAPE], "folder": str(tmp_path / "out")}
    import subprocess

    code = (
        "import json, sys\nfrom hwprune.deploy import converters\n"
        f"answer = converters.answer(json.loads({json.dumps(json.dumps(request))}))\n"
        "assert 'error' not in answer, answer\n"
        "print(sorted(name for name in sys.modules if name.startswith(('MNN.tools', 'aliyun'))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_differences_are_relative_to_the_largest_entry():
    one = np.array([1.0, 100.0])
    assert difference(one + np.array([0.0, 1.0]), one) == pytest.approx(0.01)
    assert difference(one[:1], one) == float("inf")
    assert difference(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 0.0
    assert difference(np.array([np.inf]), np.array([1.0])) == float("inf")
    assert difference(np.array([1e-6]), np.array([0.0])) == pytest.approx(1e-4)


def test_check_wants_every_output(tmp_path):
    np.savez(tmp_path / "expected.npz", allow_pickle=False, in000=np.zeros(1), out000=np.ones(1), out001=np.ones(1))
    shape = ("y", "float64", (1,))
    made = Converted(tmp_path, Signature((("x", "float64", (1,)),), (shape, shape)), {})
    conversion.check(made, [np.ones(1), np.ones(1)], "it")
    with pytest.raises(ConversionError, match="gives 1 outputs, the ONNX file 2"):
        conversion.check(made, [np.ones(1)], "it")
    with pytest.raises(ConversionError, match="output y differs by 1 "):
        conversion.check(made, [np.ones(1), np.zeros(1)], "it")
