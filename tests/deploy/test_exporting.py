"""What is handed over computes what was measured."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwprune.common.files import dump_json, sha256
from hwprune.deploy import layout
from hwprune.deploy.exporting import export_run, whole_batches
from hwprune.deploy.point import Options
from hwprune.deploy.verify import verify
from hwprune.errors import RunError, UsageError
from tests.deploy.helpers import checks


def edited(folder, change):
    """A copy whose manifest was made to fit what ``change`` does to it."""

    def make(target):
        copy = shutil.copytree(folder, target)
        change(copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"] = {name: sha256(copy / name) for name in manifest["files"]}
        (copy / "manifest.json").write_text(dump_json(manifest))
        return copy

    return make


def test_a_conversion_that_computes_something_else_is_never_handed_over(finished_run, number, tmp_path, monkeypatch):
    import onnx.version_converter

    def wrong(model, opset):
        for item in model.graph.initializer:
            if len(item.dims) == 1 and item.data_type == onnx.TensorProto.FLOAT:
                item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) + 1, item.name))
        return model

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(RunError, match="differs from the measured model"):
        export_run(finished_run, number, "onnx", tmp_path / "out", options=Options(opset=18))
    assert not (tmp_path / "out").exists()


def test_a_fixed_batch_takes_whole_batches_only():
    arrays = {
        "00000.input0": np.arange(5),
        "00000.target": np.arange(5),
        "00001.input0": np.arange(2),
        "00001.target": np.arange(2),
    }
    made = whole_batches(arrays, 2)
    assert [list(made[f"{n:06d}.input0"]) for n in range(3)] == [[0, 1], [2, 3], [0, 1]] and len(made) == 6
    assert list(whole_batches({"00000.input0": np.arange(2)}, 5, repeat=True)["000000.input0"]) == [0, 1, 0, 1, 0]
    with pytest.raises(UsageError, match="smaller --batch"):
        whole_batches(arrays, 6)


def test_a_wrong_opset_conversion_is_found(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "onnx", tmp_path / "out")

    def wrong(copy):  # as a converter does that knows ReduceMean's axes as an attribute only: the mean is of something else
        model = onnx.load(copy / "model.onnx")
        node = next(n for n in model.graph.node if n.op_type == "ReduceMean")
        node.op_type = "ReduceMax"
        onnx.save(model, copy / "model.onnx")

    passed, found = checks(edited(folder, wrong)(tmp_path / "copy"))
    assert not passed and found["integrity"].passed and not found["parity"].passed


def test_swapped_labels_of_an_export_are_found(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "onnx", tmp_path / "out")

    def swapped(copy):
        with np.load(copy / "samples.npz") as stored:
            arrays = {n: (stored[n] + 1) % 4 if n.endswith("target") else stored[n] for n in stored.files}
        np.savez(copy / "samples.npz", **arrays)

    passed, found = checks(edited(folder, swapped)(tmp_path / "copy"))
    assert not passed and found["parity"].passed and not found["metric"].passed


def test_a_slower_runtime_is_found(finished_run, number, tmp_path):
    """The same answers, four times the work: every convolution is computed four times and averaged."""
    folder = export_run(finished_run, number, "onnx", tmp_path / "out")

    def slower(copy):
        model = onnx.load(copy / "model.onnx")
        nodes = []
        for node in model.graph.node:
            nodes.append(node)
            if node.op_type != "Conv":
                continue
            output = node.output[0]
            parts = []
            for turn in range(12):  # weights of their own, or the runtime would compute them once
                again = onnx.NodeProto.FromString(node.SerializeToString())
                again.name, again.output[0] = f"{node.name}.{turn}", f"{output}.{turn}"
                weight = next(i for i in model.graph.initializer if i.name == node.input[1])
                mine = numpy_helper.from_array(
                    numpy_helper.to_array(weight) * np.float32(1 + turn * 1e-7), f"{weight.name}.{turn}"
                )
                model.graph.initializer.append(mine)
                again.input[1] = mine.name
                parts.append(again.output[0])
                nodes.append(again)
            node.output[0] = f"{output}.first"
            nodes.append(onnx.helper.make_node("Mean", [f"{output}.first", *parts], [output], name=f"{node.name}.mean"))
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        onnx.save(model, copy / "model.onnx")

    passed, found = checks(edited(folder, slower)(tmp_path / "copy"))
    assert passed and found["latency"].passed is False


def test_a_broken_group_of_two_in_four_is_found(tmp_path):
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    weight.reshape(8, 4, 4)[:, :, :2] = 0

    def written(values):
        node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [node], "g", [value("x", 1, [1, 16])], [value("y", 1, [1, 8])], [numpy_helper.from_array(values, "w")]
        )
        onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    recorded = layout.describe(written(weight), ["2:4:permuted", "channel"])
    assert recorded == {"zeros": {"w": 0.5}, "n_of_m": {"2:4": ["w"]}}
    assert layout.faults(tmp_path / "m.onnx", recorded) == []
    weight[0, 0], weight[0, 2] = 1.0, 0.0  # as many zeros as before, one group no longer 2:4 (three of its weights? no: two)
    weight[1, 0] = 1e-6
    (sparser, broken) = layout.faults(written(weight), recorded)
    assert "w has 49.2 % zeros, recorded 50.0 %" in sparser
    assert "w is no longer 2:4: 1 of 32 groups keep more than 2 of 4" in broken


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tolerance": 1e9}, "tolerance must be"),
        ({"tolerance": "x"}, "tolerance must be"),
        ({"tolerance": float("nan")}, "tolerance must be"),
    ],
)
def test_a_manifest_does_not_allow_anything(finished_run, number, tmp_path, change, words):
    folder = export_run(finished_run, number, "onnx", tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UsageError, match=words):
        verify(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    passed, found = checks(folder)
    assert not passed and "does not list model.onnx, dense.onnx" in found["integrity"].text


def test_weights_beside_the_dense_model_and_the_candidates_are_kept_apart(finished_run, number, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    for folder in (run / "baseline", run / "candidates" / str(number)):
        model = onnx.load(folder / "model.onnx")
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    folder = export_run(run, number, "onnx", tmp_path / "out")
    assert {"model.onnx.data", "dense.onnx.data"} <= {path.name for path in folder.iterdir()}
    assert checks(folder)[0]
