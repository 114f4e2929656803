"""Mask learners decide what goes while the model is trained: what all of them have in common, and gradual pruning.

All of them (see also `movement`, `platon`, `growing`, `gates`) train a private copy of the model in its own shapes and end in
keep masks; the cut and a last training at the final sparsity follow (`hwprune.recovery.recover`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import nn

from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.layers.part import readers
from hwprune.layers.units import Unit
from hwprune.layers.units import get as get_unit
from hwprune.methods import method
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery import schedules
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import FixedMask, Sparsifier, State


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The decision on what stays: axis name -> keep mask of its indices, matrix -> keep mask in the dense parameter's shape."""

    keeps: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]


class MaskLearner(Sparsifier):
    """Raises the sparsity of a recipe's units from 0 to what it says, along the plan's schedule.

    Branches stay until the model is cut: half a branch is none.
    """

    SCALARS: tuple[str, ...] = ("_updates",)
    TABLES: tuple[str, ...] = ()
    """Attributes that training changes: numbers, and dictionaries of tensors."""

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        """``pruner``: of a private copy of the model, whose ``graph.module`` is what is trained."""
        self.pruner, self.plan = pruner, plan
        self.choices: dict[str, tuple[Unit, UnitChoice]] = {
            choice.unit: (get_unit(pruner.units, choice.unit), choice)
            for choice in recipe.choices
            if choice.pattern != patterns.BRANCH and choice.pattern not in patterns.TOKENS
        }
        if not self.choices:
            raise UsageError("the recipe leaves nothing to prune gradually: it holds no axis and no matrix")
        self.decision = Decision({}, {})
        self._schedule = schedules.get(plan.schedule)
        self._final = sum(choice.sparsity for _, choice in self.choices.values()) / len(self.choices)
        self.updates = plan.updates
        self._updates = 0
        self._dense: tuple[Decision, dict[str, torch.Tensor]] | None = None
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self._device = device
        self._dense = None

    def state(self) -> State:
        """The decision, and what `SCALARS` and `TABLES` name."""
        tensors: State = {
            f"scalar/{name}": torch.tensor(float(getattr(self, name)), dtype=torch.float64) for name in self.SCALARS
        }
        tables = {name: getattr(self, name) for name in self.TABLES}
        for group, named in {**tables, "keeps": self.decision.keeps, "masks": self.decision.masks}.items():
            tensors |= {f"{group}/{name}": tensor.detach().clone() for name, tensor in named.items()}
        return tensors

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        for name, value in groups.get("scalar", {}).items():
            setattr(self, name, type(getattr(self, name))(float(value)))
        for table in self.TABLES:
            held = getattr(self, table)
            for name in [name for name in held if name not in groups.get(table, {})]:
                del held[name]
            for name, tensor in groups.get(table, {}).items():
                if name in held:
                    held[name].copy_(tensor)  # the optimizer holds it
                else:
                    held[name] = tensor.clone().to(self._device)
        self.decision = Decision(groups.get("keeps", {}), groups.get("masks", {}))

    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        due = int(progress * self.updates + 1e-9)
        if due > self._updates:
            self._updates = due
            share = 1.0 if progress >= 1 else self._schedule(due / self.updates, 0.0, self._final) / self._final
            self.decision = self.decide(min(share, 1.0))
        self.hold(module, optimizer)

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero what has been decided on."""
        FixedMask(self.held_masks()).hold(module, optimizer)

    def held_masks(self) -> dict[str, torch.Tensor]:
        """`dense_masks` of the decision as it stands, made once."""
        if self._dense is None or self._dense[0] is not self.decision:
            self._dense = self.decision, self.dense_masks()
        return self._dense[1]

    @abc.abstractmethod
    def decide(self, share: float) -> Decision:
        """The decision when ``share`` of the recipe's sparsities is due."""

    def level(self, unit: Unit, choice: UnitChoice, share: float) -> float | None:
        """A unit's sparsity at that share; None: nothing yet. A pattern of one sparsity comes at half of the way."""
        fixed = patterns.get(choice.pattern).fixed_sparsity
        if fixed is not None:
            return fixed if share >= 0.5 else None
        level = choice.sparsity * share
        return level if round(level * unit.size) >= 1 else None

    def dense_masks(self) -> dict[str, torch.Tensor]:
        """Parameter -> keep mask in the dense shape, of axes and matrices together."""
        parameters = dict(self.pruner.graph.module.named_parameters())
        masks = {name: mask.to(parameters[name].device) for name, mask in self.decision.masks.items()}
        for name, dims in self.pruner.graph.selected({k: v.cpu() for k, v in self.decision.keeps.items()}).items():
            if name not in parameters:
                continue
            mask = torch.ones(parameters[name].shape, dtype=torch.bool)
            for dim, keep in enumerate(dims):
                mask &= along(torch.from_numpy(np.asarray(keep)), dim, mask.ndim)
            mask = mask.to(parameters[name].device)
            masks[name] = masks[name] & mask if name in masks else mask
        return masks

    def dense(self, name: str, mask: torch.Tensor, keeps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A mask of what a cut leaves of a parameter, in the dense shape. What the cut removes counts as kept here."""
        positions = self.pruner.graph.positions({unit: keep.cpu() for unit, keep in keeps.items()}).get(name)
        if positions is None:
            return mask
        whole = torch.ones(dict(self.pruner.graph.module.named_parameters())[name].shape, dtype=torch.bool)
        whole[torch.meshgrid(*positions, indexing="ij")] = mask.cpu()
        return whole


def along(values: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """Values of one dim, shaped so that they broadcast over a tensor of ``ndim`` dims."""
    return values.reshape([-1 if d == dim else 1 for d in range(ndim)])


@final
class Gradual(MaskLearner):
    """Each unit's own criterion, applied to the weights as they are at that moment (Zhu & Gupta 2017; any pattern).

    Criteria that look at data take seconds for each decision, so they decide less often.
    """

    FEWER = 4
    """It decides so many times less often where any of the criteria looks at data."""

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        if any(method.get(choice.method).needs for _, choice in self.choices.values()):
            self.updates = max(1, plan.updates // self.FEWER)

    def decide(self, share: float) -> Decision:
        self.pruner.forget()
        due = {name: self.level(unit, choice, share) for name, (unit, choice) in self.choices.items()}
        choices = tuple(
            replace(choice, sparsity=level) for name, (_, choice) in self.choices.items() if (level := due[name]) is not None
        )
        module = self.pruner.graph.module
        training, home = module.training, next(module.parameters()).device
        module.eval().cpu()
        try:
            candidate = self.pruner.prune(Recipe(choices, "none"), orders={})
        finally:
            module.to(home).train(training)
        return Decision(
            candidate.keeps, {name: self.dense(name, mask, candidate.keeps) for name, mask in candidate.masks.items()}
        )


class ScoreLearner(MaskLearner):
    """Decides by scores that training itself makes: one an index of an axis, one a weight of a matrix."""

    TABLES: tuple[str, ...] = ("scores",)

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        module = pruner.graph.module
        parameters = dict(module.named_parameters())
        device = next(module.parameters()).device
        self.scores: dict[str, nn.Parameter] = {}
        self._places: dict[str, list[tuple[str, int, torch.Tensor]]] = {}
        for name, (unit, _) in self.choices.items():
            shape = (unit.size,) if unit.axis is not None else parameters[name].shape
            self.scores[name] = nn.Parameter(torch.zeros(shape, device=device))
            if unit.axis is not None:
                self._places[name] = [
                    (parameter, dim, torch.from_numpy(np.asarray(pruner.graph.slices(unit.axis, parameter, dim))).to(device))
                    for parameter, dim in unit.axis.members
                    if parameter in parameters and self._counts(unit, parameter, dim)
                ]

    def to(self, device: torch.device) -> None:
        super().to(device)
        for score in self.scores.values():
            score.data = score.data.to(device)
        self._places = {n: [(p, dim, index.to(device)) for p, dim, index in places] for n, places in self._places.items()}

    @torch.no_grad()
    def _norms(self, module: nn.Module, name: str) -> torch.Tensor:
        """The score of every weight, or of every index of an axis over what makes it."""
        parameters = dict(module.named_parameters())
        if self.choices[name][0].axis is None:
            return parameters[name].detach().abs()
        sums = torch.zeros_like(self.scores[name])
        for parameter, dim, index in self._places[name]:
            each = parameters[parameter].detach().square().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
            sums.index_add_(0, index[index >= 0], each[index >= 0])
        return sums.sqrt()

    def _counts(self, unit: Unit, parameter: str, dim: int) -> bool:
        """Does an axis's score belong to this tensor? What reads the axis sees zeros anyway, so to all that makes it."""
        return not self._reads(unit, parameter, dim)

    @staticmethod
    def _reads(unit: Unit, parameter: str, dim: int) -> bool:
        return any(part.parameter == parameter and part.dim == dim for part in readers(unit.parts))

    def decide(self, share: float) -> Decision:
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        # Axes first: the sparsity of a matrix counts what they leave of it.
        for name, (unit, choice) in sorted(self.choices.items(), key=lambda pair: pair[1][0].axis is None):
            level = self.level(unit, choice, share)
            if level is None:
                continue
            # A few steps make no scores; of a learning rate they tell as much with the smallest weights gone.
            scores = self._norms(self.pruner.graph.module, name) if self.short_trial else self.scores[name].detach()
            scores = scores.cpu()
            scores = scores - scores.min()  # patterns take scores >= 0, high = keep
            pattern = patterns.get(choice.pattern)
            asked = None if pattern.fixed_sparsity is not None else level
            if unit.axis is not None:
                keeps[name] = pattern.keep_mask(scores, asked)
            elif unit.matrix is not None:
                for dim, kept in enumerate(self.pruner.graph.positions(keeps).get(name, ())):
                    scores = scores.index_select(dim, kept)
                keep = unit.matrix.rows(pattern.keep_mask(unit.matrix.rows(scores).contiguous(), asked))
                masks[name] = self.dense(name, keep, keeps)
        return Decision(keeps, masks)
