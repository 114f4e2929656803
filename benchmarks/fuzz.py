"""Random graph programs, cut against masked; the nightly proof of the axis engine.

python benchmarks/fuzz.py [--programs 10000] [--start 0] [--length 12]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch
from common import ROOT, heading

sys.path.insert(0, str(ROOT))


def main() -> None:
    from tests.structure.programs import check

    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--length", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    heading("fuzz")
    start, wrong = time.monotonic(), 0
    for number, seed in enumerate(range(arguments.start, arguments.start + arguments.programs), 1):
        try:
            fault = check(seed, arguments.length)
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            fault = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if fault:
            wrong += 1
            print(f"seed {seed}: {fault}", flush=True)
        if number % 500 == 0:
            print(f"{number} programs, {wrong} wrong, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{arguments.programs} programs of {arguments.length} steps from seed {arguments.start}: {wrong} wrong or crashed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
