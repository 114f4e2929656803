"""What several test files of this folder need."""

from __future__ import annotations

import csv

from hwprune.searching.sampling import samplers
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Choice, Item
from hwprune.searching.space import fitting, space_file


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def random_sampler():
    return samplers.make(
        "random", 0, samplers.SamplerContext(Posterior(AllocationProblem([Item("a", (Choice({"a": 0}, 0, 0),))])))
    )


def recipe_of(evaluator, level):
    space = fitting.build(space_file.load("structured"), evaluator.pruner, evaluator.target, "avx512")
    return space.recipe(parameters(space, {"conv1.weight:0": (level, "channel", "l2")}))


def parameters(space, chosen):
    """Optuna's parameters of a choice: unit -> (level, pattern, method); all others stay dense."""
    found = {}
    for unit_space in space.units:
        found |= unit_space.parameters(*chosen.get(unit_space.unit, (0,)))
    return found
