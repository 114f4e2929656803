"""What each choice saves in both phases, measured: the model with that choice in all blocks but the first, against the dense one.

Blocks are alike, and so what one of them saves is the saving of all over their number. (The first one stays: without any
attention there would be no cache.) Measuring all at once says what a block saves where the weights of the others compete for the
same caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch

from hwprune.common import formatting
from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.language.part_choices import PARTS, Allocation, PartChoice, PartChoices
from hwprune.language.phase_bench import PHASES, PhaseBench
from hwprune.streaming.assembled_onnx import Assembler
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.phases import PREFILL
from hwprune.streaming.static_cache import StaticWriter

FILE = "prices.json"
SIZE, CACHE = "size", "cache"
SESSION = 0.015
"""Standard deviation of a model's measured saving, as a share of the dense time. Copies of SmolLM2's dense file differ so."""
ROUNDS = 2
"""Measurements of each choice."""
COMMON = 0.1
"""Standard deviation of what choices save together over the sum of what each saves."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What models take: seconds of each phase, bytes of the file (`SIZE`), and bytes that are kept of each token (`CACHE`).

    Attributes:
        dense: resource -> what the dense model takes.
        saved: resource -> `PartChoice.name` -> what one block saves.
    """

    dense: Mapping[str, float]
    saved: Mapping[str, Mapping[str, float]]

    def predicted(self, resource: str, choices: PartChoices, allocation: Allocation) -> float:
        """What a model with these choices takes."""
        left = self.dense[resource]
        for places in allocation:
            for part, place in zip(PARTS, places, strict=True):
                left -= self.saving(resource, choices.of(part)[place])
        return left

    def saving(self, resource: str, choice: PartChoice) -> float:
        """What one block saves by this choice."""
        return self.saved[resource].get(choice.name, 0.0) if choice.pattern else 0.0

    def with_sizes(
        self,
        dense: tuple[Path, CacheShape],
        samples: Mapping[str, Mapping[str, torch.Tensor]],
        block: Mapping[str, torch.Tensor],
        choices: PartChoices,
    ) -> Prices:
        """With the sizes, which are known without measuring.

        Args:
            dense: the dense model's file, and its cache.
            samples: see `measure_prices`.
            block: tensors of a dense block.
        """
        file, cache = dense[0], dense[1].bytes_per_token
        whole, of_block = sum(one.stat().st_size for one in file.parent.glob(f"{file.name}*")), cache / (len(dense[1].heads) / 2)
        sizes = {name: _bytes(block) - _bytes(sample) for name, sample in samples.items()}
        kept = {one.name: one.kept / choices.attention[0].kept for one in choices.attention[1:]}
        saved = {SIZE: sizes, CACHE: {name: of_block * (1 - share) for name, share in kept.items()}}
        return replace(self, dense={**self.dense, SIZE: float(whole), CACHE: float(cache)}, saved={**self.saved, **saved})

    def check_sizes(self, limits: Mapping[str, float], choices: PartChoices, depth: int) -> None:
        """Raises `UsageError` where a limit on a size is below what the smallest choice of each part leaves."""
        for name in (SIZE, CACHE):
            saved = sum(max(self.saving(name, one) for one in choices.of(part)) for part in PARTS)
            least = self.dense[name] - depth * saved
            if name in limits and limits[name] < least:
                told = [formatting.size(limits[name]), formatting.size(self.dense[name]), formatting.size(max(least, 0.0))]
                raise UsageError(
                    f"--max-{name} {told[0]} can't be kept: dense has {told[1]}, and the least that can be left is {told[2]}"
                )

    def learned(self, choices: PartChoices, seen: Sequence[tuple[Allocation, Mapping[str, float]]]) -> Prices:
        """The table, corrected by whole models that were measured: Bayes' rule for a linear model with normal errors.

        A choice's own measurement is one model, in which a session's luck (`SESSION`) is a fifth of what an eighth of the neurons
        saves; what choices save together may be less, or more, than the sum (`COMMON`).

        Args:
            seen: models, and phase -> dense seconds / theirs.
        """
        if not seen:
            return self
        names = [one.name for one in choices.all]
        blocks = len(seen[0][0]) - 1
        counts = np.zeros((len(seen), len(names)))
        for row, (allocation, _) in enumerate(seen):
            for places in allocation:
                for part, place in zip(PARTS, places, strict=True):
                    if choices.of(part)[place].pattern:
                        counts[row, names.index(choices.of(part)[place].name)] += 1 / blocks
        saved = dict(self.saved)
        for phase in PHASES:
            table = self.saved[phase]
            before = np.array([table.get(name, 0.0) for name in names]) * blocks / self.dense[phase]
            prior = SESSION**2 * np.eye(len(names)) + COMMON**2 * np.outer(before, before)
            apart = np.array([1 - 1 / speedups[phase] for _, speedups in seen]) - counts @ before
            gain = prior @ counts.T @ np.linalg.inv(counts @ prior @ counts.T + SESSION**2 * np.eye(len(seen)))
            after = (before + gain @ apart) * self.dense[phase] / blocks
            saved[phase] = {name: float(value) for name, value in zip(names, after, strict=True)}
        return replace(self, saved=saved)


def measure_prices(
    bench: PhaseBench,
    writer: Assembler | StaticWriter,
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
    stored: dict[str, Any] = read_json(work / FILE) if (work / FILE).is_file() else {phase: {} for phase in PHASES}
    path, order = work / f"priced{writer.suffix}", list(choices.all)
    for number in range(ROUNDS):
        for place, choice in enumerate(order if number % 2 == 0 else order[::-1]):  # a machine that drifts favours nobody
            if len(stored[PREFILL].get(choice.name, ())) > number:
                continue
            step("measuring what each choice saves", number * len(order) + place, ROUNDS * len(order))
            shape = writer.write([dense[0], *(_cut_to(block, samples[choice.name]) for block in dense[1:])], path)
            try:
                found = bench.measure(path, shape)
            except CandidateFailure as failure:
                raise RunError(f"a model with {choice.name} in each block can't be run: {failure.reason}") from failure
            for phase, paired in found.items():
                stored[phase].setdefault(choice.name, []).append([paired.latency.value * paired.ratio, paired.ratio])
            write_atomic(work / FILE, dump_json(stored))
    path.unlink(missing_ok=True)
    dense_s = {phase: float(np.median([before for pairs in stored[phase].values() for before, _ in pairs])) for phase in PHASES}
    saved = {
        phase: {
            name: dense_s[phase] * (1 - 1 / geometric_mean(ratio for _, ratio in pairs)) / (len(dense) - 1)
            for name, pairs in stored[phase].items()
        }
        for phase in PHASES
    }
    return Prices(dense_s, saved)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> float:
    """In 32 bits."""
    return 4.0 * sum(x.numel() for x in tensors.values())


def _cut_to(block: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first rows and columns of a block's tensors, as many as another's has."""
    return {name: block[name][tuple(slice(size) for size in x.shape)] for name, x in like.items()}
