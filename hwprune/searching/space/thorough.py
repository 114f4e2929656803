"""What every trial is compensated with: the same as what is delivered, where that is quick enough.

A search that ranks its trials with a quick compensation and delivers them with a thorough one ranks other models than it ships.
"""

from __future__ import annotations

import time
from dataclasses import replace

from hwprune import compensation
from hwprune.calibration import sufficient
from hwprune.common.telling import Tell
from hwprune.errors import CandidateFailure
from hwprune.pruning.pruner import Pruner
from hwprune.searching.space.space import SearchSpace
from hwprune.workload import batches

MOST_CPU_S = 30.0
"""CPU seconds of one candidate's thorough compensation up to which every trial gets it."""
SURELY_TOO_LONG = 4
"""The first candidate takes this many times as long at most, because of what is found out about the dense model."""


def with_thorough_compensation(space: SearchSpace, pruner: Pruner, stage: Tell) -> tuple[SearchSpace, str]:
    """The space whose trials are compensated as finalists are; and why it is not, or nothing.

    CPU time decides, so that other work on the machine does not change what is searched.
    """
    if not compensation.COMPENSATIONS[compensation.SEQUENTIAL].applies(pruner.graph.module):
        return space, ""
    quick = [name for name in space.compensation.split("+") if name != compensation.NONE]
    thorough = compensation.canonical("+".join([*quick, compensation.SEQUENTIAL]))
    stage("trying how long a thorough compensation takes")
    recipe = replace(space, compensation=thorough).recipe(space.uniform(0.5, space.file.criteria[0]))
    try:
        start = time.process_time()
        pruner.prune(recipe)  # what is found out about the dense model is found out once
        first = time.process_time() - start
        if first <= SURELY_TOO_LONG * MOST_CPU_S:
            start = time.process_time()
            pruner.prune(recipe)
    except CandidateFailure as failure:
        return space, (
            f"Trials have the quick compensation {space.compensation}: the thorough one failed on a first candidate "
            f"({failure.reason})."
        )
    if time.process_time() - start > MOST_CPU_S:
        return space, (
            f"Compensating a candidate with its own inputs takes more than {MOST_CPU_S:.0f} s of CPU time here, so only "
            f"finalists get it; trials are ranked with {space.compensation}. --recover {thorough} gives it to every trial."
        )
    return replace(space, compensation=thorough), ""


def calibration_note(pruner: Pruner) -> str:
    """Told where the calibration data are few for the widest layer."""
    wanted = sufficient.wanted_examples(pruner.layers, pruner.graph.module)
    examples = batches.example_count(pruner.workload)
    added = f" {pruner.added} inputs of the train split are used with them." if pruner.added else ""
    if examples - pruner.added >= wanted:
        return ""
    few = "" if examples >= wanted else " With fewer, held-out examples keep the repairs small."
    own = examples - pruner.added
    return f"Calibration has {own} examples; the widest layers want some {wanted} to be repaired well.{added}{few}"
