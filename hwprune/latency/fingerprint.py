"""What machine, runtime and settings a number belongs to.

The *identity* must match before numbers are compared; the *conditions* are recorded beside them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hwprune import runtimes
from hwprune.target import Target


def identity(target: Target) -> dict[str, Any]:
    """Device, ISA, runtime with version, threads and options."""
    return {
        "device": device_name(),
        "isa": isa(),
        "cores": os.cpu_count() or 1,
        "runtime": runtimes.get(target.runtime).version(),
        "threads": target.threads,
        "precision": target.precision,
        "options": dict(target.options),
    }


def conditions() -> dict[str, Any]:
    """Load average and frequency governor, where the system tells."""
    found: dict[str, Any] = {"load_average": [round(value, 2) for value in os.getloadavg()]}
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file():
        found["governor"] = governor.read_text().strip()
    return found


def device_name() -> str:
    """The CPU's name as the system reports it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs as the driver reports them; empty without driver or GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def isa() -> str:
    """``avx512``, ``avx2``, ``neon`` or ``default``: what decides the kernels' block sizes."""
    flags = _cpuinfo().get("flags", "").split()
    if "avx512f" in flags:
        return "avx512"
    if "avx2" in flags:
        return "avx2"
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    return "default"


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
