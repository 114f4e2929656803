"""Whether a target can be measured on this machine."""

from __future__ import annotations

from hwprune import runtimes
from hwprune.latency import fingerprint
from hwprune.records.target import Target


def missing(target: Target) -> list[str]:
    """Why a target can't be measured on this machine; empty: it can."""
    reasons = [reason] if (reason := runtimes.missing(target.runtime)) else []
    if target.device == "cuda":
        gpu = fingerprint.gpu_name()
        if gpu is None or not target.matches(gpu):
            reasons.insert(0, f"its GPU is {gpu} (CUDA_VISIBLE_DEVICES chooses another)" if gpu else "it has no NVIDIA GPU")
    elif target.device_match and not target.matches(fingerprint.device_name()):
        reasons.insert(0, f"its CPU is {fingerprint.device_name()}")
    return reasons
