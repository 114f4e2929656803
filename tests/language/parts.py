"""A model of three blocks whose damages and savings add up, for tests of what chooses between them."""

from __future__ import annotations

import itertools

import numpy as np

from hwprune.language.allocator import Allocator
from hwprune.language.part_choices import choices_for
from hwprune.language.phase_prices import Prices
from hwprune.language.word_responses import Responses
from hwprune.streaming.phases import Tokens
from hwprune.streaming.sweep_plan import SweepPlan

CHOICES = choices_for({"neuron": 64, "kv": 2}, SweepPlan((), "obs", "obs", multiple=32), "default", {})
SAVED = {
    "prefill": {"attention-1": 0.01, "attention-0": 0.03, "mlp-32": 0.05, "mlp-0": 0.08},
    "decode": {"attention-1": 0.004, "attention-0": 0.011, "mlp-32": 0.002, "mlp-0": 0.004},
}
PRICES = Prices({"prefill": 0.6, "decode": 0.08}, SAVED)
DAMAGES = [
    {"attention-1": 0.02 * (i + 1), "attention-0": 0.1 / (i + 1), "mlp-32": 0.03 + 0.01 * i, "mlp-0": 0.3 - 0.05 * i}
    for i in range(3)
]
TOKENS = Tokens(16, 4)


PARTS = (("", "attention-1", "attention-0"), ("", "mlp-32", "mlp-0"))


def allocator(**more):
    return Allocator(CHOICES, more.pop("prices", PRICES), TOKENS, more.pop("limits", {}), 3, **more)


def respond(base, _draw=0):
    """A machine whose damages add up, looked at near any model."""
    cost = [[[DAMAGES[i].get(name, 0.0) for name in part] for part in PARTS] for i in range(3)]
    linear = [cost[i][p][place] - cost[i][p][base[i][p]] for i in range(3) for p in (0, 1) for place in range(3)]
    return Responses(tuple(tuple(one) for one in base), damage(base), np.array(linear), np.zeros((18, 18)), (3, 3))


def every():
    return itertools.product(itertools.product(range(3), range(3)), repeat=3)


def seconds(allocation):
    left = {"prefill": 0.6, "decode": 0.08}
    for attention, mlp in allocation:
        for phase in left:
            left[phase] -= SAVED[phase].get(["", "attention-1", "attention-0"][attention], 0)
            left[phase] -= SAVED[phase].get(["", "mlp-32", "mlp-0"][mlp], 0)
    return left["prefill"], left["decode"]


def damage(allocation):
    return sum(
        DAMAGES[index].get(PARTS[p][place], 0.0) for index, places in enumerate(allocation) for p, place in enumerate(places)
    )


DENSE = [(0, 0)] * 3
