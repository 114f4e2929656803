"""What every trial is compensated with: the same as what is delivered, where that is quick enough.

A search that ranks its trials with a quick compensation and delivers them with a thorough one ranks other models than it ships.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import prod

from hwprune import compensation
from hwprune.compensation.dense_side import MOST_EXAMPLES
from hwprune.errors import CandidateFailure
from hwprune.pruning.pruner import Pruner
from hwprune.searching.space.space import SearchSpace
from hwprune.workload import batches

SEQUENTIAL = "sequential"
EXAMPLES_PER_INPUT = 1.3
"""Calibration examples for each input of a linear layer, so that a refit gains much from them: a judgement, from MiniLM on SST-2,
whose layers have up to 1,536 inputs (`benchmarks/compensation.py`)."""
MOST_CPU_S = 10.0
"""CPU seconds of one candidate's thorough compensation up to which every trial gets it."""


def with_thorough_compensation(space: SearchSpace, pruner: Pruner, stage: Callable[[str], None]) -> tuple[SearchSpace, str]:
    """The space whose trials are compensated as finalists are; and why it is not, or nothing.

    CPU time decides, so that other work on the machine does not change what is searched.
    """
    if not compensation.COMPENSATIONS[SEQUENTIAL].applies(pruner.graph.module):
        return space, ""
    quick = [name for name in space.compensation.split("+") if name != compensation.NONE]
    thorough = compensation.canonical("+".join([*quick, SEQUENTIAL]))
    stage("trying how long a thorough compensation takes")
    recipe = replace(space, compensation=thorough).recipe(space.uniform(0.5, space.file.criteria[0]))
    try:
        pruner.prune(recipe)  # what is found out about the dense model is found out once
        start = time.process_time()
        pruner.prune(recipe)
    except CandidateFailure as failure:
        return space, (
            f"Trials have the quick compensation {space.compensation}: the thorough one failed on a first candidate "
            f"({failure.reason})."
        )
    seconds = time.process_time() - start
    if seconds > MOST_CPU_S:
        return space, (
            f"Compensating a candidate with its own inputs takes about {seconds:.0f} s of CPU time here, so only finalists get "
            f"it; trials are ranked with {space.compensation}. --recover {thorough} gives it to every trial."
        )
    return replace(space, compensation=thorough), _too_few(pruner)


def _too_few(pruner: Pruner) -> str:
    """Told where the calibration data are few for the widest layer; images and long texts give many positions each."""
    widest = max((prod(layer.matrix.shape[1:]) for layer in pruner.layers.values() if layer.matrix.kind != "conv"), default=0)
    examples = batches.example_count(pruner.workload)
    wanted = round(EXAMPLES_PER_INPUT * widest)
    if examples >= min(wanted, MOST_EXAMPLES):
        return ""
    return (
        f"Calibration has {examples} examples; layers with {widest} inputs want some {min(wanted, MOST_EXAMPLES)} to be repaired "
        "well. With fewer, held-out examples keep the repairs small."
    )
