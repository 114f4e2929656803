"""NVIDIA's parser and builder, without a GPU: what builds, what does not, and which operator is to blame."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune import runtimes
from hwprune.cli import main
from hwprune.deploy import quantise
from hwprune.deploy.build_check import ToBuild, check_builds, files_of
from hwprune.deploy.onnx_quantisers import Integers
from hwprune.errors import UnavailableError, UsageError
from hwprune.onnx_files import tidy
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.records.record import read_record
from hwprune.runtimes import tensorrt_rtx
from hwprune.workload import demos, scoring
from tests.searching.networks import CifarResNet

TARGET = "rtx-4090"
GPU = Integers(symmetric=True)
make = onnx.helper.make_node


@pytest.fixture
def builder():
    if reason := tensorrt_rtx.missing():
        pytest.skip(reason)


@pytest.fixture
def good(tmp_path):
    with tidy.quiet(), torch.no_grad():
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
        torch.onnx.export(model, (torch.zeros(1, 3, 8, 8),), tmp_path / "good.onnx", dynamo=True, verbose=False)
    return tmp_path / "good.onnx"


@pytest.fixture
def refused(tmp_path):
    """Sums into places: an operator that TensorRT knows, in a form that it does not."""
    info = onnx.helper.make_tensor_value_info
    nodes = [make("Relu", ["x"], ["y"], name="first"),
             make("ScatterElements", ["y", "places", "y"], ["out"], name="sums", axis=1, reduction="add")]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", onnx.TensorProto.FLOAT, [2, 4])], [info("out", onnx.TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(np.zeros((2, 4), np.int64), "places")],
    )  # fmt: skip
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "refused.onnx"
    )
    return tmp_path / "refused.onnx"


@pytest.mark.usefixtures("builder")
def test_a_model_builds_for_cards_that_are_elsewhere(good, tmp_path, capsys):
    assert main.main(["check", str(good), "--target", "rtx-4090,t4", "--out", str(tmp_path / "engines"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["targets"]
    engines = {path.name: path.stat().st_size for path in (tmp_path / "engines").iterdir()}
    assert engines == {
        f"good.onnx.sm{capability}.engine": told[name]["good.onnx"]["engine_bytes"]
        for name, capability in ((TARGET, 89), ("t4", 75))
    }
    assert all(size > 10_000 for size in engines.values())


@pytest.mark.usefixtures("builder")
def test_the_operator_that_is_to_blame_is_named(refused, good, capsys):
    assert main.main(["check", str(refused), "--target", TARGET]) == 1
    told = capsys.readouterr().out
    assert "does not build" in told and "ScatterElements sums: " in told and "not how fast it is" in told
    found = check_builds([ToBuild("a", refused), ToBuild("b", good)], targets.load(TARGET))
    assert [one.builds for one in found.values()] == [False, True]  # one that fails keeps nobody else from it
    assert [(node["operator"], node["name"]) for node in found["a"].refused] == [("ScatterElements", "sums")]


@pytest.mark.usefixtures("builder")
def test_a_runs_points_and_its_dense_model_are_built(finished_run, capsys):
    points = [str(point.trial) for point in read_record(finished_run).front]
    assert main.main(["check", str(finished_run), "--target", "l4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["targets"]["l4"]
    assert list(told) == ["dense", *points] and all(one["builds"] for one in told.values())


@pytest.mark.usefixtures("builder")
def test_it_is_built_in_the_precision_of_the_target(good, monkeypatch):
    built, real = [], tensorrt_rtx.build_ahead

    def seen(path, *more):
        built.append({item.data_type for item in onnx.load(path, load_external_data=False).graph.initializer})
        return real(path, *more)

    monkeypatch.setattr(tensorrt_rtx, "build_ahead", seen)
    assert check_builds([ToBuild("a", good)], targets.load(TARGET))["a"].builds
    assert onnx.TensorProto.FLOAT16 in built[0] and onnx.TensorProto.FLOAT not in built[0]
    assert onnx.TensorProto.FLOAT in {item.data_type for item in onnx.load(good).graph.initializer}  # the user's own stays


@pytest.mark.usefixtures("builder")
def test_a_builder_that_hangs_or_dies_is_told(good, tmp_path, monkeypatch):
    assert "ended after 0.01 s" in tensorrt_rtx.build_ahead(good, 89, [], limit_s=0.01).reason
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert not tensorrt_rtx.build_ahead(tmp_path / "broken.onnx", 89, []).builds
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nexit 139\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    assert "died (exit code 139)" in tensorrt_rtx.build_ahead(good, 89, []).reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["good.onnx", "--target", "cpu-pytorch"], "cpu-pytorch can't be checked with a file alone"),
        (["good.onnx", "--target", "h100"], "compute capability 9.0; TensorRT for RTX builds for 7.5"),
        (["good.onnx", "--target", TARGET, "--shape", "1,b"], "--shape takes sizes such as"),
        (["none.onnx", "--target", TARGET], "there is no file"),
    ],
)
@pytest.mark.usefixtures("builder")
def test_what_can_not_be_is_one_message(good, words, message, capsys, monkeypatch):
    monkeypatch.chdir(good.parent)
    assert main.main(["check", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_the_builder_the_way_to_it_is_told(good, monkeypatch):
    monkeypatch.setattr(tensorrt_rtx, "LIBRARY", "no_such_module")
    with pytest.raises(UnavailableError, match=r"pip install 'hwprune\[tensorrt-rtx\]'"):
        check_builds([ToBuild("a", good)], targets.load(TARGET))


def test_files_of_a_language_models_search_are_found(tmp_path):
    for place in ("7/onnx/model.onnx", "7/onnx/model.int8.onnx", "dense/onnx/model.int8.onnx"):
        (tmp_path / "candidates" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "candidates" / place).touch()
    (tmp_path / "language.json").touch()
    assert [one.name for one in files_of(tmp_path)] == ["7/model.int8", "7/model", "dense/model.int8"]
    with pytest.raises(UsageError):
        files_of(tmp_path / "nothing")


def test_runtimes_here_are_tried_and_compared(good, tmp_path, capsys):
    names = [name for name in ("cpu", "mnn", "ncnn", "tract") if runtimes.get(targets.load(name).runtime).missing() is None]
    out = tmp_path / "kept"
    before = sorted(path.name for path in good.parent.iterdir())
    assert main.main(["check", str(good), "--target", ",".join(names), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["targets"]
    assert list(told) == names and all(one["good.onnx"]["builds"] for one in told.values())
    assert sorted(path.name for path in good.parent.iterdir() if path != out) == before, (
        "beside the user's file nothing is written"
    )
    for name in {"mnn", "ncnn"} & set(names):
        kept = {path.name: path.stat().st_size for path in (out / name / "good").iterdir()}
        assert set(kept) == set(runtimes.get(name).files)
        assert sum(kept.values()) == told[name]["good.onnx"]["engine_bytes"] > 10_000
    assert main.main(["check", str(good), "--target", "cpu"]) == 0
    assert "nothing was timed" in capsys.readouterr().out


def test_runtime_that_computes_something_else_is_refused(good, monkeypatch, capsys):
    real = scoring.read_outputs
    monkeypatch.setattr(scoring, "read_outputs", lambda path: [[2 * x for x in batch] for batch in real(path)])
    assert main.main(["check", str(good), "--target", "cpu"]) == 1
    told = capsys.readouterr().out
    assert "refused" in told and "computes something else" in told


def test_file_with_weights_beside_it_and_odd_names_is_checked(tmp_path, capsys):
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2, 3]) for name in "xy")
    weight = onnx.numpy_helper.from_array(np.full((2, 3), 3.0, np.float32), "w")
    graph = onnx.helper.make_graph([make("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=8)
    path = tmp_path / "model[1] a.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / f"{path.name}.d").mkdir()
    names = [name for name in ("cpu", "tract", "mnn", "browser") if runtimes.get(targets.load(name).runtime).missing() is None]
    assert main.main(["check", str(path), "--target", ",".join(names)]) == 0, capsys.readouterr()


def halved(workload: hwprune.Workload, folder: Path) -> list[ToBuild]:
    """The dense file and one with everything that may be cut cut by half."""
    pieces = CutSegments(Pruner(workload))
    counts = {unit.name: max(1, unit.size // 2) for unit in pieces.axes()}
    files = []
    for name, cut in (("dense", {}), ("cut", counts)):
        onnx.save(pieces.cut(cut), folder / f"{name}.onnx")
        files.append(ToBuild(name, folder / f"{name}.onnx", [list(x.shape) for x in workload.example_inputs]))
    return files


class Encoder(nn.Module):
    """MiniLM's layout, with weights that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "intermediate_size": 384,
            "vocab_size": 200,
        }
        self.body = BertModel(BertConfig(**sizes), add_pooling_layer=False)
        self.head = nn.Linear(96, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9))


def encoder() -> hwprune.Workload:
    inputs = (torch.ones(1, 16, dtype=torch.int64), torch.ones(1, 16, dtype=torch.int64))
    return hwprune.Workload(
        "encoder", Encoder().eval(), inputs, calibration=[], validation=[(inputs, torch.zeros(1, dtype=torch.int64))]
    )


def resnet20() -> hwprune.Workload:
    x = torch.zeros(1, 3, 32, 32)
    return hwprune.Workload(
        "resnet20", CifarResNet(3).eval(), (x,), calibration=[], validation=[(x, torch.zeros(1, dtype=torch.int64))]
    )


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize("make_workload", [demos.digits, demos.digits_vit, resnet20, encoder])
def test_dense_and_cut_models_build(make_workload, tmp_path):
    """The same parser, builder, flags and profiles that TensorRT's runtime uses, on every kind of network that is shipped."""
    found = check_builds(halved(make_workload(), tmp_path), targets.load(TARGET))
    assert {name: one.reason for name, one in found.items()} == {"dense": "", "cut": ""}


@pytest.mark.usefixtures("builder")
def test_quantised_candidate_builds_as_integers(tmp_path):
    digits = demos.digits()
    (dense, cut) = halved(digits, tmp_path)
    for one in (dense, cut):
        batches = [tuple(x.numpy() for x in inputs) for inputs, _ in digits.batches("calibration")][:2]
        quantise.quantise(onnx.load(one.file), "int8", lambda batches=batches: batches, tmp_path / f"{one.name}.int8.onnx", GPU)
        kinds = {node.op_type for node in onnx.load(tmp_path / f"{one.name}.int8.onnx").graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    data = {**targets.load(TARGET).to_json(), "precision": "int8"}
    files = [ToBuild(one.name, tmp_path / f"{one.name}.int8.onnx", one.shapes) for one in (dense, cut)]
    found = check_builds(files, targets.Target.from_json(data))
    assert {name: one.reason for name, one in found.items()} == {"dense": "", "cut": ""}
