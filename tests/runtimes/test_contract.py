"""What every runtime must do, run over all of them; those that this machine lacks are skipped with their own reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from hwprune import runtimes
from hwprune.errors import UnknownNameError, UsageError
from hwprune.onnx_files import to_onnx
from hwprune.runtimes import RUNTIMES, RuntimeSettings
from hwprune.runtimes.base import OWN_TIMERS
from tests.conftest import TinyNet, randomise

CPU = [name for name, one in RUNTIMES.items() if one.device == "cpu" and not one.file.endswith(".gguf")]
GPU = [name for name, one in RUNTIMES.items() if one.device == "cuda"]
MARKED = [*CPU, *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU)]
SHAPES = ((2, 1, 8, 8),)
WITHOUT_PROFILER = ("onnxruntime-ep", "ncnn", "mnn", "litert", "executorch", "onnxruntime-web")
"""Their Python packages have none, or none that can be switched on when a model is loaded."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One model in both formats, inputs, and PyTorch's own outputs."""
    folder = tmp_path_factory.mktemp("runtimes")
    model = randomise(TinyNet())
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    to_onnx.to_onnx(model, (x,), folder / "model.onnx")
    to_onnx.to_pt2(model, (x,), folder / "model.pt2")
    with torch.no_grad():
        return folder, x.numpy(), model(x).numpy()


@pytest.fixture(params=MARKED)
def runtime(request):
    one = RUNTIMES[request.param]
    if reason := one.missing():
        pytest.skip(reason)
    return one


def load(runtime, files, **settings):
    # ONNX Runtime's own CPU provider goes by the way of the plug-ins, too.
    if runtime.name == "onnxruntime-ep":
        settings.setdefault("options", {"provider": "CPUExecutionProvider"})
    return runtime.load(files[0] / runtime.file, RuntimeSettings(shapes=SHAPES, **settings))


def test_computes_what_pytorch_computes(runtime, files):
    (out,) = load(runtime, files).run([files[1]])
    np.testing.assert_allclose(out, files[2], rtol=1e-3, atol=1e-3)
    assert out.dtype == np.float32


def test_other_batch_sizes_run(runtime, files):
    _, x, expected = files
    (out,) = load(runtime, files).run([np.concatenate([x, x, x[:1]])])
    np.testing.assert_allclose(out, np.concatenate([expected, expected, expected[:1]]), rtol=1e-3, atol=1e-3)


def test_bound_call_needs_no_arguments_and_can_be_repeated(runtime, files):
    runner = load(runtime, files)
    call = runner.bind([files[1]])
    for _ in range(3):
        call()
    np.testing.assert_allclose(runner.run([files[1]])[0], files[2], rtol=1e-3, atol=1e-3)


def test_surplus_inputs_are_ignored_and_missing_ones_refused(runtime, files):
    runner = load(runtime, files)
    if runtime.file.endswith(".onnx"):
        runner.run([files[1], files[1]])
    with pytest.raises(Exception, match="."):  # each library has its own types
        runner.run([])


def test_wrong_shape_is_refused(runtime, files):
    with pytest.raises(Exception, match="."):  # each library has its own types
        load(runtime, files).run([np.zeros((2, 3, 8, 8), np.float32)])


def test_unreadable_file_is_refused(runtime, files, tmp_path):
    path = tmp_path / runtime.file
    path.write_bytes(b"not a model")
    with pytest.raises(Exception, match="."):  # each library has its own types
        runtime.load(path, RuntimeSettings(shapes=SHAPES))


def test_inputs_are_left_as_they_are(runtime, tmp_path):
    """A model that begins with an activation, which some runtimes compute in place; the arrays of a file are read-only."""
    if not runtime.file.endswith(".onnx"):
        pytest.skip("no ONNX")
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(1, 2, 1)).eval()
    x = -np.ones((2, 1, 4, 4), np.float32)
    to_onnx.to_onnx(model, (torch.from_numpy(x.copy()),), tmp_path / "model.onnx")
    x.flags.writeable = False
    options = {"provider": "CPUExecutionProvider"} if runtime.name == "onnxruntime-ep" else {}
    runner = runtime.load(tmp_path / "model.onnx", RuntimeSettings(shapes=(x.shape,), options=options))
    call = runner.bind([x])
    for _ in range(3):
        call()
    assert (x == -1).all()
    np.testing.assert_allclose(runner.run([x])[0], model(torch.from_numpy(-np.ones_like(x))).detach().numpy(), atol=1e-5)


def test_profile_lists_operators_with_times(runtime, files):
    operators = load(runtime, files).profile([files[1]], 5)
    if runtime.name in WITHOUT_PROFILER:
        assert operators == []
        return
    assert operators
    assert all(op.seconds >= 0 and op.name for op in operators)
    assert sum(op.seconds for op in operators) > 0


def test_timer_and_clock_agree(runtime, files):
    settings = RuntimeSettings(shapes=SHAPES)
    timer = load(runtime, files).timer([files[1]])
    assert runtime.clock(settings) in ("wall", "thread_cpu", *OWN_TIMERS)
    assert (timer is not None) == (runtime.clock(settings) in OWN_TIMERS)
    assert runtime.clock(RuntimeSettings(threads=4)) != "thread_cpu"  # other threads' work would not be counted
    if timer is not None:
        assert timer(20) > timer(1) > 0


def test_facts_are_json(runtime, files):
    import json

    json.dumps(load(runtime, files).facts())


def test_table_is_complete():
    for name, one in RUNTIMES.items():
        assert one.name == name
        assert one.device in ("cpu", "cuda")
        assert "fp32" in one.precisions
        assert one.version()
        assert one.file in ("model.onnx", "model.pt2", "model.gguf")
    with pytest.raises(UnknownNameError, match="Did you mean 'openvino'"):
        runtimes.get("openvin")


@pytest.mark.parametrize("name", [name for name in GPU if name.startswith("onnxruntime")])
def test_provider_that_is_not_there_is_an_error_and_no_fallback(name, files):
    one = RUNTIMES[name]
    if one.missing() is None:
        pytest.skip("it is there")
    assert "pip install" in one.missing()
    with pytest.raises(Exception, match=r"fell back|not available|not in available|Provider|Unknown|fallback"):
        one.load(files[0] / "model.onnx", RuntimeSettings(shapes=SHAPES))


def test_openvino_precisions_change_the_result_but_not_much(files):
    one = RUNTIMES["openvino"]
    if reason := one.missing():
        pytest.skip(reason)
    half = load(one, files, precision="bf16").run([files[1]])[0]
    np.testing.assert_allclose(half, files[2], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino"])
def test_quantised_model_runs_as_integers(name, files, tmp_path):
    """int8 is what the file says by Q/DQ nodes; the profile must show integer kernels."""
    from onnxruntime import quantization

    one = RUNTIMES[name]
    if reason := one.missing():
        pytest.skip(reason)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{onnx.load(str(files[0] / "model.onnx")).graph.input[0].name: files[1]}])

        def get_next(self):
            return next(self.rows, None)

    quantization.quantize_static(
        str(files[0] / "model.onnx"), str(tmp_path / "model.onnx"), Reader(), per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    runner = one.load(tmp_path / "model.onnx", RuntimeSettings(precision="int8", shapes=SHAPES))
    np.testing.assert_allclose(runner.run([files[1]])[0], files[2], rtol=0.3, atol=0.3 * np.abs(files[2]).max())
    names = " ".join(f"{op.kind} {op.kernel}" for op in runner.profile([files[1]], 3))
    assert "QLinearConv" in names or "_I8" in names, names


def test_pytorch_mode_is_checked(files):
    with pytest.raises(ValueError, match="not one of eager, compile, cuda-graph"):
        load(RUNTIMES["pytorch-cpu"], files, options={"mode": "fast"})
    with pytest.raises(ValueError, match="needs the runtime pytorch-cuda"):
        load(RUNTIMES["pytorch-cpu"], files, options={"semi_structured": True})
    with pytest.raises(ValueError, match="pt2"):
        RUNTIMES["pytorch-cpu"].load(files[0] / "model.onnx", RuntimeSettings())


@pytest.mark.slow
def test_pytorch_compiled_computes_the_same(files):
    out = load(RUNTIMES["pytorch-cpu"], files, options={"mode": "compile"})
    call = out.bind([files[1]])
    call()
    np.testing.assert_allclose(out.run([files[1]])[0], files[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "names neither a library nor a provider"),
        ({"provider": "NoExecutionProvider"}, "finds no device of its own on this machine; ONNX Runtime offers CPUExecution"),
        ({"provider": "CPUExecutionProvider", "device_type": "npu"}, "of type NPU"),
        ({"library": "/nowhere/plugin.so"}, "there is no library"),
        ({"library": "json"}, "neither a library's path nor a package"),
    ],
)
def test_plugin_that_is_not_there_is_told(options, text, files):
    one = RUNTIMES["onnxruntime-ep"]
    if reason := one.missing():
        pytest.skip(reason)
    with pytest.raises(UsageError, match=text):
        load(one, files, options=options)


def test_plugin_tells_who_runs_the_nodes(files):
    one = RUNTIMES["onnxruntime-ep"]
    if reason := one.missing():
        pytest.skip(reason)
    facts = load(one, files).facts()
    assert facts["provider"] == "CPUExecutionProvider"
    assert facts["nodes"]["CPUExecutionProvider"] >= 3


@pytest.mark.gpu
def test_semi_structured_weights_run_sparse_and_close():
    one = RUNTIMES["pytorch-cuda"]
    if reason := one.missing():
        pytest.skip(reason)
    import tempfile
    from pathlib import Path

    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 128)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.view(-1, 4)[:, 2:] = 0
    x = torch.randn(64, 256)
    with tempfile.TemporaryDirectory() as folder:
        to_onnx.to_pt2(model, (x,), Path(folder) / "model.pt2")
        settings = RuntimeSettings(precision="fp16", options={"semi_structured": True}, shapes=((64, 256),))
        runner = one.load(Path(folder) / "model.pt2", settings)
    assert len(runner.facts()["semi_structured"]) == 2
    with torch.no_grad():
        np.testing.assert_allclose(runner.run([x.numpy()])[0], model(x).numpy(), rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "compile", "cuda-graph"])
def test_pytorch_modes_on_the_gpu(mode, files):
    one = RUNTIMES["pytorch-cuda"]
    if reason := one.missing():
        pytest.skip(reason)
    runner = load(one, files, options={"mode": mode})
    assert runner.timer([files[1]])(10) > 0
    np.testing.assert_allclose(runner.run([files[1]])[0], files[2], rtol=1e-2, atol=1e-2)


@pytest.mark.tensorrt
def test_tensorrt_tells_of_sparse_tactics(tmp_path):
    one = RUNTIMES["tensorrt"]
    if reason := one.missing():
        pytest.skip(reason)
    model = torch.nn.Sequential(torch.nn.Conv2d(256, 256, 3, padding=1), torch.nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[:, 0::4] = 0
        model[0].weight[:, 1::4] = 0
    x = torch.randn(8, 256, 14, 14)
    to_onnx.to_onnx(model, (x,), tmp_path / "model.onnx")
    to_onnx.convert(tmp_path / "model.onnx", "fp16")
    settings = RuntimeSettings(precision="fp16", shapes=((8, 256, 14, 14),), cache=str(tmp_path))
    (row,) = one.load(tmp_path / "model.onnx", settings).facts()["sparsity"]
    assert row["two_four"]
    assert row["built"]
    assert row["sparse"] or row["why_not"]
    assert list(tmp_path.glob("*.timing"))
