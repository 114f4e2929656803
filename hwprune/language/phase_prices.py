"""What each choice saves in both phases, measured: the model with that choice in all blocks but the first, against the dense one.

Blocks are alike, and so what one of them saves is the saving of all over their number. (The first one stays: without any
attention there would be no cache.) Measuring all at once says what a block saves where the weights of the others compete for the
same caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import CandidateFailure, RunError
from hwprune.language.part_choices import PARTS, Allocation, PartChoice, PartChoices
from hwprune.latency.bench import Bench
from hwprune.latency.fresh import settings_for
from hwprune.latency.paired import Paired
from hwprune.records.target import Target
from hwprune.streaming.assembled_onnx import Assembler
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.phases import DECODE, FEWEST, LIMIT_S, PREFILL, Tokens, write_inputs

FILE = "prices.json"
PHASES = (PREFILL, DECODE)


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds.

    Attributes:
        dense: phase -> seconds of the dense model.
        saved: phase -> `PartChoice.name` -> seconds that one block saves.
        scale: phase -> what whole models were measured to save, over the sum of their choices; 1 where nothing is known.
    """

    dense: Mapping[str, float]
    saved: Mapping[str, Mapping[str, float]]
    scale: Mapping[str, float] = field(default_factory=dict)

    def predicted(self, phase: str, choices: PartChoices, allocation: Allocation) -> float:
        """Seconds of a model with these choices."""
        left = self.dense[phase]
        for places in allocation:
            for part, place in zip(PARTS, places, strict=True):
                left -= self.saving(phase, choices.of(part)[place])
        return left

    def saving(self, phase: str, choice: PartChoice) -> float:
        """Seconds that one block saves by this choice."""
        return self.scale.get(phase, 1.0) * self.saved[phase].get(choice.name, 0.0) if choice.pattern else 0.0

    def learned(self, seen: Mapping[str, Sequence[tuple[float, float]]]) -> Prices:
        """With the scale that measured models have.

        SmolLM2's single tokens save about a tenth less than their choices add up to, prompts a twentieth; why was not found out.

        Args:
            seen: phase -> (share of the dense time that was saved, and the sum of the choices' savings as a share of it).
        """
        scale = {phase: float(np.median([saved / told for saved, told in pairs])) for phase, pairs in seen.items() if pairs}
        return replace(self, scale=scale)


class PhaseBench:
    """Measures models with a cache in both phases, in one process, each paired with the dense model.

    Args:
        dense: the dense model's file, and its cache.
        scratch: folder for inputs.
    """

    def __init__(self, target: Target, tokens: Tokens, dense: tuple[Path, CacheShape], scratch: Path) -> None:
        self._bench, self._tokens, self._scratch = Bench(target), tokens, scratch
        self._dense_inputs = self._inputs("dense", dense[1])
        self._settings = replace(settings_for(self._bench.clock), limit_s=LIMIT_S, fewest_quads=FEWEST)
        self._bench.load("dense", dense[0], keep=True)

    def __enter__(self) -> PhaseBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.close()

    def measure(self, path: Path, shape: CacheShape) -> dict[str, Paired]:
        """Phase -> latency beside the dense one's.

        Raises:
            CandidateFailure: it can't be run.
        """
        self._bench.load("model", path)
        inputs = self._inputs("model", shape)
        try:
            return {
                phase: self._bench.pair("model", "dense", inputs[phase], self._settings, self._dense_inputs[phase])
                for phase in PHASES
            }
        finally:
            self._bench.drop("model")

    def _inputs(self, key: str, shape: CacheShape) -> dict[str, Path]:
        counts = {PREFILL: (self._tokens.prompt, 0), DECODE: (1, self._tokens.past)}
        return {
            phase: write_inputs(shape.inputs(self._tokens.batch, count, past), self._scratch / f"{key}-{phase}.npz")
            for phase, (count, past) in counts.items()
        }


def measure_prices(
    bench: PhaseBench,
    assembler: Assembler,
    samples: Mapping[str, Mapping[str, torch.Tensor]],
    dense: Sequence[Mapping[str, torch.Tensor]],
    choices: PartChoices,
    work: Path,
    step: Tell = silent,
) -> Prices:
    """The table.

    Args:
        samples: `PartChoice.name` -> tensors of a block with that choice, for their shapes.
        dense: tensors of the dense model's blocks. Equal blocks would not do: the runtime keeps equal weights once, and 30 blocks
            then lie in a cache together (SmolLM2's single tokens came out 1.6 times faster without an eighth of the neurons).
        work: folder for files, and for `FILE`, from which a killed run goes on.

    Raises:
        RunError: a choice can't be run.
    """
    stored: dict[str, Any] = {"dense": {}, "saved": {phase: {} for phase in PHASES}}
    if (work / FILE).is_file():
        stored = read_json(work / FILE)
    path = work / "priced.onnx"
    for place, choice in enumerate(choices.all):
        if choice.name in stored["saved"][PREFILL]:
            continue
        step("measuring what each choice saves", place, len(choices.all))
        shape = assembler.write([dense[0], *(_cut_to(block, samples[choice.name]) for block in dense[1:])], path)
        try:
            found = bench.measure(path, shape)
        except CandidateFailure as failure:
            raise RunError(f"a model with {choice.name} in each block can't be run: {failure.reason}") from failure
        for phase, paired in found.items():
            before = paired.dense_latency_s
            stored["dense"].setdefault(phase, []).append(before)
            stored["saved"][phase][choice.name] = [before, paired.speedup.value]
        write_atomic(work / FILE, dump_json(stored))
    path.unlink(missing_ok=True)
    dense_s = {phase: float(np.median(values)) for phase, values in stored["dense"].items()}
    depth = len(dense)
    saved = {
        phase: {name: dense_s[phase] * (1 - 1 / speedup) / (depth - 1) for name, (_, speedup) in stored["saved"][phase].items()}
        for phase in PHASES
    }
    return Prices(dense_s, saved)


def _cut_to(block: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first rows and columns of a block's tensors, as many as another's has."""
    return {name: block[name][tuple(slice(size) for size in x.shape)] for name, x in like.items()}
