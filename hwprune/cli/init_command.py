"""hwprune init."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

from hwprune.errors import UsageError

KINDS = ("pytorch", "huggingface", "onnx")
EPILOG = """examples:
  hwprune init                         workload.py and job.toml in this folder
  hwprune init mine --kind onnx        for a model.onnx, in the folder mine
  hwprune search --job job.toml        what to do next, when both are filled in
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="where to write (default: this folder)")
    parser.add_argument("--kind", choices=KINDS, default="pytorch", help="what your model is (default: pytorch)")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")


def run(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    source = resources.files("hwprune.cli").joinpath("templates")
    texts = {
        "workload.py": source.joinpath(f"{options.kind}.py.txt").read_text("utf-8"),
        "job.toml": source.joinpath("job.toml").read_text("utf-8"),
    }
    if options.kind == "onnx":
        texts["job.toml"] = texts["job.toml"].replace('"workload.py:workload"', '"model.onnx data=workload.py:data"')
    there = [name for name in texts if (folder / name).exists()]
    if there and not options.force:
        raise UsageError(f"{folder} holds {' and '.join(there)} already: choose another folder, or overwrite with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write into {folder}: {error.strerror or error}") from error
    print(f"Written: {', '.join(str(folder / name) for name in texts)}")
    print("Fill in workload.py (the lines with TODO), then:")
    where = "" if folder == Path() else f"{folder}/"
    first = f"{where}model.onnx --data {where}workload.py:data" if options.kind == "onnx" else f"{where}workload.py:workload"
    print(f"  hwprune inspect {first}")
    print(f"  hwprune search --job {where}job.toml")
    return 0
