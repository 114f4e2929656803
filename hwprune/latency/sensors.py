"""What a machine tells of itself while it measures: clocks, throttling, energy, memory. All is optional, nothing needs root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CPU = Path("/sys/devices/system/cpu")
_RAPL = Path("/sys/class/powercap")

_THROTTLE = {
    "SwPowerCap": "power cap", "HwSlowdown": "hardware slowdown", "HwThermalSlowdown": "temperature (hardware)",
    "HwPowerBrakeSlowdown": "power brake", "SwThermalSlowdown": "temperature (driver)",
}  # fmt: skip
"""NVML's reasons that slow a busy GPU down; being idle, or clocks that an application set, are none."""


def cpu_conditions() -> dict[str, Any]:
    """Load average, governor, frequency and throttling counts, where the system tells."""
    conditions: dict[str, Any] = {"load_average": [round(value, 2) for value in os.getloadavg()]}
    if governor := _text(_CPU / "cpu0/cpufreq/scaling_governor"):
        conditions["governor"] = governor
    if mhz := cpu_mhz():
        conditions["cpu_mhz"] = mhz
    if (count := throttle_count()) is not None:
        conditions["throttle_count"] = count
    return conditions


def cpu_mhz() -> float | None:
    """Mean frequency of the cores now."""
    frequencies = [float(text) / 1e3 for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_cur_freq") if (text := _text(path))]
    if not frequencies:
        with contextlib.suppress(OSError, ValueError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            frequencies = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(frequencies) / len(frequencies), 1) if frequencies else None


def throttle_count() -> int | None:
    """The number of times that cores were slowed for their temperature since boot; None where the system doesn't say."""
    counts = [text for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count") if (text := _text(path))]
    return sum(map(int, counts)) if counts else None


def cpu_energy_j() -> float | None:
    """Joules of all CPU packages since some moment (RAPL); None where it can't be read. It counts everything that runs."""
    total = 0.0
    counted = False
    for zone in _RAPL.glob("intel-rapl:[0-9]*"):
        package = (_text(zone / "name") or "").startswith("package")  # psys holds the packages once more
        if package and (text := _text(zone / "energy_uj")):
            total += int(text) * 1e-6
            counted = True
    return total if counted else None


@contextlib.contextmanager
def nvml() -> Iterator[Any]:
    """The NVML module, initialised; None without driver or package (nvidia-ml-py)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, no driver, or one that is broken: all mean that there is nothing to ask
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


@contextlib.contextmanager
def device() -> Iterator[tuple[Any, Any]]:
    """(NVML, handle) of CUDA's first visible device, the one that runs; (None, None) if there is none or it doesn't answer.

    NVML counts all devices in PCI order; CUDA counts those of CUDA_VISIBLE_DEVICES, in PCI order only under
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, which the measuring process sets.
    """
    with nvml() as library:
        handle = None
        if library is not None:
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
            with contextlib.suppress(Exception):  # hidden by an empty list, lost, or out of range
                if first.isdigit():
                    handle = library.nvmlDeviceGetHandleByIndex(int(first))
                else:
                    handle = library.nvmlDeviceGetHandleByUUID(first)
        yield (library, handle) if handle is not None else (None, None)


def gpu() -> dict[str, Any] | None:
    """Name, driver and memory of the GPU that runs, or None. A Jetson without NVML gives its board's name."""
    with device() as (library, handle):
        if library is not None:
            with contextlib.suppress(Exception):
                entry: dict[str, Any] = {"name": _string(library.nvmlDeviceGetName(handle))}
                entry["driver"] = _string(library.nvmlSystemGetDriverVersion())
                with contextlib.suppress(Exception):  # a Jetson's memory is the system's
                    entry["memory_bytes"] = int(library.nvmlDeviceGetMemoryInfo(handle).total)
                return entry
    board = (_text(Path("/proc/device-tree/model")) or "").strip("\0")
    if "Jetson" in board or "Orin" in board or "Xavier" in board:
        return {"name": board, "driver": _text(Path("/etc/nv_tegra_release")) or "unknown"}
    return None


def gpu_conditions() -> dict[str, Any]:
    """Clocks, temperature, power and its limit, and why the GPU is slower than it could be."""
    conditions: dict[str, Any] = {}
    with device() as (library, handle):
        if library is None:
            return conditions
        readings: dict[str, Any] = {
            "sm_mhz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
            "memory_mhz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
            "temperature_c": lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
            "power_w": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "power_limit_w": lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "throttled": lambda: throttle_reasons(library, handle),
        }
        for name, read in readings.items():
            with contextlib.suppress(Exception):  # not every device answers every question
                conditions[name] = read()
    return conditions


def throttle_reasons(library: Any, handle: Any) -> list[str]:
    """The reasons among `_THROTTLE` that hold now."""
    ask = getattr(library, "nvmlDeviceGetCurrentClocksEventReasons", None) or library.nvmlDeviceGetCurrentClocksThrottleReasons
    bits = int(ask(handle))
    reasons = []
    for name, text in _THROTTLE.items():
        bit = getattr(library, f"nvmlClocksEventReason{name}", None) or getattr(library, f"nvmlClocksThrottleReason{name}", 0)
        if bits & int(bit or 0):
            reasons.append(text)
    return reasons


def gpu_energy_j() -> float | None:
    """Joules of the GPU since the driver was loaded (Volta and later)."""
    with device() as (library, handle), contextlib.suppress(Exception):  # the device doesn't count
        if library is not None:
            return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    return None


def gpu_memory_used() -> int | None:
    """Bytes in use on the GPU, by whomever."""
    with device() as (library, handle), contextlib.suppress(Exception):  # a Jetson has none of its own, MIG hides it
        if library is not None:
            return int(library.nvmlDeviceGetMemoryInfo(handle).used)
    return None


def resident_bytes() -> int | None:
    """Memory of this process."""
    text = _text(Path("/proc/self/statm"))
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") if text else None


def reset_peak() -> bool:
    """Forget the largest memory of this process so far; False where that can't be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Largest memory of this process since `reset_peak`."""
    for line in (_text(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
