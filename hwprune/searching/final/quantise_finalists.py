"""Quantised forms of the dense model and of the front: the same files in 8 or 4 bits, measured and scored like any other.

Plain quantisation is what pruning competes with, so the dense model in each precision is a reference on the same axes; a point of
the front in each precision is a candidate of its own, with a number and files. Nothing is searched here: a precision is
cheap to try on the few points that are left (a pass over calibration data each), and what it costs adds to what pruning has cost.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from hwprune import runtimes
from hwprune.common import formatting
from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy import onnx_quantisers, quantise
from hwprune.errors import CandidateFailure, HwpruneError, UsageError
from hwprune.latency.source import MEASURED as MEASURED_SOURCE
from hwprune.records.recipe import Recipe
from hwprune.records.target import Target
from hwprune.records.trial import MEASURED, Trial
from hwprune.searching.evaluating.candidate_files import size_of
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.point import Confirmed, DerivedTrials
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.study.store import Store

FILE = "quantise.json"
DENSE = "dense"
FAILURES = (HwpruneError, RuntimeError, ValueError, MemoryError, OSError, DecodeError)
"""What may go wrong with one file; the others, and the search's own front, go on."""


def check_precisions(job: Job, target: Target) -> None:
    """Can this search quantise? Raises `UsageError` before any work is done."""
    if not job.precisions:
        return
    what = f"--quantize {job.quantize}"
    if job.latency_source != MEASURED_SOURCE:
        raise UsageError(f"{what} needs a target that is measured: a table or a data sheet knows nothing of quantised kernels")
    if not runtimes.get(target.runtime).file.endswith(".onnx"):
        raise UsageError(f"{what} makes ONNX files, and target {target.name} runs {runtimes.get(target.runtime).file}")
    if runtimes.get(target.runtime).convert_s:
        raise UsageError(f"{what} makes ONNX files whose quantised operators the converter of target {target.name} does not take")
    if target.precision != "fp32":
        raise UsageError(
            f"{what} starts from 32 bits, and target {target.name} runs {target.precision}: choose one that runs fp32"
        )


def quantise_points(
    evaluator: Evaluator, store: Store, precisions: Sequence[str], points: Sequence[Confirmed], progress: Progress
) -> DerivedTrials:
    """Trials of the dense model and of every point in each precision, with their files; not measured again."""
    maker = _Maker(evaluator, store)
    notes = []
    if maker.integers.saturating and "int8" in precisions:
        notes.append("int8 weights use 7 of their 8 bits: this CPU has no VNNI, and its 8-bit kernels would overflow.")
    found = []
    for name in precisions:
        for place, point in enumerate([None, *points]):
            progress.stage(f"{name}: {'the dense model' if point is None else f'point {place} of {len(points)}'}")
            made = maker.make(name, None if point is None else point.trial)
            if made is not None:
                found.append(made)
    return DerivedTrials(found, [*notes, *maker.notes])


def left_out(quantised: Sequence[Confirmed], points: Sequence[Confirmed], *, share: bool) -> list[str]:
    """A sentence on every precision that was tried and is nowhere on the front; drops of a share are told in points."""
    on_front = {point.trial.number for point in points}
    notes = []
    for name in dict.fromkeys(p.trial.quantised["precision"] for p in quantised if p.trial.quantised):
        tried = [p for p in quantised if p.trial.quantised and p.trial.quantised["precision"] == name]
        if not any(p.trial.number in on_front for p in tried):
            best = max(tried, key=lambda p: p.speedup.value)
            notes.append(
                f"{name} was tried on {formatting.some(len(tried), 'model')} (the dense one and the front), and no point of the "
                f"front is of it; the fastest has {formatting.speedup(best.speedup.value)} at a drop of "
                f"{formatting.drop(best.drop, share=share)}."
            )
    return notes


class _Maker:
    def __init__(self, evaluator: Evaluator, store: Store) -> None:
        self.evaluator, self.store = evaluator, store
        self.notes: list[str] = []
        device = evaluator.target.device
        saturating = device == "cpu" and bool(evaluator.bench.check()["saturates"])
        self.integers = onnx_quantisers.Integers(symmetric=device == "cuda", saturating=saturating)
        self._known = {
            (t.quantised["of"], t.quantised["precision"], t.quantised["source"]): t for t in store.trials() if t.quantised
        }

    def make(self, precision: str, trial: Trial | None) -> Trial | None:
        """One file in one precision as a trial; None, with a note, if it can't be made."""
        evaluator = self.evaluator
        of = DENSE if trial is None else trial.number
        source = evaluator.dense.path if trial is None else evaluator.files.model(trial.number)
        scratch = evaluator.run / "candidates" / f"{of}.{precision}"
        try:
            known = self._known.get((of, precision, sha256(source)))
            if known is not None and (evaluator.files.model(known.number)).is_file():
                return known
            facts = self._write(precision, trial, source, scratch)
            if known is not None and known.quantised.get("made") != facts["made"]:
                known = None  # the same source with other calibration data, or another quantiser: other numbers
            done = known or self._measured(precision, trial, facts, scratch)
            shutil.rmtree(evaluator.files.folder(done.number), ignore_errors=True)
            scratch.rename(evaluator.files.folder(done.number))
        except FAILURES as failure:
            reason = failure.reason if isinstance(failure, CandidateFailure) else f"{type(failure).__name__}: {failure}"
            self.notes.append(
                f"{'The dense model' if trial is None else f'Trial {of}'} could not be held in {precision}: {reason}."
            )
            return None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return done

    def _write(self, precision: str, trial: Trial | None, source: Path, scratch: Path) -> dict[str, Any]:
        """The file and what belongs to it; what was done."""
        evaluator = self.evaluator
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        start = time.monotonic()
        found = quantise.quantise(
            onnx.load(str(source)), precision, self._calibration, scratch / evaluator.files.name, self.integers
        )  # fmt: skip
        facts = {
            "made": sha256(scratch / evaluator.files.name), "of": DENSE if trial is None else trial.number,
            "source": sha256(source), **found.to_json(), "seconds": time.monotonic() - start,
        }  # fmt: skip
        if trial is None:
            evaluator.pruner.prune(Recipe()).write_recipe(scratch)
        else:
            for name in ("recipe.json", "keep.safetensors", "model.safetensors", "recovery.json"):
                if (path := evaluator.files.folder(trial.number) / name).is_file():
                    shutil.copyfile(path, scratch / name)
        write_atomic(scratch / FILE, dump_json(facts))
        return facts

    def _calibration(self) -> list[Sequence[np.ndarray[Any, Any]]]:
        found: list[Sequence[np.ndarray[Any, Any]]] = []
        for inputs, _ in self.evaluator.workload.batches("calibration"):
            found.append([tensor.cpu().numpy() for tensor in inputs])
            if sum(len(arrays[0]) for arrays in found) >= onnx_quantisers.CALIBRATION:
                break
        return found

    def _measured(self, precision: str, trial: Trial | None, facts: dict[str, Any], scratch: Path) -> Trial:
        evaluator, base = self.evaluator, self.evaluator.dense.baseline
        path = scratch / evaluator.files.name
        scores = evaluator.scorer.score_file(path, evaluator.dense.validation)
        paired = evaluator.timer.measure(path)
        origin = f"{precision} of {'dense' if trial is None else trial.number}"
        number = self.store.finisher.number_of_derived(origin)
        like = trial or Trial(
            number, Recipe(), MEASURED, metric=scores.metric, drop=0.0, latency=paired.latency, speedup=paired.speedup,
            params=base.params, macs=base.macs, size_bytes=size_of(path),
        )  # fmt: skip
        done = replace(
            like, number=number, metric=scores.metric, drop=scores.drop.value, paired_drop=scores.drop,
            estimated_drop=scores.estimated_drop,
            divergence=scores.divergence, latency=paired.latency,
            speedup=paired.speedup, size_bytes=size_of(path), origin=origin, predicted={},
            seconds={"quantise": facts["seconds"]}, quantised=facts,
        )  # fmt: skip
        self.store.finisher.add_derived(done)
        return done
