"""`hwprune probe`: on the real runtime, from a data sheet, and on what can't be probed."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

import hwprune
from hwprune.cli.main import main
from hwprune.errors import UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.probe import estimating, probe_files, probing
from hwprune.probe.attribution import attribute
from hwprune.probe.cut_segments import staircase_of
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from tests.conftest import randomise, tiny_workload


@pytest.fixture(scope="module")
def pruner():
    return Pruner(tiny_workload())


@pytest.fixture(scope="module")
def exports():
    """One entry for each `torch.export.export` while the fixture ``found`` was made."""
    return []


@pytest.fixture(scope="module")
def found(pruner, exports, tmp_path_factory):
    export = torch.export.export

    def counted(*args, **options):
        exports.append(args[0])
        return export(*args, **options)

    with Bench(targets.load("cpu"), shapes=[(1, 1, 8, 8)]) as bench, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", counted)
        table = LatencyTable(bench.identity(), tmp_path_factory.mktemp("table") / "t")
        return probing.probe(pruner, targets.load("cpu"), bench, table, wholes=2), table


def test_the_model_is_traced_once_and_not_for_every_cut(found, exports):
    probe, _ = found
    assert sum(len(unit.steps) for unit in probe.units) > 10
    assert len(exports) == 1


def test_every_axis_has_a_staircase(found, pruner):
    probe, _ = found
    axes = [unit for unit in pruner.units.values() if unit.axis is not None and unit.size > 1]
    assert [unit.name for unit in probe.units] == [unit.name for unit in axes]
    for unit in probe.units:
        assert unit.steps[-1].keep == unit.size
        assert unit.steps[-1].speedup == pytest.approx(1.0, abs=1e-6)  # nothing is cut
        assert all(step.seconds > 0 for step in unit.steps)
        assert 0 <= unit.share <= 1.001
    widest = next(unit for unit in probe.units if unit.size == 64)
    assert widest.steps[0].seconds < widest.steps[-1].seconds  # 4 of 64 channels are faster than all


def test_masks_do_not_pay_here_and_that_is_measured(found):
    by = {one.pattern: one for one in found[0].patterns}
    assert {"unstructured", "2:4", "channel", "branch"} <= set(by)
    assert by["unstructured"].speedup["ci_low"] < 1.1
    assert "multiplies zeros" in by["unstructured"].note
    assert by["channel"].speedup["value"] > by["unstructured"].speedup["value"]
    assert all(one.verdict in ("faster", "slower", "not distinguishable", "not measured") for one in by.values())


def test_table_knows_everything_that_was_timed(found):
    probe, table = found
    again = LatencyTable.read(table.folder, table.identity)
    assert set(again.entries) == set(table.entries)
    assert len([m for m in again.models.values()]) == 3  # dense and two random cuts
    assert probe.source == "measured"


def test_text_csv_json_and_page_tell_the_same(found, tmp_path):
    probe, _ = found
    text = probe_files.text(probe, 100)
    assert "Most that each pattern can give" in text
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("  "))
    assert max(len(line) for line in probe_files.text(probe, 60).splitlines() if line.startswith("  ")) <= 60
    rows = list(csv.DictReader(io.StringIO(probe_files.to_csv(probe))))
    assert len(rows) == sum(len(unit.steps) for unit in probe.units)
    assert {row["source"] for row in rows} <= {"measured", "predicted"}
    assert sum(row["source"] == "measured" for row in rows) >= len(rows) / 2
    probe_files.write(probe, tmp_path)
    assert json.loads((tmp_path / "probe.json").read_text())["schema"] == 1
    page = (tmp_path / "probe.html").read_text()
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert page.count("<tr>") > len(probe.units)


def test_names_can_not_inject_html(found):
    from dataclasses import replace

    probe = replace(
        found[0], workload="<script>alert(1)</script>", units=[replace(found[0].units[0], name="<img src=x onerror=y>$x$")]
    )
    page = probe_files.page(probe)
    assert "<script>" not in page
    assert "<img src=x" not in page


def test_estimate_is_labelled_and_needs_a_roofline(pruner):
    probe = estimating.estimate(pruner, targets.load("l4"))
    assert probe.source == "estimated"
    assert "ESTIMATED" in probe.warnings[0]
    assert "ESTIMATED, NOT MEASURED" in probe_files.text(probe)
    assert "ESTIMATED, NOT MEASURED" in probe_files.page(probe)
    assert any("launches of kernels" in warning for warning in probe.warnings)  # a tiny network on a GPU
    for unit in probe.units:
        assert [step.speedup for step in unit.steps][-1] == pytest.approx(1.0)
    with pytest.raises(UsageError, match="lacks fp32_flops"):
        estimating.estimate(pruner, targets.load("cpu"))


def test_runtime_without_onnx_files_is_refused(pruner):
    with Bench(targets.load("cpu-pytorch")) as bench, pytest.raises(UsageError, match="probe works with runtimes of ONNX files"):
        probing.probe(pruner, targets.load("cpu-pytorch"), bench, LatencyTable({}))


def test_profile_is_told_by_segments(tmp_path):
    """relu_1 is not taken for relu_15, and what the runtime invented belongs to the operator before it."""
    import onnx

    model = nn.Sequential(*[layer for _ in range(17) for layer in (nn.Conv2d(4, 4, 1), nn.ReLU())])
    segments = split(
        onnx.load(str(to_onnx.to_onnx(randomise(model), (torch.randn(1, 4, 4, 4),), tmp_path / "m.onnx"))), [(1, 4, 4, 4)]
    )
    last = {segment.nodes[-1].output[0]: segment.name for segment in segments}
    operators = [{"name": f"{out}_nchwc", "kind": "Conv", "seconds": 1.0, "kernel": ""} for out in last]
    operators.insert(3, {"name": "ReorderOutput", "kind": "ReorderOutput", "seconds": 0.5, "kernel": ""})
    rows, covers, shares = attribute(operators, segments)
    assert [row["segment"] for row in rows if row["kind"] == "Conv"] == list(last.values())
    assert rows[3]["segment"] == rows[2]["segment"]
    assert covers == pytest.approx(17 / 17.5)
    assert sum(shares.values()) == pytest.approx(1.0)
    unnamed = [{"name": "fused", "kind": "x", "seconds": 1.0, "kernel": ""}] * 4
    assert attribute(unnamed, segments)[2] == {}


def test_command_line_on_a_bare_onnx_file(tmp_path, capsys):
    """No data, no PyTorch code: only shapes count."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4))
    to_onnx.to_onnx(randomise(model), (torch.randn(1, 3, 8, 8),), tmp_path / "model.onnx")
    arguments = ["probe", str(tmp_path / "model.onnx"), "--out", str(tmp_path / "out"), "--table", str(tmp_path / "t"), "--quiet"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "on cpu (measured)" in out
    for name in ("out/probe.html", "out/probe.csv", "out/probe.json", "t/table.csv", "t/fingerprint.json", "t/models.csv"):
        assert (tmp_path / name).is_file(), name
    assert main(["probe", str(tmp_path / "model.onnx"), "--target", "l4", "--estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "estimated"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["probe", "demo:digits", "--target", "l4"], "--estimate"),
        (["probe", "demo:digits", "--target", "l44"], "Did you mean"),
        (["probe", "demo:digits", "--estimate", "--table", "x"], "measures nothing"),
        (["probe", "missing.onnx"], "missing.onnx"),
        (["search", "demo:digits", "--estimate", "--remote", "ssh://x"], "exclude each other"),
        (["search", "demo:digits", "--table", "nowhere"], "holds no latency table"),
        (["search", "demo:digits", "--estimate"], "lacks fp32_flops"),
    ],
)
def test_wrong_use_is_told(arguments, wanted, capsys):
    assert main(arguments) == 2
    assert wanted in capsys.readouterr().err


def test_corrupt_onnx_is_told(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 not a model")
    assert main(["probe", str(tmp_path / "model.onnx")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_half_precision_is_probed_in_half_precision(pruner, tmp_path, monkeypatch):
    """A runtime that takes the precision from the file gets fp16 pieces throughout."""
    from hwprune.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    monkeypatch.setattr(OnnxRuntimeCpu, "precision_of_file", lambda self, precision: "fp16")
    with Bench(targets.load("cpu"), shapes=[(1, 1, 8, 8)]) as bench:
        table = LatencyTable(bench.identity())
        probe = probing.probe(pruner, targets.load("cpu"), bench, table, wholes=1)
    assert list(table.reference_s) == ["FLOAT16"]
    assert all(unit.share < 0.95 for unit in probe.units if unit.size == 64)
    assert not table.errors


def test_outputs_are_checked_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for option in ("--out", "--table"):
        assert main(["probe", "demo:digits", option, str(tmp_path / "file")]) == 2
        assert "can't write into" in capsys.readouterr().err


def test_search_from_a_table_and_from_a_data_sheet_never_writes_front_csv(found, tmp_path):
    table = found[1]
    for name, arguments in (("table", {"table": table.folder}), ("estimated", {"target": "l4", "estimate": True})):
        out = tmp_path / name
        result = hwprune.search(tiny_workload("top1"), trials=2, out=out, **arguments)
        assert not (out / "front.csv").exists()
        assert (out / f"front.{name}.csv").is_file()
        assert any("NOT MEASURED" in note for note in result.notes)
        page = (out / "report.html").read_text()
        assert "NOT MEASURED" in page
        assert "Dense against itself" not in page[page.rindex("</style>") :]  # nothing was measured against itself
        assert "measured again in fresh processes" not in page
        record = json.loads((out / "record.json").read_text())
        assert record["latency_source"] == name
        assert all(trial["speedup"]["conditions"]["clock"] == name for trial in record["trials"] if trial["state"] == "measured")


def test_a_layer_that_looks_like_another_still_counts(tmp_path):
    """At full width the middle layer has the signature of its neighbours; it must not drop out of its own staircase."""
    import onnx

    class Table:
        def segment(self, segment):
            return float(segment.macs), 0.0, True

    def pieces(width):
        model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, width, 1), nn.ReLU(), nn.Conv2d(width, 8, 1), nn.ReLU())
        return split(
            onnx.load(str(to_onnx.to_onnx(randomise(model), (torch.randn(1, 8, 4, 4),), tmp_path / "m.onnx"))), [(1, 8, 4, 4)]
        )

    times = staircase_of({width: pieces(width) for width in (4, 6, 8)}, Table())
    assert times == {width: 2 * 8 * width * 16 for width in (4, 6, 8)}
