"""A token in OpenVINO: with the cache as a state, and compiled for the shapes of one step with the cache as inputs and outputs.

    python benchmarks/openvino_states.py --file model.onnx [--past 160] [--rounds 15]

FILE: an ONNX file with a cache, such as RUN/work/dense.onnx of a search. The second form is what no program that generates text can
use, because each step has another length. Both run by turns in one process, on one thread, by its CPU time; told are the medians,
and the median of the ratios of rounds with the range in which the middle half of them lies.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import openvino
from common import heading

from hwprune.runtimes import RuntimeSettings, get
from hwprune.runtimes.openvino import OpenVinoRunner
from hwprune.streaming.cached_onnx import CacheShape

STEPS = 16


def seconds(call: Callable[[], object]) -> float:
    """Of one call: the median of some."""
    found = []
    for _ in range(STEPS):
        started = time.thread_time()
        call()
        found.append(time.thread_time() - started)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--past", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    heading("A token in OpenVINO")
    print(f"openvino {get('openvino').version()}")
    inputs = CacheShape.of_file(options.file).inputs(1, 1, options.past)
    settings = RuntimeSettings(shapes=tuple(x.shape for x in inputs))
    fixed = OpenVinoRunner(openvino.Core().read_model(str(options.file)), settings).bind(inputs)
    state = get("openvino").load(options.file, settings).bind(inputs)
    rounds = [(seconds(state), seconds(fixed)) for _ in range(options.rounds)]
    ratios = sorted(a / b for a, b in rounds)
    quarter = len(ratios) // 4
    print(
        f"state {1e3 * statistics.median(a for a, _ in rounds):.1f} ms, fixed shapes "
        f"{1e3 * statistics.median(b for _, b in rounds):.1f} ms: {statistics.median(ratios):.2f} times as long "
        f"[{ratios[quarter]:.2f}, {ratios[-1 - quarter]:.2f}], {len(rounds)} rounds"
    )


if __name__ == "__main__":
    main()
