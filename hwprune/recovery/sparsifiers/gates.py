"""Learned gates: hard-concrete L0 with a speed target (Louizos et al. 2018, arXiv 1712.01312).

Each index of an axis has a gate z in [0, 1] that is drawn anew in every step from a stretched concrete distribution, so that
the chance of being open has a gradient. The loss gets a Lagrangian of the *latency*: what the expected sizes cost by the
target's measured table, against the ratio that is wanted; its multiplier rises as long as the model is too slow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import nn

from hwprune.errors import UsageError
from hwprune.layers.part import readers
from hwprune.layers.units import Unit
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.mask_learner import Decision, ScoreLearner, along

STRETCH = (-0.1, 1.1)
BETA = 2 / 3
OPEN = 1.0
"""ln(alpha) at the beginning: gates are open with a probability of 0.93, and not so far up that their gradient is gone."""


@final
class Gates(ScoreLearner):
    """Gates of a recipe's axes; how many close of which axis is found by training, not taken from the recipe."""

    score_range = 40.0
    """Range of ln(alpha): from open to closed it is ten, and gates must be able to come back."""
    FARTHEST = math.log(100)
    """|ln(alpha)|; beyond it the chance of changing has no gradient any more (Louizos et al. clamp it too)."""
    SCALARS = ("_updates", "multiplier", "_before", "_due")
    RISE = 1000.0
    """The rise of the multiplier over a run whose model is slower by the whole dense time."""
    SQUARE = 100.0
    """Weight of the squared distance beside it (an augmented Lagrangian; CoFi, Xia et al. 2022, arXiv 2204.00408)."""

    def __init__(
        self,
        pruner: Pruner,
        recipe: Recipe,
        plan: Plan,
        savings: Mapping[str, tuple[Sequence[int], Sequence[float]]],
        ratio: float,
    ) -> None:
        """Gates start open.

        Args:
            savings: axis -> kept sizes (rising) and the share of the dense latency that each saves.
            ratio: wanted latency over dense, in (0, 1).

        Raises:
            UsageError: the recipe names anything but axes, an axis has no savings, or all of them together can't reach the ratio.
        """
        super().__init__(pruner, recipe, plan)
        if any(unit.axis is None for unit, _ in self.choices.values()):
            raise UsageError("gates are for axes (channels, heads, neurons); masks of weights save no time by their number")
        missing = [name for name in self.choices if name not in savings]
        if missing:
            raise UsageError(f"no latency is known for {', '.join(missing)}")
        most = sum(max(savings[name][1]) for name in self.choices)
        if not 1 - most < ratio < 1:
            raise UsageError(f"a latency ratio of {ratio:g} can't be reached: these axes save at most {most:.3f} of dense")
        self.ratio = ratio
        self.savings = {
            name: (torch.tensor(sizes, dtype=torch.float32), torch.tensor(saved, dtype=torch.float32))
            for name, (sizes, saved) in savings.items()
        }
        self.multiplier = self._before = 0.0
        self._due = 1.0
        with torch.no_grad():
            for score in self.scores.values():
                score.fill_(OPEN).add_(0.01 * torch.randn(score.shape, generator=torch.Generator().manual_seed(plan.seed)))

    def _counts(self, unit: Unit, parameter: str, dim: int) -> bool:
        """To the tensors that read the axis: there a gate multiplies each index once.

        Of what makes it, a convolution and its batch norm would both be multiplied: z squared with running statistics, and z with
        those of the batch, which undo the first. An axis that no layer reads (it is summed over) has only what makes it.
        """
        return self._reads(unit, parameter, dim) if readers(unit.parts) else super()._counts(unit, parameter, dim)

    def extra(self) -> list[nn.Parameter]:
        return list(self.scores.values())

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        parameters = dict(module.named_parameters())
        gated: dict[str, torch.Tensor] = {}
        low, high = STRETCH
        for name, score in self.scores.items():
            if module.training:
                u = torch.rand_like(score).clamp(1e-6, 1 - 1e-6)
                s = ((u / (1 - u)).log() + score).div(BETA).sigmoid()
            else:
                s = score.sigmoid()
            gate = (s * (high - low) + low).clamp(0, 1)
            for parameter, dim, index in self._places[name]:
                values = torch.where(index >= 0, gate[index.clamp(min=0)], torch.ones((), device=gate.device))
                gated[parameter] = gated.get(parameter, parameters[parameter]) * along(values, dim, parameters[parameter].ndim)
        return gated

    def open(self, name: str) -> torch.Tensor:
        """Probability of each gate of an axis to be open."""
        low, high = STRETCH
        return (self.scores[name] - BETA * math.log(-low / high)).sigmoid()

    def expected_ratio(self) -> torch.Tensor:
        """Latency over dense at the expected sizes, by linear interpolation of the table."""
        saved = []
        for name, (sizes, gains) in self.savings.items():
            if name in self.scores:
                saved.append(
                    _interpolate(self.open(name).sum(), sizes.to(self.scores[name].device), gains.to(self.scores[name].device))
                )
        return 1 - torch.stack(saved).sum()

    def penalty(self, module: nn.Module) -> torch.Tensor | None:  # noqa: ARG002
        over = self.expected_ratio() - self._due
        return self.multiplier * over + self.SQUARE * over.clamp(min=0).square()

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """The multiplier follows the distance to the ratio that is due, in every step."""
        self._due = 1 - self._schedule(progress, 0.0, 1 - self.ratio)
        over = float(self.expected_ratio()) - self._due
        self.multiplier = max(0.0, self.multiplier + self.RISE * (progress - self._before) * over)
        self._before = progress
        for score in self.scores.values():
            score.clamp_(-self.FARTHEST, self.FARTHEST)
        super().after_step(module, optimizer, progress)

    def level(self, unit: object, choice: UnitChoice, share: float) -> float | None:  # noqa: ARG002
        return None  # gates choose their own sizes

    def decide(self, share: float) -> Decision:
        """At the end gates are closed, least open ones first, until the ratio is met; what stays is scaled by its gate."""
        if share < 1:
            return Decision({}, {})
        self._fold(self.pruner.graph.module)
        return Decision(self._closed(), {})

    @torch.no_grad()
    def _fold(self, module: nn.Module) -> None:
        """Gates that are open halfway are part of what was trained (Louizos et al., their test-time estimator)."""
        training = module.training
        module.eval()
        parameters = dict(module.named_parameters())
        for name, value in self.weights(module).items():
            parameters[name].copy_(value)
        module.train(training)

    @torch.no_grad()
    def _closed(self) -> dict[str, torch.Tensor]:
        """Sizes of the table, each axis at the nearest one to its expected size; then the least open gates until it is met."""
        probability = {name: self.open(name).cpu() for name in self.scores}
        place = {name: int((self.savings[name][0] - float(p.sum())).abs().argmin()) for name, p in probability.items()}

        def ratio() -> float:
            return 1 - sum(float(self.savings[name][1][at]) for name, at in place.items())

        while ratio() > self.ratio and any(place.values()):
            # The axis whose next smaller size gives up the least chance of being open for each share of time.
            def cost(name: str) -> float:
                sizes, gains = self.savings[name]
                at = place[name]
                order = probability[name].sort(descending=True).values
                lost = float(order[int(sizes[at - 1]) : int(sizes[at])].sum())
                return lost / max(float(gains[at - 1] - gains[at]), 1e-9)

            name = min((n for n, at in place.items() if at > 0), key=cost)
            place[name] -= 1
        keeps = {}
        for name, at in place.items():
            count = int(self.savings[name][0][at])
            if count < len(probability[name]):
                keep = torch.zeros(len(probability[name]), dtype=torch.bool)
                keep[probability[name].argsort(descending=True, stable=True)[:count]] = True
                keeps[name] = keep
        return keeps

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self._updates >= self.updates:
            super().hold(module, optimizer)


def _interpolate(x: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
    """Piecewise linear, with a gradient to x; beyond the ends the last piece goes on."""
    at = int(torch.searchsorted(xs, x.detach()).clamp(1, len(xs) - 1))
    slope = (ys[at] - ys[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + slope * (x - xs[at - 1])
