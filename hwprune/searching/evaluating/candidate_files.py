"""The files of candidates in the run directory: written, made again, cleared away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from hwprune.deploy.quantise import PRECISIONS
from hwprune.errors import CandidateFailure, described
from hwprune.latency.paired import Paired
from hwprune.onnx_files import to_onnx
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.records.target import Target
from hwprune.records.trial import Trial
from hwprune.runtimes.base import Runtime

SAMPLES = "samples.jsonl"
TRAINING = "training"
"""What follows the number of a candidate in the name of the folder that holds the checkpoints of its training."""


class CandidateFiles:
    """Writes what the target's runtime runs, into a folder for each trial."""

    def __init__(self, run: Path, pruner: Pruner, target: Target, runtime: Runtime) -> None:
        self.run, self._pruner, self._target = run, pruner, target
        self.name = runtime.file
        self._precision = runtime.precision_of_file(target.precision)

    def folder(self, number: int) -> Path:
        return self.run / "candidates" / str(number)

    def model(self, number: int) -> Path:
        """The file of a trial that the runtime runs."""
        return self.folder(number) / self.name

    def remove(self, number: int) -> None:
        shutil.rmtree(self.folder(number), ignore_errors=True)

    def write(self, module: torch.nn.Module, keeps: Mapping[str, torch.Tensor], path: Path, drop: Collection[str] = ()) -> bool:
        """Write the file that the runtime runs, in its format and precision; True if it was cut from the dense ONNX file.

        Raises:
            CandidateFailure: (stage ``export``) it can't be written.
        """
        if path.suffix == ".pt2":
            try:
                to_onnx.to_pt2(module, self._pruner.workload.example_inputs, path)
            except Exception as error:  # torch.export raises its own types
                raise CandidateFailure("export", described(error)) from error
            return False
        cut = self._pruner.template.write(module, keeps, path, drop)
        if self._precision != "fp32":
            to_onnx.convert(path, self._precision)
        return cut

    def write_candidate(self, candidate: Candidate, folder: Path) -> tuple[Path, bool]:
        """Write the candidate's file alone; its path, and True if it was cut from the dense ONNX file."""
        path = folder / self.name
        return path, self.write(candidate.module, candidate.keeps, path, candidate.drop)

    def ensure(self, trial: Trial, *, weights: bool) -> Path:
        """The candidate's folder with its file, recipe.json and, if asked for, model.safetensors.

        A folder that was cleared away or lost is made again from the recipe.

        Raises:
            CandidateFailure: it can't be made again.
        """
        folder = self.folder(trial.number)
        missing = not (folder / self.name).is_file() or not (folder / "recipe.json").is_file()
        if not trial.searched and missing:
            raise CandidateFailure("export", f"the trained or quantised files of trial {trial.number} are gone")
        if missing or (weights and not (folder / "model.safetensors").is_file()):
            candidate = self._pruner.prune(trial.recipe)
            if missing:
                self.write_candidate(candidate, folder)
                candidate.write_recipe(folder)
            if weights:
                to_onnx.to_safetensors(candidate.module, folder / "model.safetensors")
        return folder

    def keep_samples(self, number: int | str, paired: Paired, stage: str = "search") -> None:
        """Append the raw samples of a measurement to samples.jsonl, a line each: they are too many for record.json."""
        if not paired.samples:
            return
        line = {
            "trial": number, "stage": stage, "clock": paired.clock, "runs_a_letter": paired.runs_a_block, **paired.samples,
        }  # fmt: skip
        # One write: several workers append to one file.
        handle = os.open(self.run / SAMPLES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)


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
