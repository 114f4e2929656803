"""Does sequential compensation help whatever text calibrates? Three draws of calibration text, one recipe, the same test text.

    python benchmarks/language_draws.py --folder FOLDER [--recipe neuron=0.2] [--windows 16] [--draws 3] [--draw N]

FOLDER: a Hugging Face folder, such as SmolLM2-135M unpacked to 32 bits. Each draw calibrates on another part of WikiText-2's
validation text (HWPRUNE_DATA/wikitext2). The road in memory runs with ``obs`` (every layer fitted to its own dense inputs) and with
``obs+sequential``, the road block by block with its own fit to the dense stream; 32 windows of the test text judge.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from common import ROOT, heading, hwprune

DATA = Path(os.environ.get("HWPRUNE_DATA", ROOT.parent / "shared" / "data")) / "wikitext2"


def perplexity(folder: str, recipe: str, texts: str, options: argparse.Namespace, *words: str) -> float:
    """Of what one run of `hwprune apply` has made."""
    with tempfile.TemporaryDirectory() as scratch:
        told = json.loads(
            hwprune(
                "apply", recipe, f"hf:{folder}", "--text", texts, "--windows", str(options.windows), "--length",
                str(options.length), "--score", "--json", "--quiet", "--out", f"{scratch}/out", *words,
            )
        )  # fmt: skip
    return float(told["perplexity"] if "perplexity" in told else told["metric"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--recipe", default="neuron=0.2")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--draw", type=int, help="only this one of them")
    options = parser.parse_args()
    heading("Calibration draws")
    lines = (DATA / "valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    print(f"{options.recipe}, {options.windows} windows of {options.length} tokens.\n")
    print("| draw | obs | obs+sequential | block by block |")
    print("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch:
        for draw in range(options.draws) if options.draw is None else [options.draw]:
            part = Path(scratch) / f"{draw}.txt"
            part.write_text("".join(lines[draw * len(lines) // options.draws : (draw + 1) * len(lines) // options.draws]))
            texts = f"{part},{DATA / 'test.txt'}"
            found = [
                perplexity(options.folder, options.recipe, texts, options, *words)
                for words in (
                    ("--compensation", "obs"),
                    ("--compensation", "obs+sequential"),
                    ("--multiple", "1", "--format", "huggingface"),
                )
            ]
            print(f"| {draw} | " + " | ".join(f"{one:.2f}" for one in found) + " |", flush=True)


if __name__ == "__main__":
    main()
