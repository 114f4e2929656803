"""What a finished search of a language model expected of its models, beside what they were; and found models beside plain ones.

    python benchmarks/language_predictions.py --run RUN

RUN: of `hwprune search hf:FOLDER --text ...`. Divergence is in nats a token from the dense model, on the windows that trials are
held against, without any repair. "Estimated" is what all trials together say of a model's time (`PhaseStudy.estimates`). Where
the same share of neurons goes in all blocks, divergence between two of these models is interpolated over the logarithm of the
answer's speedup.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import heading

PHASES = ("prefill", "decode")


def answer(record: Mapping[str, Any], speedups: Mapping[str, float]) -> float:
    """Speedup of the whole answer."""
    weights = {"prefill": 1, "decode": record["job"]["tokens"]["new"]}
    dense = {phase: weights[phase] * record["prices"]["dense"][phase] for phase in PHASES}
    return sum(dense.values()) / sum(dense[phase] / speedups[phase] for phase in PHASES)


def spread(errors: Sequence[float]) -> str:
    """Median and largest."""
    return f"{np.median(errors):.1%} in the median, {max(errors):.1%} at most ({len(errors)} models)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    options = parser.parse_args()
    heading("What a search expected, and what was")
    record = json.loads((options.run / "record.json").read_text(encoding="utf-8"))
    trials = [one for one in record["trials"] if one["state"] == "COMPLETE" and one["estimated"]]
    known: dict[str, Any] = {}
    for one in trials:
        known.setdefault(one["allocation"], one)
    plain = [one for one in known.values() if "fixed" in one]
    found = [one for one in known.values() if "fixed" not in one]
    for phase in PHASES:
        errors = [abs(one["predicted"][phase] / one["speedups"][phase][0] - 1) for one in known.values()]
        halves = [math.log(one["speedups"][phase][2] / one["speedups"][phase][1]) / 2 for one in known.values()]
        print(
            f"* {phase}: predicted speedups are off by {spread(errors)}; a trial's interval is {np.median(halves):.1%} either way"
        )
    for low, high in ((0.0, 1.0), (1.0, math.inf)):
        some = [one for one in found if low <= one["values"][0] < high and one.get("expected")]
        if some:
            errors = [abs(one["expected"] / one["values"][0] - 1) for one in some]
            print(f"* divergence from {low:g} to {high:g} nats: expected is off by {spread(errors)}")
    print("\n| model | nats | perplexity, held out | answer, estimated | plain neurons at that time: nats |")
    print("| --- | ---: | ---: | ---: | ---: |")
    line = sorted((math.log(answer(record, one["estimated"])), one["values"][0]) for one in plain)
    best = math.inf
    rows = sorted(found, key=lambda one: -answer(record, one["estimated"]))
    front = []
    for one in rows:
        if one["values"][0] < best:
            best = one["values"][0]
            front.append(one)
    for one in sorted([*plain, *front], key=lambda one: answer(record, one["estimated"])):
        speedup = answer(record, one["estimated"])
        other = ""
        if "fixed" not in one and len(line) > 1 and line[0][0] <= math.log(speedup) <= line[-1][0]:
            nats = float(np.interp(math.log(speedup), *zip(*line, strict=True)))
            other = f"{nats:.3f} ({one['values'][0] / nats - 1:+.0%})"
        name = f"plain {one['number']}" if "fixed" in one else f"trial {one['number']}"
        print(f"| {name} | {one['values'][0]:.3f} | {one['score']['perplexity']:.2f} | {speedup:.2f}x | {other} |")


if __name__ == "__main__":
    main()
