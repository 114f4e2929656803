"""What several test files of this folder need."""

from __future__ import annotations

import copy
import dataclasses

from hwprune import uniform_recipe
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.sparsifiers.gates import Gates


def cut(stripes, sparsity=0.5):
    return stripes.prune(uniform_recipe(stripes, "channel", sparsity, criterion="l1", compensation="none"))


def masked(stripes, sparsity=0.9):
    return stripes.prune(uniform_recipe(stripes, "unstructured", sparsity, criterion="l1", compensation="none"))


HALF = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, "l1"),), "none")


COARSE_SAVINGS = {"inner.weight:0": ((4, 8, 12, 16), (0.5, 0.35, 0.15, 0.0))}


def coarse_gates(pruner, recipe, plan):
    return Gates(pruner, recipe, plan, COARSE_SAVINGS, 0.6)


def private(pruner):
    return Pruner(dataclasses.replace(pruner.workload, model=copy.deepcopy(pruner.workload.model)))


class Enough(Exception):
    pass


def stop_after(step):
    def stop(done, total, left, best):
        if done == step:
            raise Enough

    return stop


CHANNELS = Recipe((UnitChoice("inner.weight:0", "channel", 0.5, "l2"),), "none")
