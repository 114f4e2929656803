"""Where a search's latencies come from: measured, from a table, estimated."""

from __future__ import annotations

import math
import random

import pytest
import torch

from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import paired
from hwprune.latency.latency_table import FEATURES, Entry, LatencyTable
from hwprune.latency.source import Estimated, FromTable, Measured, check_table, over_sessions
from hwprune.onnx_files import to_onnx
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from tests.conftest import TinyNet, randomise


def session(ratio):
    """One session of two files, as the bench gives it."""
    speedup = Measurement(ratio, "x", ratio * 0.999, ratio * 1.001, 16, {"clock": "wall"})
    return paired.Paired(speedup, Measurement(1.0, "s", 1.0, 1.0, 16, {"dense_s": ratio}))


class FakeBench:
    """The dense model against copies of itself, with the deviation we say."""

    alive = True

    def __init__(self, speedups):
        self.speedups, self.loaded, self.settings = list(speedups), [], []

    def load(self, key, path):
        self.loaded.append(key)

    def drop(self, key):
        pass

    def pair(self, a, b, example, settings):
        self.settings.append(settings)
        value = self.speedups.pop(0)
        return session(value)


def test_gate_puts_the_sessions_deviation_into_every_later_interval(tmp_path, monkeypatch):
    monkeypatch.setattr("hwprune.latency.source.GATE_SESSIONS", 4)
    bench = FakeBench([1.02, 0.98, 1.02, 0.98, 1.5])
    source = Measured(bench, tmp_path, paired.Settings())
    result = source.dense(tmp_path / "model.onnx")
    assert bench.loaded == ["dense_copy"] * 4  # a new session each time
    deviation = source.settings.session_sd
    assert deviation == pytest.approx(math.sqrt((4 * 0.005**2 + 4 * 0.02**2) / 8), rel=0.02)
    assert result.speedup.ci_low < 1 < result.speedup.ci_high
    source.candidate(tmp_path)
    assert bench.settings[-1].session_sd == deviation


@pytest.mark.parametrize(
    ("speedups", "passed"),
    [
        ([1.002, 0.997, 1.003, 0.999], True),
        ([1.03, 1.03, 1.03, 1.03], False),  # all off: biased
        ([0.9, 0.99, 1.005, 1.1], False),  # right on average, but nothing can be ranked by it
        ([0.7, 1.0, 1.0, 1.3], False),
    ],
)
def test_gate_judges_all_sessions(speedups, passed):
    assert over_sessions([session(value) for value in speedups]).passed is passed


def test_gate_passes_a_quiet_machine_and_seldom_a_noisy_one():
    draw = random.Random(0)

    def rate(sd):
        return sum(over_sessions([session(math.exp(draw.gauss(0, sd))) for _ in range(4)]).passed for _ in range(400)) / 400

    assert rate(0.004) > 0.9
    assert rate(0.05) < 0.05


def known(target, device="a CPU"):
    """A table of one segment, measured on what the target describes."""
    identity = {
        "device": device,
        "runtime_name": target.runtime,
        "precision": target.precision,
        "threads": target.threads,
        "options": dict(target.options),
    }
    features = dict.fromkeys(FEATURES, 1.0)
    return LatencyTable(identity, entries={"x": Entry("x", "Conv", "Conv", 1e-5, 1e-7, features)})


def test_table_must_be_the_targets(device):
    cpu = targets.load("cpu")
    check_table(known(cpu), cpu)
    with pytest.raises(UsageError, match="holds no measured segment"):
        check_table(LatencyTable(known(cpu).identity), cpu)
    with pytest.raises(UsageError, match="runtime_name: 'onnxruntime-cpu' in the table, 'tensorrt' in the profile"):
        check_table(known(cpu), targets.load("h100"))
    h100 = targets.load("h100")
    check_table(known(h100, "NVIDIA H100 80GB HBM3"), h100)
    with pytest.raises(UsageError, match="device: 'NVIDIA L4' in the table"):
        check_table(known(h100, "NVIDIA L4"), h100)


def test_masks_that_a_target_executes_are_not_taken_for_dense(tmp_path):
    """A table of dense pieces knows nothing of 2:4 on sparse tensor cores."""
    h100, cpu = targets.load("h100"), targets.load("cpu")
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[:, 0::2] = 0
    path = to_onnx.to_onnx(model.eval(), (torch.randn(1, 8),), tmp_path / "m.onnx")
    with pytest.raises(CandidateFailure, match="2:4 weights"):
        FromTable(known(h100, "NVIDIA H100"), "n", h100, [(1, 8)]).dense(path)
    assert FromTable(known(cpu), "n", cpu, [(1, 8)]).dense(path).ratio == 1.0
    plain = Estimated(targets.load("t4"), [(1, 8)]).dense(path).latency.value  # no sparse mode: no discount
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert (
        Estimated(targets.load("t4"), [(1, 8)])
        .dense(to_onnx.to_onnx(model, (torch.randn(1, 8),), tmp_path / "n.onnx"))
        .latency.value
        == plain
    )


def test_predicted_sources_are_labelled_and_consistent(device, tmp_path):
    cpu = targets.load("cpu")
    table = known(cpu)
    big = to_onnx.to_onnx(randomise(TinyNet()), (torch.randn(1, 1, 8, 8),), tmp_path / "big.onnx")
    for source, label in (
        (Estimated(device, [(1, 1, 8, 8)]), "estimated"),
        (FromTable(table, "n", cpu, [(1, 1, 8, 8)]), "table"),
    ):
        dense = source.dense(big)
        assert dense.clock == source.label == label
        assert dense.ratio == dense.speedup.ci_low == dense.speedup.ci_high == 1.0
        assert source.candidate(big).ratio == pytest.approx(1.0)
        with pytest.raises(CandidateFailure, match="can't be predicted"):
            type(source)(*((device,) if label == "estimated" else (table, "n", cpu)), [(1, 7, 8, 8)]).dense(big)
