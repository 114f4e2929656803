"""A token in OpenVINO: the file that is delivered, beside other forms of the same model.

    python benchmarks/openvino_states.py --file model.onnx [--optimum FOLDER] [--past 160] [--rounds 15]

FILE: an ONNX file with a cache, such as RUN/work/dense.onnx of a search; FOLDER: what `optimum-cli export openvino --task
text-generation-with-past --weight-format fp32` makes of the same model. "operators": the cache as a state, attention in the
operators of the ONNX file. "fixed shapes": compiled for one step, the cache as inputs and outputs, which no program that
generates text can use. All run by turns in one process, on one thread, by its CPU time; told are the medians, and the median of
the ratios of rounds with the range in which the middle half of them lies.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from common import heading
from openvino._offline_transformations import apply_make_stateful_transformation

from hwprune.runtimes import RuntimeSettings, get
from hwprune.runtimes.openvino import OpenVinoRunner
from hwprune.runtimes.openvino_states import EXACT_CACHE, state_pairs, where_they_stand
from hwprune.streaming.cached_onnx import CacheShape

STEPS = 16
PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False, **EXACT_CACHE,
}  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """Of one call: the median of some."""
    found = []
    for _ in range(STEPS):
        started = time.thread_time()
        call()
        found.append(time.thread_time() - started)
    return statistics.median(found)


def generating(model: Any, past: int) -> Callable[[], object]:
    """Single tokens of a model with states, ``past`` of them at the first call."""
    compiled = openvino.Core().compile_model(model, "CPU", PROPERTIES)
    request = compiled.create_infer_request()
    length = 0

    def step(tokens: int = 1) -> None:
        nonlocal length
        length += tokens
        ids = np.ones((1, tokens), np.int64)
        request.infer({"input_ids": ids} | where_they_stand(compiled, np.ones((1, length), np.int64), tokens))

    def call() -> None:
        nonlocal length
        if not past - STEPS <= length < past + STEPS:
            request.reset_state()
            length = 0
            step(past - STEPS // 2)
        step()

    call()
    return call


def plain_states(path: Path) -> Any:
    """The cache as a state, and nothing else changed."""
    model = openvino.Core().read_model(str(path))
    model.reshape({place: openvino.PartialShape([1, *list(item.partial_shape)[1:]]) for place, item in enumerate(model.inputs)})
    apply_make_stateful_transformation(model, state_pairs(model))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--optimum", type=Path)
    parser.add_argument("--past", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    heading("A token in OpenVINO")
    print(f"openvino {get('openvino').version()}")
    inputs = CacheShape.of_file(options.file).inputs(1, 1, options.past)
    settings = RuntimeSettings(shapes=tuple(x.shape for x in inputs))
    forms = {
        "delivered": get("openvino").load(options.file, settings).bind(inputs),
        "operators": generating(plain_states(options.file), options.past),
        "fixed shapes": OpenVinoRunner(openvino.Core().read_model(str(options.file)), settings).bind(inputs),
    }
    if options.optimum:
        forms["Optimum's"] = generating(openvino.Core().read_model(options.optimum / "openvino_model.xml"), options.past)
    rounds = [{name: seconds(call) for name, call in forms.items()} for _ in range(options.rounds)]
    for name in forms:
        ratios = sorted(one[name] / one["delivered"] for one in rounds)
        quarter = len(ratios) // 4
        print(
            f"* {name}: {1e3 * statistics.median(one[name] for one in rounds):.1f} ms, {statistics.median(ratios):.2f} times as long "
            f"as delivered [{ratios[quarter]:.2f}, {ratios[-1 - quarter]:.2f}], {len(rounds)} rounds"
        )


if __name__ == "__main__":
    main()
