"""Points of the front, pruned block by block, written, and measured in fresh processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell
from hwprune.language.language_job import WORK, LanguageJob
from hwprune.language.language_record import LanguagePoint
from hwprune.language.part_choices import PartChoices, by_block
from hwprune.language.phase_study import FrontTrial
from hwprune.language.within_drop import Drop, fastest_within
from hwprune.records.target import Target
from hwprune.streaming import road
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.continuation import continuation, in_words
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.perplexity import perplexity, window_losses
from hwprune.streaming.plan_file import write_blocks
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.streaming.written_files import Delivery, KnownDense, quantised_facts

MOST_DIVERGENCE = 1.0
"""Nats a token, before any repair, beyond which a model is not written: its perplexity is some three times the dense one's."""
DENSE = Path("candidates", "dense")
"""Folder, in a run directory, of the dense model's files with weights of fewer bits."""
NEAR = 0.1
"""Share by which a point may lie above the hull."""
PROMPT, NEW = 32, 48
"""Tokens of a text that each point goes on with, and of what it says."""


def dense_perplexity(folder: LanguageFolder, judged: torch.Tensor, work: Path, step: Tell) -> float:
    file = work / "dense.json"
    if not file.is_file():
        write_atomic(file, dump_json({"perplexity": perplexity(window_losses(folder, judged, step, work))}))
    return float(read_json(file)["perplexity"])


class PointWriter:
    """Prunes trials block by block, writes, scores and measures them in fresh processes; what a killed run has written stays.

    Args:
        plan: how weights are solved.
        source: the dense folder.
        out: the run directory.
        judged, held: windows that tell the perplexity, and those that trials were scored on.
    """

    def __init__(
        self,
        job: LanguageJob,
        choices: PartChoices,
        plan: SweepPlan,
        source: Path,
        out: Path,
        target: Target,
        known: KnownDense,
        judged: torch.Tensor,
        held: torch.Tensor,
        step: Tell,
    ) -> None:
        self._job, self._choices, self._plan, self._source, self._out = job, choices, plan, source, out
        self._target, self._known, self._judged, self._held, self._step = target, known, judged, held, step

    def points(self, front: Sequence[FrontTrial], drop: Drop | None) -> list[LanguagePoint]:
        """Points spread over the front; with a limit the fastest that keep it, and slower ones."""
        if drop is None:
            return [self._point(trial) for trial in spread(front, self._job.points)]
        kept, beyond = fastest_within(front, drop, self._held_perplexity, self._job.points)
        for trial in beyond:  # half a gigabyte each, and nobody asked for them
            self._step(f"candidate {trial.number} is beyond --max-drop: its files go")
            shutil.rmtree(self._place(trial), ignore_errors=True)
        return [self._point(trial) for trial in kept]

    def _place(self, trial: FrontTrial) -> Path:
        return self._out / "candidates" / str(trial.number)

    def _held_perplexity(self, trial: FrontTrial) -> float:
        """What a trial has, once it is repaired, on the windows that trials were scored on."""
        file = self._out / WORK / f"held-{trial.number}.json"
        if not file.is_file():
            self._point(trial)
            found = perplexity(window_losses(LanguageFolder(self._place(trial)), self._held, self._step, self._out / WORK))
            write_atomic(file, dump_json({"perplexity": found}))
        return float(read_json(file)["perplexity"])

    def _point(self, trial: FrontTrial) -> LanguagePoint:
        job, place, step = self._job, self._place(trial), self._step
        blocks = by_block(self._choices, json.loads(trial.user_attrs["allocation"]))
        if not (place / "result.json").is_file():
            facts = road.prune_folder(
                self._source, job.data, replace(self._plan, by_block=blocks), place, score=True, onnx=True, tokens=job.tokens,
                target=self._target, known=self._known, distil_tokens=job.distil_tokens, choices=job.questions,
                step=lambda text, *rest: step(f"candidate {trial.number}: {text}", *rest),
            )  # fmt: skip
            if facts["generates"]:
                before = _dense_words(self._source, self._judged, self._out)
                facts["continuation"] = before | {"model": continuation(LanguageFolder(place), self._judged[:1, :PROMPT], NEW)}
            write_blocks(place / "blocks.json", blocks)
            write_atomic(place / "result.json", dump_json(facts))
        facts, known = read_json(place / "result.json"), self._known
        for name in (name for name in job.quantize if name not in facts.get("quantised", {})):
            file = place / "onnx" / "model.onnx"
            measured = ((known.file[0], known.file[1].inputs), job.tokens)
            delivery = Delivery(place, place, self._judged[:1, :PROMPT])
            told = quantised_facts((file, CacheShape.of_file(file)), name, self._target, self._judged, measured, step, delivery)
            facts["quantised"] = facts.get("quantised", {}) | {name: told}
            write_atomic(place / "result.json", dump_json(facts))
        return LanguagePoint(trial.number, blocks, facts, dict(trial.user_attrs["score"]))


def dense_quantised(
    job: LanguageJob, dense: tuple[Path, CacheShape], source: Path, judged: torch.Tensor, target: Target, out: Path, step: Tell
) -> dict[str, Any]:
    """Precision -> `quantised_facts` of the dense model: what is to be had without pruning.

    Args:
        source: the dense folder.
        out: the run directory.
    """
    found, place = {}, out / DENSE
    for name in job.quantize:
        file = place / f"{name}.json"
        if not file.is_file():
            measured, delivery = ((dense[0], dense[1].inputs), job.tokens), Delivery(place, source, judged[:1, :PROMPT])
            facts = quantised_facts(dense, name, target, judged, measured, step, delivery)
            write_atomic(file, dump_json(facts))
        found[name] = read_json(file)
    return found


def _dense_words(source: Path, judged: torch.Tensor, out: Path) -> dict[str, str]:
    """A prompt, and how the dense model goes on."""
    file = out / WORK / "words.json"
    if not file.is_file():
        folder, ids = LanguageFolder(source), judged[:1, :PROMPT]
        write_atomic(file, dump_json({"prompt": in_words(source, ids), "dense": continuation(folder, ids, NEW)}))
    return dict(read_json(file))


def spread(front: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly over the logarithm of the speedup, the fastest that is of use among them.

    What lies far above the lower convex hull of divergence over the logarithm of the speedup is left out: the noise of a
    measurement holds it on the front.
    """
    useful = [one for one in front if one.values[0] <= MOST_DIVERGENCE] or list(front[:1])
    if len(useful) <= count:
        return useful
    logs, divergences = np.log([one.values[1] for one in useful]), np.array([one.values[0] for one in useful])
    hull: list[int] = []
    for place in range(len(useful)):
        while len(hull) > 1 and _above(logs, divergences, hull[-2], hull[-1], place):
            hull.pop()
        hull.append(place)
    above = divergences / np.maximum(np.interp(logs, logs[hull], divergences[hull]), 1e-12) - 1
    good = [place for place, share in enumerate(above) if share <= max(NEAR, sorted(above)[count - 1])]
    wanted = np.linspace(min(logs[0], 0.0), logs[-1], count + 1)[1:]
    places = {good[int(np.abs(logs[good] - one).argmin())] for one in wanted}
    return [useful[place] for place in sorted(places)]


def _above(x: np.ndarray, y: np.ndarray, first: int, middle: int, last: int) -> bool:
    """Does the middle one lie on or above the line between the others?"""
    return bool((y[middle] - y[first]) * (x[last] - x[first]) >= (y[last] - y[first]) * (x[middle] - x[first]))
