"""hwprune doctor."""

from __future__ import annotations

import argparse
import json
import os

from hwprune.cli import arguments as args


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Exit code 1 if not even the CPU target can be measured."""
    from hwprune import runtimes
    from hwprune.latency import fingerprint
    from hwprune.searching.recording import versions

    conditions = fingerprint.conditions()
    gpu = fingerprint.gpu_name()
    rows = [
        ("CPU", f"{fingerprint.device_name()} ({fingerprint.isa()}, {os.cpu_count()} cores)"),
        ("load average", ", ".join(map(str, conditions["load_average"]))),
        ("governor", conditions.get("governor", "not reported by this system")),
        ("GPU", gpu or "none (no NVIDIA driver or GPU)"),
        *versions().items(),
    ]
    absent = {name: runtime.missing() for name, runtime in runtimes.RUNTIMES.items()}
    for name, runtime in runtimes.RUNTIMES.items():
        rows.append((f"runtime {name}", absent[name] or f"ready ({runtime.version()})"))
    more = "`pip install 'hwprune[energy]'` also reads"
    rows.append(
        ("energy of the CPU", _counted("cpu") or f"not readable (RAPL needs root on most systems; {more} zeusd, Jetson, Apple)")
    )
    if gpu:
        rows.append(("energy of the GPU", _counted("cuda") or f"not readable (NVML; {more} AMD's)"))
    untested = [name for name, reason in absent.items() if reason]
    rows.append(("untested here", f"the runtimes {', '.join(untested)}" if untested else "nothing"))
    print(json.dumps(dict(rows), indent=1) if options.json else args.lines(rows))
    return 1 if absent["onnxruntime-cpu"] else 0


def _counted(device: str) -> str:
    """The counter of a device's energy; empty: there is none."""
    from hwprune.latency import energy

    found = energy.counter(device)
    return f"counted ({found[0]})" if found else ""
