"""The whole path: the embedded demo and, where its data is, ResNet-20 on CIFAR-10; then both fronts measured again.

    python benchmarks/whole.py [--data ../shared/data]

Prints wall time, peak memory, the front, and how far the speedups of front.csv are from those that `hwprune verify`
measures afterwards in new processes.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from common import ROOT, heading, hwprune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    heading("whole searches")
    with tempfile.TemporaryDirectory() as folder:
        one("demo:digits", ["demo:digits", "--trials", "40", "--seed", "0"], Path(folder) / "digits")
        one("demo:digits-vit", ["demo:digits-vit", "--trials", "20", "--seed", "0"], Path(folder) / "vit")
        if (options.data / "resnet20_cifar10.pt").is_file():
            words = ["examples/cifar_resnet20.py:workload", f"folder={options.data.resolve()}", "--trials", "30", "--seed", "0"]
            one("ResNet-20, CIFAR-10", words, Path(folder) / "resnet20")
        else:
            print(f"ResNet-20 left out: {options.data} holds no resnet20_cifar10.pt")


def one(name: str, words: list[str], out: Path) -> None:
    """Search, then verify."""
    start = time.perf_counter()
    found = json.loads(hwprune("search", *words, "--out", str(out), "--json"))
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"## {name}: {spent:.0f} s, largest process so far {peak / 1e6:.0f} MB")
    dense = found["baseline"]["self_speedup"]
    print(f"dense against itself {dense['value']:.3f} [{dense['ci_low']:.3f}, {dense['ci_high']:.3f}]")
    again = {row["name"]: row["speedup"] for row in json.loads(hwprune("verify", str(out), "--json"))}
    print("| point | drop | speedup | interval | verify | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for point in found["front"]:
        speedup = point["speedup"]
        repeat = again[f"trial {point['trial']}"]["value"]
        print(
            f"| {point['trial']} | {point['drop']:+.4f} "
            f"| {speedup['value']:.2f} | {speedup['ci_low']:.2f}-{speedup['ci_high']:.2f} "
            f"| {repeat:.2f} | {100 * (repeat / speedup['value'] - 1):+.1f} % |"
        )
    print()


if __name__ == "__main__":
    main()
