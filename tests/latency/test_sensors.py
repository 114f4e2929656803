"""What the machine tells of itself."""

from __future__ import annotations

import pytest

from hwprune.latency import sensors
from hwprune.latency.worker import throttled


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


def test_nvml_names_are_those_of_the_published_bindings():
    import re
    from pathlib import Path

    pynvml = pytest.importorskip("pynvml")
    names = set(re.findall(r"library\.(nvml\w+|NVML_\w+)", Path(sensors.__file__).read_text()))
    assert len(names) > 10
    assert sorted(name for name in names if not hasattr(pynvml, name)) == []
    assert all(hasattr(pynvml, f"nvmlClocksEventReason{name}") for name in sensors._THROTTLE)
