"""Fuzzing guided by coverage (Atheris) of every text file that hwprune reads.

    pip install atheris
    python benchmarks/fuzz_atheris.py --only job,record [--count 20000] [--seed 1] [--run DIR]

The bytes that Atheris makes are the file, or they choose what the structured mutation of fuzz_files.py changes in a valid one; what
reaches new lines of hwprune is kept and changed further. A reader must return, or raise a `HwpruneError`. One process a kind of
file, because libFuzzer ends its process.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = "job,target,space,table,recipe,record,manifest,onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="inputs for each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=KINDS)
    parser.add_argument("--run", type=Path, help="a finished run directory; default: a small search is made")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _one(options.only, options.count, options.seed, options.run)
        return
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        run = options.run
        if run is None:
            import hwprune
            from hwprune.workload import demos

            run = Path(folder) / "run"
            hwprune.search(demos.get("digits"), trials=3, out=run)
        for kind in options.only.split(","):
            words = ["--only", kind, "--count", str(options.count), "--seed", str(options.seed), "--run", str(run), "--one"]
            done = subprocess.run([sys.executable, __file__, *words], check=False, capture_output=True, text=True, cwd=folder)
            last = [line for line in done.stderr.splitlines() if "cov:" in line][-1:]
            print(f"{kind}: {'crashed' if done.returncode else 'no finding'}; {' '.join(last)}", flush=True)
            if done.returncode:
                failed.append(kind)
                print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
    if failed:
        sys.exit(f"findings in {', '.join(failed)}")


class Drawn(random.Random):
    """Draws from bytes, so that Atheris decides what is changed."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken.ljust(size, b"\0"), "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(53) / 2**53


def _one(kind: str, count: int, seed: int, run: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["hwprune"]):
        from fuzz_files import Readers, mutated

        from hwprune.errors import HwpruneError
    folder = Path(tempfile.mkdtemp())
    readers = Readers(folder, run)
    whole = readers.onnx if kind == "onnx" else readers._text(kind, readers.valid[kind])

    def once(data: bytes) -> None:
        if kind != "onnx":
            first, data = data[:1], data[1:]
            if first < b"\x80":  # half of them: a valid value with changes that the bytes choose
                try:
                    data = readers._text(kind, mutated(readers.valid[kind], Drawn(data)))
                except (ValueError, TypeError, UnicodeEncodeError, KeyError, AttributeError, RecursionError):
                    return
        with contextlib.suppress(HwpruneError):
            readers.read(kind, data)

    corpus = Path(tempfile.mkdtemp())
    (corpus / "valid").write_bytes(b"\xff" + whole if kind != "onnx" else whole)
    (corpus / "changes").write_bytes(bytes(64))
    atheris.Setup([sys.argv[0], f"-runs={count}", f"-seed={seed}", "-max_len=2000000", "-timeout=60", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
