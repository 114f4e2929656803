"""Sources of latency, roofline, verdicts, sensors and the timing slot."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time

import pytest
import torch

from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import paired, sensors
from hwprune.latency.device_lock import Slot
from hwprune.latency.latency_table import FEATURES, Entry, LatencyTable
from hwprune.latency.roofline import Roofline
from hwprune.latency.source import Estimated, FromTable, Measured, check_table, over_sessions
from hwprune.latency.splitting import split
from hwprune.latency.worker import throttled
from hwprune.onnx_files import to_onnx
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from tests.conftest import TinyNet, randomise

PROFILE = """
schema = 1
description = "a device"
device = "cuda"
runtime = "tensorrt"
precision = "fp16"
executes = ["channel"]
[channel_multiple]
default = 8
[roofline]
fp16_flops = { value = 1e12, source = "s" }
bandwidth_bytes_per_s = { value = 1e11, source = "s" }
launch_s = { value = 1e-6, source = "s" }
multiprocessors = { value = 10, source = "s" }
tiles = { value = [[64, 64, 8]], source = "s" }
"""


@pytest.fixture
def device(tmp_path):
    (tmp_path / "device.toml").write_text(PROFILE)
    return targets.load(str(tmp_path / "device.toml"))


def linear(rows, columns, inner, tmp_path):
    import onnx

    path = to_onnx.to_onnx(torch.nn.Linear(inner, columns).eval(), (torch.randn(rows, inner),), tmp_path / "model.onnx")
    return split(onnx.load(str(path)), [(rows, inner)])[0]


@pytest.mark.parametrize(
    ("rows", "columns", "inner", "waves"),
    [
        (64, 64, 64, 1), (64, 65, 64, 1), (640, 64, 64, 1),  # ten tiles fit into one wave of ten multiprocessors
        (641, 64, 64, 2), (640, 640, 64, 10), (640, 641, 64, 11),
    ],
)  # fmt: skip
def test_tiles_and_waves_in_closed_form(device, tmp_path, rows, columns, inner, waves):
    found = Roofline(device).segment(linear(rows, columns, inner, tmp_path))
    per_wave = 2 * 64 * 64 * inner / (1e12 / 10)
    assert found.compute_s == pytest.approx(waves * per_wave, rel=1e-9)
    moved = 2 * (rows * inner + rows * columns + columns * inner + columns)
    assert found.memory_s == pytest.approx(moved / 1e11, rel=1e-9)
    assert found.seconds == pytest.approx(max(found.compute_s, found.memory_s) + 1e-6, rel=1e-9)
    assert found.bound in ("launch", "compute", "memory")


def test_cutting_less_than_a_tile_gains_nothing_and_a_tile_does(device, tmp_path):
    roofline = Roofline(device)
    full, less, tile = (roofline.segment(linear(640, n, 4096, tmp_path)).compute_s for n in (640, 600, 576))
    assert less == full
    assert tile < full


def test_profile_without_roofline_can_not_be_estimated():
    with pytest.raises(UsageError, match=r"\[roofline\] lacks fp32_flops"):
        Roofline(targets.load("cpu"))


@pytest.mark.parametrize("name", [n for n in targets.names() if targets.load(n).roofline])
def test_every_profile_with_a_roofline_estimates_and_names_sources(name, tmp_path):
    target = targets.load(name)
    assert all(len(entry["source"]) > 5 for entry in target.roofline.values())
    small, large = (Roofline(target).segment(linear(64, n, 512, tmp_path)).seconds for n in (64, 8192))
    assert 0 < small < large


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('fp16_flop = { value = 1e12, source = "s" }', "did you mean fp16_flops"),
        ("fp16_flops = 1e12", "must be {value = ..., source ="),
        ('fp16_flops = { value = 1e12, source = "" }', "must be {value"),
        ('fp16_flops = { value = -1, source = "s" }', "must be a number > 0"),
        ('tiles = { value = [[64, 64]], source = "s" }', "rows, columns, inner"),
    ],
)
def test_faults_of_a_roofline_are_told(tmp_path, line, wanted):
    start = PROFILE[: PROFILE.index("[roofline]")]
    (tmp_path / "p.toml").write_text(f"{start}[roofline]\n{line}\n")
    with pytest.raises(UsageError) as caught:
        targets.load(str(tmp_path / "p.toml"))
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("profile", "name", "fits"),
    [
        ("a100", "NVIDIA A100-SXM4-80GB", True), ("a100", "NVIDIA A100 80GB PCIe", True), ("a100-40", "NVIDIA A100-SXM4-40GB", True),
        ("a100-40", "NVIDIA A100 80GB PCIe", False), ("l4", "NVIDIA L4", True), ("l4", "NVIDIA L40S", False), ("l40s", "NVIDIA L40S", True),
        ("a10", "NVIDIA A10", True), ("a10", "NVIDIA A100-PCIE-40GB", False), ("a10", "NVIDIA A10G", False), ("h100", "NVIDIA H100 80GB HBM3", True),
        ("h200", "NVIDIA H200", True), ("h100", "NVIDIA H200", False), ("t4", "Tesla T4", True), ("rtx-4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx-4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False), ("orin", "Orin (nvgpu)", True), ("graviton", "Neoverse-V1", True),
        ("cpu", "whatever", True), ("b200", "NVIDIA B200", True),
    ],
)  # fmt: skip
def test_device_names_as_drivers_report_them(profile, name, fits):
    assert targets.load(profile).matches(name) is fits


def test_target_survives_the_wire(device):
    assert targets.Target.from_json(json.loads(json.dumps(device.to_json()))) == device


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(1.01, 1.2, "faster"), (0.8, 0.99, "slower"), (0.99, 1.2, "not distinguishable")]
)
def test_verdicts(low, high, wanted):
    assert Measurement((low + high) / 2, "x", low, high, 16).verdict == wanted


def test_sessions_widen_the_interval_as_independent_deviations_do():
    low, high = paired.with_sessions(0.0, -0.003, 0.003, 0.005, 0.05)
    assert high == pytest.approx(math.hypot(0.003, 1.96 * 0.005), rel=1e-3)
    assert low == -high
    assert paired.with_sessions(0.1, 0.09, 0.12, 0.0, 0.05) == pytest.approx((0.09, 0.12))
    assert paired.session_sd([]) == paired.SESSION_SD
    assert paired.session_sd([0.05, -0.05, 0.05, -0.05] * 10) == pytest.approx(0.05, rel=0.06)


def test_outliers_are_counted():
    assert paired.outlier_share([0.0, 0.01, -0.01, 0.005, -0.005, 0.0, 0.01, 1.0]) == pytest.approx(1 / 8)
    assert paired.outlier_share([0.0] * 8) == 0.0


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


def test_sensors_answer_or_say_nothing():
    found = sensors.cpu_conditions()
    assert len(found["load_average"]) == 3
    assert sensors.resident_bytes() > 1e6
    assert sensors.gpu() is None or sensors.gpu()["name"]
    assert sensors.gpu_memory_used() is None or sensors.gpu_memory_used() >= 0
    assert sensors.gpu_energy_j() is None or sensors.gpu_energy_j() > 0
    if sensors.reset_peak():
        assert sensors.peak_bytes() > 1e6


class FakeNvml:
    """NVML's names for throttle reasons, newer and older."""

    nvmlClocksEventReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwThermalSlowdown = 64

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 1 + 4 + 64  # idle, power cap, temperature


def test_throttle_reasons_in_words():
    assert sensors.throttle_reasons(FakeNvml(), None) == ["power cap", "temperature (hardware)"]
    assert throttled({"throttle_count": 3}, {"throttle_count": 4})
    assert throttled({}, {"gpu": {"throttled": ["power cap"]}})
    assert not throttled({"throttle_count": 3}, {"throttle_count": 3, "gpu": {"throttled": []}})


HOLD = """
import sys, time
from pathlib import Path
from hwprune.latency.device_lock import Slot
slot = Slot("cpu", [Path(sys.argv[1])]); slot.acquire(); print("held", flush=True); time.sleep(60)
"""


def test_timing_slot_is_exclusive_and_freed_by_a_kill(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    other = Slot("cuda", [tmp_path])
    other.acquire()  # another device is another slot
    time.sleep(1.0)
    assert waiter.poll() is None
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(waiter.stdout, selectors.EVENT_READ)
        assert not selector.select(0.2)  # still waiting
        holder.kill()
        assert selector.select(20)
    assert waiter.stdout.readline() == "held\n"
    waiter.kill()
    for process in (holder, waiter):
        process.wait()
        process.stdout.close()
    other.release()


def test_nvml_names_are_those_of_the_published_bindings():
    import re
    from pathlib import Path

    pynvml = pytest.importorskip("pynvml")
    names = set(re.findall(r"library\.(nvml\w+|NVML_\w+)", Path(sensors.__file__).read_text()))
    assert len(names) > 10
    assert sorted(name for name in names if not hasattr(pynvml, name)) == []
    assert all(hasattr(pynvml, f"nvmlClocksEventReason{name}") for name in sensors._THROTTLE)
