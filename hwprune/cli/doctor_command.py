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
    gpus = fingerprint.gpu_names()
    rows = [
        ("CPU", f"{fingerprint.device_name()} ({fingerprint.isa()}, {os.cpu_count()} cores)"),
        ("load average", ", ".join(map(str, conditions["load_average"]))),
        ("governor", conditions.get("governor", "not reported by this system")),
        ("GPU", ", ".join(gpus) or "none (no NVIDIA driver or GPU)"),
        *versions().items(),
    ]
    for name, runtime in runtimes.RUNTIMES.items():
        rows.append((f"runtime {name}", runtime.missing() or f"ready ({runtime.version()})"))
    rows += [(f"runtime {name}", reason) for name, reason in runtimes.PLANNED.items()]
    rows.append(("untested here", "everything that needs a GPU" if not gpus else "nothing"))
    print(json.dumps(dict(rows), indent=1) if options.json else args.lines(rows))
    return 1 if any(runtime.missing() for runtime in runtimes.RUNTIMES.values()) else 0
