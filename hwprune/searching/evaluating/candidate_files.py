"""The files of candidates in the run directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from hwprune.deploy.quantise import PRECISIONS

SAMPLES = "samples.jsonl"
TRAINING = "training"
"""What follows the number of a candidate in the name of the folder that holds the checkpoints of its training."""


def size_of(model: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it."""
    return sum(path.stat().st_size for path in model.parent.glob(model.name + "*"))


def clear_candidates(run: Path, keep: set[int], among: set[int] | None = None) -> None:
    """Remove the folders of all candidates but these.

    Args:
        among: only of these; others may be in the making.
    """
    folder = run / "candidates"
    for path in folder.iterdir() if folder.is_dir() else ():
        number, _, kind = path.name.partition(".")
        if kind in PRECISIONS:  # a quantised form in the making, by a search that was killed
            shutil.rmtree(path, ignore_errors=True)
            continue
        if kind == TRAINING and among is not None:
            continue  # a training that was stopped goes on from there
        if number.isdigit() and int(number) not in keep and (among is None or int(number) in among):
            shutil.rmtree(path, ignore_errors=True)
