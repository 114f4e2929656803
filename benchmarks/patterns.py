"""Which pattern pays on which runtime: whole models with the most of each pattern, against dense (the probe's own measurement).

    python benchmarks/patterns.py [--workloads digits,digits-vit,resnet20,minilm] [--targets cpu,cpu-openvino]

A table a network: rows are patterns, columns are targets, cells are paired speedups with 95 % intervals. What does not pay at its
most does not pay at less. Run it on the device that is asked about; a target
that the probe can't measure is left out and named (probing needs a runtime of ONNX files).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from common import ROOT, heading, hwprune

DEMOS = ("digits", "digits-vit")


def source(name: str) -> str:
    """The workload's name for the command line."""
    return f"demo:{name}" if name in DEMOS else f"{ROOT / 'benchmarks' / 'workloads.py'}:{name}"


def probed(name: str, target: str) -> list[dict[str, Any]]:
    """What the probe says of each pattern."""
    found: list[dict[str, Any]] = json.loads(hwprune("probe", source(name), "--target", target, "--json", "--quiet"))["patterns"]
    return found


def cell(row: dict[str, Any] | None) -> str:
    """A speedup with its interval; empty where the network has nothing of the pattern."""
    if row is None or row["speedup"] is None:
        return ""
    ratio = row["speedup"]
    return f"{ratio['value']:.2f} [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]"


def table(name: str, targets: list[str]) -> None:
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    for target in targets:
        try:
            columns[target] = {row["pattern"]: row for row in probed(name, target)}
        except subprocess.CalledProcessError as error:
            print(f"({target}: left out, the probe ended with {error.returncode})", file=sys.stderr)
    rows = {pattern: row["what"] for column in columns.values() for pattern, row in column.items()}
    print(f"## {name}\n\n| pattern | what is done | {' | '.join(columns)} |\n| --- | --- |{' ---: |' * len(columns)}")
    for pattern, what in rows.items():
        print(f"| {pattern} | {what} | {' | '.join(cell(column.get(pattern)) for column in columns.values())} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="digits,digits-vit,resnet20,minilm")
    parser.add_argument("--targets", default="cpu,cpu-openvino")
    options = parser.parse_args()
    heading("Which pattern pays on which runtime")
    for name in options.workloads.split(","):
        table(name, options.targets.split(","))


if __name__ == "__main__":
    main()
