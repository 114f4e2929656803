"""Every format of an export, and what `hwprune verify` says of each; a run with quantised points."""

from __future__ import annotations

import json
import shutil
import subprocess

import onnx
import pytest
import torch

import hwprune
from hwprune.deploy import huggingface_format, onnx_format, tensorrt_format
from hwprune.deploy.exporting import check_format, export_run
from hwprune.deploy.formats import FORMATS
from hwprune.deploy.point import Options
from hwprune.errors import UnknownNameError, UsageError
from tests.conftest import tiny_workload
from tests.deploy.helpers import checks


@pytest.mark.parametrize(
    "options",
    [Options(opset=18), Options(precision="fp16"), Options(external=True), Options(batch=3), Options(18, "fp16", True, 2)],
)
def test_onnx_as_it_is_asked_for(finished_run, number, tmp_path, options):
    folder = export_run(finished_run, number, "onnx", tmp_path / "out", options=options)
    model = onnx.load(folder / "model.onnx")
    assert next(i.version for i in model.opset_import if i.domain == "") == (options.opset or 20)
    assert (folder / "model.onnx.data").is_file() == options.external
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_value == (options.batch or 0)
    kinds = {item.data_type for item in model.graph.initializer if len(item.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16 if options.precision == "fp16" else onnx.TensorProto.FLOAT}
    passed, found = checks(folder)
    assert passed, found
    assert found["parity"].passed and found["layout"].passed and found["metric"].passed


def test_what_a_format_has_no_use_for_is_told():
    with pytest.raises(UsageError, match="recipe has no use for opset, batch"):
        check_format("recipe", Options(opset=17, batch=2))
    with pytest.raises(UnknownNameError, match="onnx"):
        check_format("onx")
    with pytest.raises(UsageError) as told:
        Options(opset=9, precision="int3", batch=0)
    assert all(word in str(told.value) for word in ("opset", "precision", "batch"))
    with pytest.raises(UsageError, match="knows opsets up to"):
        onnx_format.converted_opset(onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", 20)]), 999)


def test_openvino_runs_and_verifies(finished_run, number, tmp_path):
    for options in (Options(), Options(precision="fp16")):
        folder = export_run(finished_run, number, "openvino", tmp_path / options.precision, options=options)
        assert (folder / "model.xml").is_file() and (folder / "model.bin").is_file()
        passed, found = checks(folder)
        assert passed and found["parity"].passed and found["metric"].passed
        assert found["latency"].passed is None  # another runtime than the one that was measured


def test_tensorrt_gets_a_script_that_names_the_measured_shapes(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "tensorrt", tmp_path / "out")
    script = (folder / "build.sh").read_text()
    name = onnx.load(folder / "model.onnx").graph.input[0].name
    assert f"--optShapes={name}:1x1x8x8" in script and "timing.cache" in script
    assert subprocess.run(["sh", "-n", folder / "build.sh"]).returncode == 0
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    out = subprocess.run(
        ["sh", str(folder / "build.sh"), "--verbose"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tool.parent}:/bin:/usr/bin"},
    )
    assert out.stdout.split()[:2] == ["--onnx=model.onnx", "--saveEngine=model.plan"] and out.stdout.endswith("--verbose\n")
    assert checks(folder)[0]


def test_safetensors_and_formats_that_nothing_runs(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "safetensors", tmp_path / "out")
    assert {"recipe.json", "model.safetensors", "manifest.json"} <= {p.name for p in folder.iterdir()}
    passed, found = checks(folder)
    assert passed and set(found) == {"integrity", "run"}
    (folder / "model.safetensors").write_bytes(b"x")
    assert not checks(folder)[0]


def test_a_class_without_save_pretrained_is_told(finished_run, number, tmp_path):
    with pytest.raises(UsageError, match="no transformers model"):
        export_run(finished_run, number, "huggingface", tmp_path / "out", tiny_workload("top1"))


def test_a_class_that_saves_itself_is_a_folder_for_from_pretrained(tmp_path):
    from safetensors.torch import load_file, save_file

    from tests.conftest import TinyNet, randomise

    class Saves(TinyNet):
        """What transformers' models can do, without transformers."""

        config = {}  # noqa: RUF012

        def save_pretrained(self, folder, safe_serialization):
            (tmp_path / "out" / "config.json").write_text(json.dumps({"mid": self.conv1.out_channels}))
            save_file(self.state_dict(), f"{folder}/model.safetensors")

        @classmethod
        def from_pretrained(cls, folder, local_files_only):
            mid = json.loads((tmp_path / "out" / "config.json").read_text())["mid"]
            made = cls()
            made.conv1, made.bn1 = torch.nn.Conv2d(8, mid, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(mid)
            made.conv2 = torch.nn.Conv2d(mid, 8, 3, 1, 1, bias=False)
            made.load_state_dict(load_file(f"{folder}/model.safetensors"))
            return made

    import dataclasses

    workload = dataclasses.replace(tiny_workload("top1"), model=randomise(Saves()))
    run = tmp_path / "run"
    result = hwprune.search(workload, trials=3, out=run, seed=3, space="structured")
    point = next(p for p in result.points if all(c.pattern != "branch" for c in p.trial.recipe.choices))
    folder = point.export(tmp_path / "out", "huggingface", workload)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"config.json", "model.safetensors", "recipe.json"} <= set(manifest["files"])
    x = torch.randn(3, 1, 8, 8)
    stored = export_run(run, point.trial.number, "pt2", tmp_path / "pt2", workload)
    expected = torch.export.load(stored / "model.pt2").module()(x)
    assert torch.allclose(Saves.from_pretrained(folder, True).eval()(x), expected, atol=1e-5)
    model = Saves.from_pretrained(folder, True)
    (folder / "config.json").write_text(json.dumps({"mid": 65}))
    assert "RuntimeError" in huggingface_format._not_loadable(model, folder)  # sizes that the configuration can't say


def test_every_format_is_described():
    assert all(entry.description and entry.options <= {"opset", "precision", "external", "batch"} for entry in FORMATS.values())


def test_names_of_inputs_never_reach_the_shell(finished_run, number, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    evil = f"x$(touch {tmp_path}/PWNED) `id`; '"
    for path in (run / "candidates" / str(number) / "model.onnx", run / "baseline" / "model.onnx"):
        model = onnx.load(path)
        old, model.graph.input[0].name = model.graph.input[0].name, evil
        for node in model.graph.node:
            node.input[:] = [evil if name == old else name for name in node.input]
        onnx.save(model, path)
    folder = export_run(run, number, "tensorrt", tmp_path / "out")
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    tool.chmod(0o755)
    out = subprocess.run(
        ["sh", str(folder / "build.sh")], capture_output=True, text=True, env={"PATH": f"{tool.parent}:/bin:/usr/bin"}
    )
    assert f"--optShapes={evil}:1x1x8x8" in out.stdout.splitlines()
    assert not (tmp_path / "PWNED").exists()


def test_no_shapes_are_given_where_none_are_free(finished_run, number, tmp_path):
    from hwprune.errors import CandidateFailure

    folder = export_run(finished_run, number, "tensorrt", tmp_path / "out", options=Options(batch=1))
    assert "Shapes" not in (folder / "build.sh").read_text()
    value = onnx.helper.make_tensor_value_info
    assert tensorrt_format._shapes([value("a", 1, ["n", 3]), value("b", 1, [2, 3])], [[1, 3], [2, 3]]) == "a:1x3"
    with pytest.raises(CandidateFailure, match="can't be told the shape"):
        tensorrt_format._shapes([value("a:0", 1, ["n", 3])], [[1, 3]])


def test_a_reduction_is_converted_to_an_older_opset(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "onnx", tmp_path / "out", options=Options(opset=17))
    assert checks(folder)[0]
