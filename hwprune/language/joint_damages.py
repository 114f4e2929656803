"""How far damages of single choices add up: each choice in all blocks at once.

Errors of many small cuts partly cancel, and later blocks make up for earlier ones; an eighth of the neurons of every block of
SmolLM2 costs half of what the single cuts add up to, a third of its key-value groups four fifths. A knapsack over bare sums would
take the wrong one of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hwprune.common.files import dump_json, read_json, write_atomic
from hwprune.common.telling import Tell, silent
from hwprune.language.part_choices import PARTS, Allocation, PartChoices
from hwprune.language.trial_scores import Score

FILE = "joint.json"
MOST = 2.0
"""Nats a token beyond which a model is ruined, and says nothing of how damages add up."""


def added_up(
    score: Callable[[Allocation], Score],
    choices: PartChoices,
    damages: Sequence[Mapping[str, float]],
    work: Path,
    step: Tell = silent,
) -> list[dict[str, float]]:
    """The damages, scaled so that each choice in all blocks adds up to what it costs there.

    What goes as a whole is scaled as the smallest of its kind that doesn't: models without any attention say nothing.

    Args:
        score: of a whole model.
        damages: see `part_damages`.
        work: folder for `FILE`, from which a killed run goes on.
    """
    known: dict[str, float] = read_json(work / FILE) if (work / FILE).is_file() else {}
    ratios: dict[str, float] = {}
    for place, part in enumerate(PARTS):
        ratio = 1.0
        for number, choice in enumerate(choices.of(part)[1:], start=1):
            if choice.pattern != part:
                if choice.name not in known:
                    step("how far costs add up", len(known), len(choices.all))
                    pair = (number, 0) if place == 0 else (0, number)
                    known[choice.name] = score([pair] * len(damages)).divergence
                    write_atomic(work / FILE, dump_json(known))
                total = sum(one[choice.name] for one in damages)
                if known[choice.name] <= MOST and 0 < total < math.inf:
                    ratio = known[choice.name] / total
            ratios[choice.name] = ratio
    return [{name: value * ratios[name] for name, value in one.items()} for one in damages]
