"""Several targets at once: which speedup counts, and what each measured."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hwprune
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import fleet, fresh
from hwprune.latency.bench import Bench
from hwprune.latency.fleet import FleetBench, FleetMeasured
from hwprune.latency.latency_table import save_inputs
from hwprune.latency.paired import Paired, Settings
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from hwprune.records.record import read_record
from hwprune.runtimes import RUNTIMES
from hwprune.searching import operator_gate, resolved_job
from hwprune.searching.final import quantise_finalists
from hwprune.searching.job import Job
from tests.conftest import tiny_workload

NAMES = ("cpu", "cpu-openvino")
pytestmark = pytest.mark.skipif(RUNTIMES["openvino"].missing() is not None, reason="openvino is not installed")


def measured(value: float, low: float, high: float, unit: str = "x") -> Measurement:
    return Measurement(value, unit, low, high, 8, {"clock": "thread_cpu", "contended": 0.1 * value, "outliers": 0.0})


def paired(value: float, low: float, high: float) -> Paired:
    return Paired(measured(value, low, high), measured(1 / value, 1 / high, 1 / low, "s"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("cpu", {"cpu": None}), ("cpu, ncnn", {"cpu": None, "ncnn": None}), ("cpu=2,ncnn=0.5", {"cpu": 2.0, "ncnn": 0.5})],
)
def test_targets_are_read(text, wanted):
    assert fleet.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "cpu,", "cpu,cpu", "cpu=1,ncnn", "cpu=0,ncnn=1", "cpu=x,ncnn=1", "cpu=nan,ncnn=1", "cpu=inf,a=1"]
)
def test_wrong_targets_are_refused(text):
    with pytest.raises(UsageError):
        fleet.parse(text)


def test_worst_counts_and_its_interval_holds_whoever_may_be_worst():
    parts = {"a": paired(2.0, 1.8, 2.2), "b": paired(1.9, 1.85, 1.95), "c": paired(5.0, 4.9, 5.1)}
    found = fleet.combine(parts, dict.fromkeys(parts))
    assert (found.speedup.value, found.speedup.ci_low, found.speedup.ci_high) == (1.9, 1.8, 1.95)
    assert found.speedup.conditions["counts"] == "worst: b"
    assert found.latency.value == 0.5, "the first target's"
    assert found.speedup.conditions["targets"]["c"]["speedup"] == {"value": 5.0, "ci_low": 4.9, "ci_high": 5.1}
    assert found.speedup.conditions["contended"] == pytest.approx(0.5), "the busiest of all"


def test_interval_of_the_worst_covers_the_truth():
    """True speedups are equal, which is the hardest case: the least of three measured ones is too low on average."""
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        values = np.exp(0.02 * draw.standard_normal(3))
        parts = {str(i): measured(v, v * math.exp(-0.0392), v * math.exp(0.0392)) for i, v in enumerate(values)}
        one = fleet.combined_speedup(parts, dict.fromkeys(parts))
        hits += one.ci_low <= 1.0 <= one.ci_high
    assert hits / 2000 >= 0.9


def test_weighted_mean_is_geometric():
    parts = {"a": measured(4.0, 3.8, 4.2), "b": measured(1.0, 0.9, 1.1)}
    one = fleet.combined_speedup(parts, {"a": 3.0, "b": 1.0})
    assert one.value == pytest.approx(4.0**0.75)
    half = math.hypot(0.75 * math.log(4.2 / 4), 0.25 * math.log(1.1))
    assert one.ci_high == pytest.approx(one.value * math.exp(half))
    assert one.conditions["counts"] == "mean"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    tiny = tiny_workload()
    hwprune.prune(tiny, hwprune.Recipe()).export(folder / "dense")
    hwprune.prune(tiny, hwprune.uniform_recipe(tiny, "channel", 0.75)).export(folder / "small")
    save_inputs(folder / "example.npz", [x.numpy() for x in tiny.example_inputs])
    return folder


def make_bench(weights: dict[str, float | None] | None = None) -> FleetBench:
    return FleetBench([targets.load(name) for name in NAMES], weights or dict.fromkeys(NAMES), shapes=[(1, 1, 8, 8)])


def test_bench_measures_on_all_and_scores_on_the_first(files, monkeypatch):
    loads = []
    load = Bench.load

    def noted(self, key, path, **more):
        loads.append((self._target.name, key))
        return load(self, key, path, **more)

    monkeypatch.setattr(Bench, "load", noted)
    with make_bench() as bench:
        bench.load("dense", files / "dense/model.onnx", keep=True)
        bench.load("candidate", files / "small/model.onnx", threads=2)
        assert {name for name, _ in loads} == {"cpu"}, "what is only scored is converted for nobody"
        bench.load("candidate", files / "small/model.onnx")
        found = bench.pair("candidate", "dense", files / "example.npz", Settings(limit_s=0.1))
        assert set(found.parts) == set(NAMES)
        assert found.ratio == min(part.ratio for part in found.parts.values())
        assert ("cpu-openvino", "candidate") in loads
        bench.drop("candidate")
        for name in NAMES:
            with pytest.raises(CandidateFailure):
                bench.pair_on(name, "candidate", "dense", files / "example.npz", Settings(limit_s=0.1))


def test_gate_measures_each_by_itself(files):
    with make_bench() as bench:
        bench.load("dense", files / "dense/model.onnx", keep=True)
        source = FleetMeasured(bench, files / "example.npz", Settings(limit_s=0.1, clock=bench.clock))
        found = source.dense(files / "dense/model.onnx")
        details = found.speedup.conditions["targets"]
        assert set(details) == set(NAMES)
        furthest = max(NAMES, key=lambda name: abs(math.log(details[name]["speedup"]["value"])))
        assert found.ratio == details[furthest]["speedup"]["value"]
        assert set(bench.session_sds) == set(NAMES)
        assert source.settings.session_sd == max(bench.session_sds.values())


def test_fresh_processes_are_summed_up_by_target(files):
    found = fresh.remeasure(
        {"small": files / "small/model.onnx"}, files / "dense/model.onnx", files / "example.npz", make_bench,
        Settings(limit_s=0.05), processes=2,
    )  # fmt: skip
    small = found["small"].speedup
    each = small.conditions["targets"]
    assert small.value == min(one["speedup"]["value"] for one in each.values())
    assert found["small"].latency.value == each["cpu"]["latency"]["value"]
    dense = found["dense"].speedup.conditions["targets"]
    for name in NAMES:  # all were compared with the same dense latency
        assert each[name]["latency"]["value"] * each[name]["speedup"]["value"] == pytest.approx(
            dense[name]["latency"]["value"] * dense[name]["speedup"]["value"]
        )


def test_failure_says_on_which_target(files):
    with make_bench() as bench:
        bench.load("dense", files / "dense/model.onnx", keep=True)
        bench.load("candidate", files / "small/model.onnx")
        bench.members["cpu-openvino"].load = _refuse  # type: ignore[method-assign]
        with pytest.raises(CandidateFailure, match="on cpu-openvino: it has no such operator"):
            bench.pair("candidate", "dense", files / "example.npz", Settings(limit_s=0.05))


def _refuse(*_: object, **__: object) -> None:
    raise CandidateFailure("convert", "it has no such operator")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"target": "cpu,cpu-pytorch"}, "run different files"),
        ({"target": "cpu,cpu-openvino", "max_latency_s": 0.1}, "--min-speedup is for several"),
        ({"target": "cpu,cpu-openvino", "estimate": True}, "--table and --estimate are for one"),
        ({"target": "cpu,nowhere"}, "nowhere"),
    ],
)
def test_what_has_no_meaning_for_several_is_refused(words, text):
    with pytest.raises(UsageError, match=text):
        resolved_job.resolve(Job("demo:digits", **words))


def test_sizes_suit_all_targets():
    job = resolved_job.resolve(Job("demo:digits", target="cpu,ncnn,litert"), available=False)
    multiple = {isa: [one.multiple(isa) for one in job.targets] for isa in ("avx512", "avx2")}
    for isa, each in multiple.items():
        assert all(job.prior.multiple(isa) % one == 0 for one in each)
    one = replace(targets.load("ncnn"), executes=("channel",))
    narrow = replace(job, others=(one,))
    assert "head" not in narrow.prior.executes
    assert "channel" in narrow.prior.executes


def test_search_for_two_targets(tmp_path, capsys):
    """The record, the table and the words; a worst speedup is nobody's but the worst target's."""
    result = hwprune.search(tiny_workload("top1"), target=",".join(NAMES), trials=5, out=tmp_path / "run", seed=3)
    record = read_record(tmp_path / "run")
    assert [one["profile"]["name"] for one in record.data["target"]["fleet"]] == list(NAMES)
    assert record.target_label == "cpu, cpu-openvino (the worst counts)"
    with (tmp_path / "run/front.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    dense_s = float(rows[0]["latency_s"]) * float(rows[0]["speedup:cpu"])
    for row in rows[1:]:
        each = [float(row[f"speedup:{name}"]) for name in NAMES]
        assert float(row["speedup"]) == pytest.approx(min(each))
        assert float(row["latency_s"]) * float(row["speedup:cpu"]) == pytest.approx(dense_s)
    trials = [t for t in json.loads((tmp_path / "run/record.json").read_text())["trials"] if t["state"] == "measured"]
    assert all(set(t["speedup"]["conditions"]["targets"]) == set(NAMES) for t in trials)
    if rows[1:]:
        assert "speedup by target" in str(result)
    if rows[1:]:
        from hwprune.cli import main

        capsys.readouterr()
        assert main.main(["verify", str(tmp_path / "run")]) in (0, 1)  # a busy machine may be slower than it was
        told = capsys.readouterr().out
        assert "recorded" in told, "the first target is measured again, against its own number"
        assert "another machine" not in told
    again = hwprune.search(tiny_workload("top1"), target=",".join(NAMES), trials=6, out=tmp_path / "run", seed=3, resume=True)
    assert len(again.trials) >= 6


def test_search_in_which_nobody_is_fast_enough(tmp_path):
    result = hwprune.search(
        tiny_workload("top1"), target=",".join(NAMES), trials=2, out=tmp_path / "run", seed=3, min_speedup=900
    )
    assert result.front == ()
    assert read_record(tmp_path / "run").data["finished"]


def test_targets_of_one_name_are_refused(tmp_path):
    profile = Path(str(targets._folder() / "cpu-openvino.toml")).read_text()
    (tmp_path / "cpu.toml").write_text(profile)
    with pytest.raises(UsageError, match="two are called cpu"):
        resolved_job.resolve(Job("demo:digits", target=f"cpu,{tmp_path / 'cpu.toml'}"))
    odd = tmp_path / "a,b=c.toml"
    odd.write_text(profile)
    assert resolved_job.resolve(Job("demo:digits", target=str(odd))).target.name == "a,b=c"


def test_quantised_forms_need_targets_that_run_them():
    job = resolved_job.resolve(Job("demo:digits", target="cpu,tract", quantize="int8"), available=False)
    with pytest.raises(UsageError, match="converter of target tract"):
        quantise_finalists.check_precisions(job.job, job.others[0])


def test_gate_of_operators_names_kind_and_target(monkeypatch):
    from hwprune.pruning.pruner import Pruner

    if reason := RUNTIMES["mnn"].missing():
        pytest.skip(reason)
    target, pruner = targets.load("mnn"), Pruner(tiny_workload())
    kinds = sorted({unit.role for unit in pruner.units.values() if unit.axis is not None})
    steps: list[str] = []
    with Bench(target, shapes=[(1, 1, 8, 8)]) as bench:
        assert operator_gate.refused_kinds(pruner, bench, [target], [*kinds, "expert"], steps.append) == {}
        assert steps == [f"trying a {kind} cut on mnn" for kind in kinds]
        monkeypatch.setattr(Bench, "load", _refuse)
        refused = operator_gate.refused_kinds(pruner, bench, [target], kinds[:1], steps.append)
    assert refused == {kinds[0]: "mnn does not take it: it has no such operator"}
    cpu = targets.load("cpu")
    assert operator_gate.refused_kinds(pruner, Bench(cpu), [cpu], kinds, steps.append) == {}
