"""Every format of an export, and what `hwprune verify` says of each; a run with quantised points."""

import json
import shutil
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import hwprune
from hwprune.cli.main import main
from hwprune.common.files import dump_json, sha256
from hwprune.deploy import huggingface_format, layout, onnx_format, tensorrt_format
from hwprune.deploy.exporting import check_format, export_run, whole_batches
from hwprune.deploy.formats import FORMATS
from hwprune.deploy.point import Options
from hwprune.deploy.reranking import rerank
from hwprune.deploy.verify import verify
from hwprune.errors import RunError, UnknownNameError, UsageError
from hwprune.records import record
from hwprune.records.target import load as load_target
from hwprune.searching.space import fitting, space_file
from tests.conftest import tiny_workload


@pytest.fixture(scope="module")
def number(finished_run):
    return record.read_record(finished_run).data["front"][0]["trial"]


@pytest.fixture(scope="module")
def quantised_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised") / "run"
    hwprune.search(tiny_workload("top1"), trials=3, out=out, seed=1, quantize="int8,fp16,int4")
    return out


def checks(folder):
    """Did everything pass but the latency, which on a busy machine is anybody's guess? And each check."""
    (result,) = verify(folder)
    found = {check.name: check for check in result.checks}
    return all(c.passed is not False for c in result.checks if c.name != "latency"), found


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


# -- ONNX and its options ------------------------------------------------------------------------


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


# -- what verify must find ------------------------------------------------------------------------


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


# -- other formats ---------------------------------------------------------------------------------


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


# -- quantised points ---------------------------------------------------------------------------------


def test_quantised_candidates_are_trials_with_numbers_and_files(quantised_run):
    data = record.read_record(quantised_run).data
    rows = {t["number"]: t for t in data["trials"] if t.get("quantised")}
    points = {p["trial"]: p for p in data["quantised"]}
    assert set(points) == set(rows) and rows
    assert {row["quantised"]["precision"] for row in rows.values()} <= {"int8", "fp16"}  # no layer is large enough for 4 bits
    assert any(row["quantised"]["of"] == "dense" and not row["recipe"]["choices"] for row in rows.values())
    assert sum("could not be held in int4" in note for note in data["notes"]) == len(rows) // 2
    for number, point in points.items():
        assert point["speedup"]["conditions"]["processes"] == 2 and point["split"] == "test"
        parent = rows[number]["quantised"]["of"]
        if parent != "dense":
            assert rows[number]["recipe"] == next(t for t in data["trials"] if t["number"] == parent)["recipe"]
            assert rows[number]["params"] == next(t for t in data["trials"] if t["number"] == parent)["params"]
    assert len([t for t in data["trials"] if not t.get("quantised")]) == 3  # they take no trial's place


def test_a_resumed_run_quantises_nothing_twice_and_samplers_learn_nothing_from_it(quantised_run, tmp_path):
    from hwprune.searching.study.store import Store

    run = shutil.copytree(quantised_run, tmp_path / "run")
    before = {t["number"] for t in record.read_record(run).data["trials"]}
    hwprune.search(tiny_workload("top1"), trials=3, out=run, seed=1, quantize="int8,fp16,int4", resume=True)
    after = record.read_record(run).data
    known = {
        (t["quantised"]["of"], t["quantised"]["precision"], t["quantised"]["source"])
        for t in after["trials"]
        if t.get("quantised")
    }
    assert len(known) == sum(bool(t.get("quantised")) for t in after["trials"])
    assert before <= {t["number"] for t in after["trials"]}
    store = Store(Store.default_storage(run), None)
    complete = [t for t in store.study.get_trials() if t.state.name == "COMPLETE"]
    assert all("int8" not in str(t.user_attrs.get("origin")) for t in complete)
    store.close()


def test_quantised_points_are_reported_exported_and_verified(quantised_run, tmp_path, capsys):
    data = record.read_record(quantised_run).data
    number = data["quantised"][0]["trial"]
    copy = shutil.copytree(quantised_run, tmp_path / "run")
    folder = copy / "candidates" / str(number)
    if not folder.is_dir():  # it was not on this machine's front: put it there
        parent = next(p for p in (copy / "candidates").iterdir() if (p / "model.onnx").is_file())
        shutil.copytree(parent, folder)
        from hwprune.deploy import quantise

        quantise.quantise(
            onnx.load(copy / "baseline" / "model.onnx"),
            "int8",
            lambda: [[torch.randn(20, 1, 8, 8).numpy()]],
            folder / "model.onnx",
        )
    if number not in {p["trial"] for p in data["front"]}:
        data["front"].append(data["quantised"][0])
        (copy / "record.json").write_text(dump_json(data))
    assert main(["report", str(copy)]) == 0
    assert "int8 of the dense model" in capsys.readouterr().out
    header, *lines = (copy / "front.csv").read_text().splitlines()
    row = dict(zip(header.split(","), next(line for line in lines if line.startswith(f"{number},")).split(","), strict=True))
    assert (row["precision"], row["quantised_from"]) == ("int8", "dense")
    out = export_run(copy, number, "onnx", tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quantisation"]["precision"] == "int8" and manifest["tolerance"] == 5e-2
    assert len(manifest["calibration_sha256"]) == 64
    _, found = checks(out)
    assert found["parity"].passed and found["layout"].passed
    for form in ("pt2", "safetensors"):
        with pytest.raises(UsageError, match="is quantised"):
            export_run(copy, number, form, tmp_path / form, tiny_workload("top1"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quantize", "int9"], "Unknown precision"),
        (["--quantize", "int8", "--estimate", "--target", "a100"], "target that is measured"),
        (["--quantize", "int8", "--target", "cpu-pytorch"], "makes ONNX files"),
    ],
)
def test_what_can_not_be_quantised_is_told_before_the_search(words, told, tmp_path, capsys):
    code = main(["search", "tests/workloads.py:good", "--trials", "1", "--quiet", "--out", str(tmp_path / "run"), *words])
    assert code == 2
    assert told.lower() in capsys.readouterr().err.lower()


# -- rerank ------------------------------------------------------------------------------------------


def test_a_front_is_measured_on_another_runtime_and_batch(finished_run, tmp_path, capsys):
    points, facts = rerank(finished_run, load_target("cpu-openvino"), batch=4)
    data = record.read_record(finished_run).data
    assert {p.trial for p in points} == {p["trial"] for p in data["front"]}
    assert facts["batch"] == 4 and facts["identity"]["runtime"].startswith("openvino")
    before = {p["trial"]: p for p in data["front"]}
    speedups = [p.speedup.value for p in points]
    assert speedups == sorted(speedups)
    for point in points:
        assert point.drop == pytest.approx(before[point.trial]["drop"], abs=0.05)
        assert point.speedup_before == before[point.trial]["speedup"]["value"]
    out = tmp_path / "there"
    words = ["rerank", str(finished_run), "--target", "cpu-openvino", "--batch", "2", "--out", str(out), "--quiet"]
    assert main(words) == 0
    assert "for a batch of 2" in capsys.readouterr().out
    assert (out / "rerank.csv").read_text().startswith("trial,on_front,speedup") and (out / "rerank.json").is_file()


def test_a_point_that_does_not_run_there_is_told_and_the_others_go_on(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    data = record.read_record(run).data
    victim = data["front"][0]["trial"]
    (run / "candidates" / str(victim) / "model.onnx").write_bytes(b"not a model")
    points, _ = rerank(run, load_target("cpu"))
    bad = next(p for p in points if p.trial == victim)
    assert bad.speedup is None and bad.failure and not bad.on_front
    assert all(p.speedup is not None for p in points if p.trial != victim)


def test_what_can_not_be_reranked_is_told(finished_run, tmp_path):
    with pytest.raises(UsageError, match=r"runs model\.pt2 files"):
        rerank(finished_run, load_target("cpu-pytorch"))
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "candidates")
    with pytest.raises(UsageError, match="is missing"):
        rerank(run, load_target("cpu"))


# -- what a review found ------------------------------------------------------------------------------


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


def test_files_of_another_precision_are_not_measured_under_a_targets_name(finished_run):
    import dataclasses

    half = dataclasses.replace(load_target("cpu"), precision="int8")
    with pytest.raises(UsageError, match="those of the run are in fp32"):
        rerank(finished_run, half)


def test_a_derived_trial_that_a_kill_left_open_never_completes(tmp_path):
    """Complete without parameters it would empty the space that other samplers see."""
    from hwprune.pruning.pruner import Pruner
    from hwprune.searching.constraints import Constraints
    from hwprune.searching.study.attributes import RESULT
    from hwprune.searching.study.store import Store
    from tests.test_values import measured

    pruner = Pruner(tiny_workload())
    store = Store(
        f"sqlite:///{tmp_path}/s.db",
        fitting.build(space_file.load("default"), pruner, load_target("cpu"), "default"),
        create=True,
    )
    made = store.finisher.number_of_derived("int8 of dense")
    import dataclasses

    trial = dataclasses.replace(measured(made, 0.0, 1.5), quantised={"of": "dense", "precision": "int8", "source": "0"})
    frozen = next(t for t in store._backend.frozen() if t.number == made)
    store._backend.set_attribute(frozen._trial_id, RESULT, trial.to_json())
    frozen = next(t for t in store._backend.frozen() if t.number == made)
    assert store.rescue.end_lost(frozen, Constraints().of)
    assert [t.state.name for t in store.study.get_trials()] == ["FAIL"]
    assert [t.number for t in store.trials()] == [made] and store.trials(as_searched=True) == []
    store.close()


def test_a_trained_trial_and_its_quantised_form_are_told_apart(tmp_path, monkeypatch):
    """Both remember the training; on resume the quantised one must not stand for the trained one."""
    from types import SimpleNamespace

    from hwprune.recovery.plan import Plan
    from hwprune.searching.constraints import Constraints
    from hwprune.searching.final import train_finalists

    plan = Plan("distill", 1)
    parent = SimpleNamespace(number=3, recovery={}, quantised={})
    trained = SimpleNamespace(number=7, recovery={"of": 3, "plan": plan.to_json(), "seconds": 1.0}, quantised={})
    small = SimpleNamespace(number=8, recovery=trained.recovery, quantised={"of": 7, "precision": "int8"})
    store = SimpleNamespace(
        read={"training rate distill:1": 1e-3}.get,
        write=lambda *_: None,
        trials=lambda as_searched=False: [parent, trained, small],
    )
    monkeypatch.setattr(train_finalists, "_looked_at", lambda *_: [parent])
    monkeypatch.setattr(train_finalists._Trainer, "has_files", lambda self, trial: True)
    progress = SimpleNamespace(stage=lambda *_: None)
    found = train_finalists.train_finalists(SimpleNamespace(run=tmp_path), store, plan, Constraints(), progress, [])
    assert found == [trained]


def test_weights_beside_the_dense_model_and_the_candidates_are_kept_apart(finished_run, number, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    for folder in (run / "baseline", run / "candidates" / str(number)):
        model = onnx.load(folder / "model.onnx")
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    folder = export_run(run, number, "onnx", tmp_path / "out")
    assert {"model.onnx.data", "dense.onnx.data"} <= {path.name for path in folder.iterdir()}
    assert checks(folder)[0]
