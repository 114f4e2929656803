"""What each block's attention and MLP may become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hwprune.errors import UsageError
from hwprune.streaming.sublayers import ATTENTION, MLP
from hwprune.streaming.sweep_plan import KV, LAYER, QUERY, SweepPlan

NEURON = "neuron"
EIGHTHS = (1, 2, 3, 4, 5, 6)
"""Shares of the neurons that go."""
MOST_GROUPS = 4
"""PartChoices for key-value groups; where there are more groups, they are spread over them."""
MOST_QUERIES = 2
"""The same for queries of each group, whose keys and values stay."""
SPACES = ("default", "uniform", "deci", "depth")
"""Names of spaces. ``uniform``: blocks are all alike, as classes of transformers hold them. ``deci``: groups of keys and values
and queries stay, as vLLM's Nemotron-NAS layout needs it. ``depth``: whole blocks, attention and MLPs go, nothing else."""


@dataclass(frozen=True, slots=True)
class PartChoice:
    """What becomes of a block's attention, or of its MLP.

    Attributes:
        part: ``attention`` or ``mlp``.
        pattern: of a `SweepPlan`; empty: it stays as it is.
        share: that goes.
        kept: neurons, or key-value groups, that stay: also where queries go.
    """

    part: str
    pattern: str
    share: float
    kept: int

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.part}-{self.kept}" + (f"-queries-{1 - self.share:.2f}" if self.pattern == QUERY else "")


@dataclass(frozen=True, slots=True)
class PartChoices:
    """The choices of a block's two parts; the first choice of each is the dense one.

    Attributes:
        refused: what can't be cut, with the reason.
    """

    attention: tuple[PartChoice, ...]
    mlp: tuple[PartChoice, ...]
    refused: tuple[str, ...] = ()

    def of(self, part: str) -> tuple[PartChoice, ...]:
        """The choices of ``attention`` or ``mlp``."""
        return self.attention if part == ATTENTION else self.mlp

    @property
    def all(self) -> tuple[PartChoice, ...]:
        """All but the dense ones."""
        return (*self.attention[1:], *self.mlp[1:])


PARTS = (ATTENTION, MLP)


def choices_for(sizes: Mapping[str, int], plan: SweepPlan, space: str, parts: Mapping[str, str]) -> PartChoices:
    """The choices in a space.

    Args:
        sizes: `BlockPruner.sizes`.
        plan: for the numbers of neurons.
        parts: ``attention``, ``mlp`` -> why it can't go as a whole; a part that can is not named.

    Raises:
        UsageError: there is no such space, or nothing in it can be done with this model.
    """
    if space not in SPACES:
        raise UsageError(f"--space of a language model is one of {', '.join(SPACES)}, got {space!r}")
    groups, neurons = sizes.get(KV, 1), sizes.get(NEURON, 1)
    attention = [PartChoice(ATTENTION, "", 0.0, groups)]
    mlp = [PartChoice(MLP, "", 0.0, neurons)]
    refused = [f"{part} as a whole: {reason}" for part, reason in parts.items()]
    if space not in ("depth", "deci"):
        counts = range(groups - 1, 0, -1)
        step = max(1, -(-len(counts) // MOST_GROUPS))
        attention += [PartChoice(ATTENTION, KV, 1 - kept / groups, kept) for kept in counts[::step]]
        queries = range(sizes.get(QUERY, 1) - 1, 0, -1)
        step = max(1, -(-len(queries) // MOST_QUERIES))
        attention += [PartChoice(ATTENTION, QUERY, 1 - kept / sizes[QUERY], groups) for kept in queries[::step]]
    if space != "depth" and NEURON in sizes:
        kept = dict.fromkeys(plan.kept(neurons, eighth / 8) for eighth in EIGHTHS)
        mlp += [PartChoice(MLP, NEURON, 1 - count / neurons, count) for count in kept if count < neurons]
    for part, found in ((ATTENTION, attention), (MLP, mlp)):
        if part not in parts and space != "uniform":
            found.append(PartChoice(part, part, 1.0, 0))
    if len(attention) + len(mlp) == 2:
        raise UsageError(f"nothing of this model can be cut in space {space}:", refused or ["no axis was found in its blocks"])
    return PartChoices(tuple(attention), tuple(mlp), tuple(refused))


Allocation = Sequence[tuple[int, int]]
"""Which choice of its attention, and of its MLP, each block gets."""


def by_block(choices: PartChoices, allocation: Allocation) -> tuple[dict[str, float], ...]:
    """The allocation as `SweepPlan.by_block`."""
    found = []
    for places in allocation:
        chosen = [choices.of(part)[place] for part, place in zip(PARTS, places, strict=True)]
        if all(one.pattern == one.part for one in chosen):
            found.append({LAYER: 1.0})
        else:
            found.append({one.pattern: one.share for one in chosen if one.pattern})
    return tuple(found)
