"""What machine, runtime and settings a number belongs to.

The *identity* must match before numbers are compared; the *conditions* are recorded beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune import runtimes
from hwprune.latency import sensors
from hwprune.records.target import Target

_ARM = {
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd42"): "Cortex-A78AE", ("0x4e", "0x004"): "NVIDIA Carmel",
}  # fmt: skip
"""Arm cores by implementer and part: Linux gives no name there (Arm's MIDR register)."""


def identity(target: Target) -> dict[str, Any]:
    """Device with its ISA or driver, runtime with version, threads, precision and options."""
    device: dict[str, Any] = {"device": device_name(), "isa": isa(), "cores": os.cpu_count() or 1}
    if target.device == "cuda":
        card = sensors.gpu() or {"name": "unknown", "driver": "unknown"}
        device |= {"device": card["name"], "driver": card["driver"], "host_cpu": device_name()}
    return {
        **device,
        "runtime_name": target.runtime,
        "runtime": runtimes.get(target.runtime).version(),
        "threads": target.threads,
        "precision": target.precision,
        "options": dict(target.options),
    }


def digest(identity_: Mapping[str, Any]) -> str:
    """Names the folder of what was measured under an identity."""
    return hashlib.sha256(json.dumps(identity_, sort_keys=True).encode()).hexdigest()[:16]


def conditions(device: str = "cpu") -> dict[str, Any]:
    """Load average, governor, clocks, power limit, throttle reasons: what the machine tells."""
    cpu = sensors.cpu_conditions()
    return {**cpu, "gpu": sensors.gpu_conditions()} if device == "cuda" else cpu


def device_name() -> str:
    """The CPU's name as the system reports it."""
    info = _cpuinfo()
    arm = _ARM.get((info.get("CPU implementer", ""), info.get("CPU part", "")))
    return info.get("model name") or arm or platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Name, as the driver reports it, of the NVIDIA GPU that CUDA would run on; None without driver or GPU."""
    card = sensors.gpu()
    return None if card is None else str(card["name"])


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


def saturates() -> bool:
    """Do 8-bit kernels of this CPU add products in 16 bits, which may overflow? x86 before VNNI does."""
    flags = _cpuinfo().get("flags", "").split()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
