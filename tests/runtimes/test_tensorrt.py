"""Every TensorRT name and signature that hwprune uses, against the published bindings.

The bindings (tensorrt_cu13_bindings) link against libnvinfer, which only NVIDIA's index has. Stubs compiled here let them be imported; nothing
can be built with those, but classes, flags and signatures are the real ones.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hwprune.runtimes import tensorrt as ours
from hwprune.runtimes import tensorrt_sparsity

STUBS = {
    "nvinfer": ["createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
                "getBuilderPluginRegistry", "getPluginRegistry", "getInferLibVersion"],
    "nvinfer_plugin": ["initLibNvInferPlugins"],
    "nvonnxparser": ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"],
}  # fmt: skip

PROBE = """
import json, sys
import tensorrt_bindings as trt
def describe(path):
    value = trt
    for part in path.split("."):
        value = getattr(value, part, None)
        if value is None:
            return None
    return (getattr(value, "__doc__", "") or "x")[:2000]
print(json.dumps({name: describe(name) for name in json.load(sys.stdin)} | {"": trt.__version__}))
"""

# variable in the source -> class of the bindings
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig", "tensor": "ITensor",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "plan": "IHostMemory", "_engine": "ICudaEngine",
    "_context": "IExecutionContext", "inspector": "EngineInspector",
}  # fmt: skip


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Names -> documentation of the real bindings, None for what isn't there."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt_cu13_bindings is not installed")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stubs")
    for library, symbols in STUBS.items():
        source = folder / f"{library}.c"
        source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols))
        name = f"lib{library}.so.11"
        subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / name), f"-Wl,-soname,{name}"], check=True)

    def run(names):
        done = subprocess.run(
            [sys.executable, "-c", PROBE], input=json.dumps(sorted(names)), capture_output=True, text=True,
            env={"LD_LIBRARY_PATH": str(folder), "PATH": ""}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-500:]
        return json.loads(done.stdout)

    return run


def used():
    """(dotted names below ``trt``, attributes by class) in the source of the runtime."""
    tree = ast.parse(Path(ours.__file__).read_text())
    dotted, members = set(), {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        parts, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            parts.append(inner.id)
        parts.reverse()
        if "trt" in parts or "_trt" in parts:
            start = parts.index("trt") if "trt" in parts else parts.index("_trt")
            if parts[start + 1 :] and not parts[start + 1].startswith("__"):
                dotted.add(".".join(parts[start + 1 :]))
        elif len(parts) >= 2 and parts[-2] in OBJECTS and parts[0] in (*OBJECTS, "self"):
            members.setdefault(OBJECTS[parts[-2]], set()).add(parts[-1])
    return dotted, members


def test_the_source_is_read_as_expected():
    dotted, members = used()
    assert {
        "BuilderFlag.SPARSE_WEIGHTS",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser",
        "ILogger",
        "IProfiler",
    } <= dotted
    assert {"set_flag", "create_timing_cache", "set_timing_cache", "get_timing_cache"} <= members["IBuilderConfig"]
    assert {"execute_async_v3", "set_tensor_address", "set_input_shape"} <= members["IExecutionContext"]


def test_every_name_exists_in_the_published_bindings(ask):
    dotted, members = used()
    names = dotted | {f"{owner}.{name}" for owner, found in members.items() for name in found}
    found = ask(names)
    assert sorted(name for name in names if found[name] is None) == []
    assert len(names) > 40


# how hwprune calls it: positional arguments after self
CALLS = {
    "Builder.create_network": 1, "Builder.create_builder_config": 0, "Builder.create_optimization_profile": 0,
    "OnnxParser.parse_from_file": 1, "OnnxParser.get_error": 1, "IBuilderConfig.set_flag": 1,
    "IBuilderConfig.set_memory_pool_limit": 2, "IBuilderConfig.create_timing_cache": 1, "IBuilderConfig.set_timing_cache": 2,
    "IBuilderConfig.get_timing_cache": 0, "IBuilderConfig.add_optimization_profile": 1, "INetworkDefinition.get_input": 1,
    "IOptimizationProfile.set_shape": 4, "ITimingCache.serialize": 0, "ITimingCache.combine": 2, "Runtime.deserialize_cuda_engine": 1,
    "ICudaEngine.create_execution_context": 0, "ICudaEngine.create_engine_inspector": 0, "ICudaEngine.get_tensor_name": 1,
    "ICudaEngine.get_tensor_mode": 1, "ICudaEngine.get_tensor_dtype": 1, "ICudaEngine.get_tensor_shape": 1,
    "IExecutionContext.set_input_shape": 2, "IExecutionContext.set_tensor_address": 2, "IExecutionContext.get_tensor_shape": 1,
    "IExecutionContext.execute_async_v3": 1, "EngineInspector.get_engine_information": 1,
}  # fmt: skip


def arity(text: str) -> set[int]:
    """Numbers of arguments after self that a pybind11 docstring allows, all overloads."""
    found = set()
    for line in text.splitlines():
        if "(self" not in line or "->" not in line:
            continue
        inside = line[line.index("(") + 1 : line.rindex(") ->")]
        depth, parts, current = 0, [], ""
        for letter in inside:
            depth += letter in "[(<"
            depth -= letter in "])>"
            if letter == "," and depth == 0:
                parts.append(current)
                current = ""
            else:
                current += letter
        parts.append(current)
        rest = parts[1:]
        needed = sum("=" not in part for part in rest)
        found |= set(range(needed, len(rest) + 1))
    return found


def test_every_call_has_the_signature_of_the_published_bindings(ask):
    found = ask(CALLS)
    for name, count in CALLS.items():
        allowed = arity(found[name] or "")
        assert count in allowed, f"{name} takes {sorted(allowed)} arguments, hwprune gives {count}: {found[name][:200]}"


def test_methods_that_are_overridden_have_the_parameters_of_the_base(ask):
    found = ask({"ILogger.log", "IProfiler.report_layer_time"})
    assert "severity" in found["ILogger.log"] and "msg" in found["ILogger.log"]
    assert "layer_name" in found["IProfiler.report_layer_time"] and "ms" in found["IProfiler.report_layer_time"]


def test_published_version_is_the_one_that_was_read(ask):
    assert ask({"Builder"})[""].startswith("11.")


# -- what needs no TensorRT ------------------------------------------------------------------


def test_sparsity_is_read_from_the_log():
    log = tensorrt_sparsity.SparsityLog()
    log.read("(Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv1, conv2 + relu")
    log.read("(Sparsity) Chose 1 layer(s) using sparse tactics: conv1")
    log.read("[MemUsageChange] nothing of interest")
    assert log.found == {"conv1", "conv2 + relu"}
    assert log.chosen == {"conv1"}
    assert log.counts == {"Found": 2, "Chose": 1}


INSPECTED = {
    "Layers": [
        {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_sparse_conv_f16", "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"},
        {"Name": "conv2", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_fprop", "Metadata": "[ONNX Layer: conv2]"},
        "a layer of which only the name is known",
    ]
}  # fmt: skip


def test_inspector_and_verdicts_say_why_not():
    from hwprune.runtimes.sparsity import Layout

    layers = tensorrt_sparsity.inspected(json.dumps(INSPECTED))
    assert [layer["nodes"] for layer in layers] == ["conv1 relu1", "conv2", ""]
    log = tensorrt_sparsity.SparsityLog()
    log.read("(Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv1, conv2")
    log.read("(Sparsity) Chose 1 layer(s) using sparse tactics: conv1")
    fits = [Layout(name, "Conv", "w", 4, 0, True, "") for name in ("conv1", "conv2", "conv3")]
    rows = tensorrt_sparsity.verdicts(
        [*fits, Layout("stem", "Conv", "w", 0, 0, False, "its 3 inputs are not a multiple of 4")], log, layers
    )
    by = {row["node"]: row for row in rows}
    assert by["conv1"] == {"node": "conv1", "two_four": True, "eligible": True, "built": True, "sparse": True, "why_not": ""}
    assert by["conv2"]["eligible"] and not by["conv2"]["sparse"]
    assert "found a dense tactic faster" in by["conv2"]["why_not"]
    assert not by["conv3"]["eligible"] and "did not list it" in by["conv3"]["why_not"]
    assert by["stem"]["why_not"] == "its 3 inputs are not a multiple of 4"
