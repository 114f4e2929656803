"""Joules through zeus's own code, fed with files and measurements of its own kinds."""

from __future__ import annotations

import inspect

import pytest

from hwprune.latency import energy, sensors

soc = pytest.importorskip("zeus.device.soc")


@pytest.fixture
def nothing_of_our_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sensors, "_RAPL", tmp_path / "none")
    monkeypatch.setattr(sensors, "gpu_energy_j", lambda: None)


def test_the_kernels_own_files_come_first(monkeypatch, tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "energy_uj").write_text("2500000")
    monkeypatch.setattr(sensors, "_RAPL", tmp_path)
    name, read = energy.counter("cpu")
    assert name == "RAPL" and read() == pytest.approx(2.5)


def test_zeus_reads_cpu_packages(nothing_of_our_own, monkeypatch, tmp_path):
    import zeus.device.cpu as cpu
    import zeus.device.cpu.rapl as rapl

    for number, microjoules in enumerate((4_000_000, 1_000_000)):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"package-{number}")
        (zone / "energy_uj").write_text(str(microjoules))
        (zone / "max_energy_range_uj").write_text("262143328850")

    class Tracker:
        """Zeus's own watches the counter from a process that it starts; there is nothing to watch in a file."""

        def __init__(self, *_):
            pass

        def get_num_wraparounds(self):
            return 0

    monkeypatch.setattr(rapl, "RaplWraparoundTracker", Tracker)
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path))
    monkeypatch.setattr(cpu, "_cpus", None)
    name, read = energy.counter("cpu")
    before = read()
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1250000")
    after = read()
    monkeypatch.setattr(cpu, "_cpus", None)
    assert name == "zeus, RAPL" and before == pytest.approx(5.0) and after - before == pytest.approx(0.25)


def _a_board(monkeypatch, measurement):
    class Board:
        def get_total_energy_consumption(self):
            return measurement

    monkeypatch.setattr(soc, "_soc", Board())


def test_a_jetson_tells_cpu_and_gpu_apart(nothing_of_our_own, monkeypatch):
    from zeus.device.soc.jetson import JetsonMeasurement

    _a_board(monkeypatch, JetsonMeasurement(cpu_energy_mj=1500.0, gpu_energy_mj=7000.0, total_energy_mj=9000.0))
    assert energy.counter("cpu")[1]() == 1.5 and energy.counter("cuda")[1]() == 7.0
    _a_board(monkeypatch, JetsonMeasurement(total_energy_mj=9000.0))
    assert energy.counter("cuda")[1]() == 9.0


def test_apples_chip(nothing_of_our_own, monkeypatch):
    from zeus.device.soc.apple import AppleSiliconMeasurement

    _a_board(monkeypatch, AppleSiliconMeasurement(cpu_total_mj=250, gpu_mj=3000))
    assert energy.counter("cpu")[1]() == 0.25 and energy.counter("cuda")[1]() == 3.0


def test_gpus_are_asked_in_millijoules_by_index(nothing_of_our_own, monkeypatch):
    import zeus.device.gpu as gpu
    from zeus.device.gpu.common import GPUs

    asked = []

    class Cards:
        def get_total_energy_consumption(self, gpu_index):
            asked.append(gpu_index)
            return 12_000

    assert list(inspect.signature(GPUs.get_total_energy_consumption).parameters)[1] == "gpu_index"
    assert "mJ" in inspect.getdoc(GPUs.get_total_energy_consumption)
    monkeypatch.setattr(gpu, "_gpus", Cards())
    name, read = energy.counter("cuda")
    assert name == "zeus, GPU" and read() == 12.0 and set(asked) == {0}


def test_a_device_that_falls_silent_is_no_error(nothing_of_our_own, monkeypatch):
    class Board:
        left = 1

        def get_total_energy_consumption(self):
            from zeus.device.soc.jetson import JetsonMeasurement

            self.left -= 1
            if self.left < 0:
                raise TimeoutError
            return JetsonMeasurement(cpu_energy_mj=1.0)

    monkeypatch.setattr(soc, "_soc", Board())
    _, read = energy.counter("cpu")
    assert read() is None


def test_nothing_counts_here_without_zeus(nothing_of_our_own, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "zeus.device", None)
    assert energy.counter("cpu") is None and energy.counter("cuda") is None
