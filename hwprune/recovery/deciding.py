"""What goes, decided while the model is trained: gradual pruning, movement pruning, PLATON, growing regularisation.

All of them train a private copy of the model in its own shapes and end in keep masks; the cut and a last training at the final
sparsity follow (`hwprune.recovery.recovering`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import nn

from hwprune import method, patterns
from hwprune.errors import UsageError
from hwprune.pruning import Pruner
from hwprune.recipe import Recipe, UnitChoice
from hwprune.recovery import schedules
from hwprune.recovery.masking import Held, Sparsifier, State
from hwprune.recovery.plan import Plan
from hwprune.structure.units import Unit
from hwprune.structure.units import get as get_unit


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What stays: axis name -> keep mask of its indices, matrix -> keep mask in the dense parameter's shape."""

    keeps: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]


class Deciding(Sparsifier):
    """Raises the sparsity of a recipe's units from 0 to what it says, along the plan's schedule.

    Branches stay until the model is cut: half a branch is none.
    """

    SCALARS: tuple[str, ...] = ("_updates",)
    TABLES: tuple[str, ...] = ()
    """Attributes that training changes: numbers, and dictionaries of tensors."""
    HURRIED = 3

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        """``pruner``: of a private copy of the model, whose ``graph.module`` is what is trained."""
        self.pruner, self.plan = pruner, plan
        self.choices: dict[str, tuple[Unit, UnitChoice]] = {
            choice.unit: (get_unit(pruner.units, choice.unit), choice)
            for choice in recipe.choices
            if choice.pattern != patterns.BRANCH
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
        found: State = {f"scalar/{name}": torch.tensor(float(getattr(self, name)), dtype=torch.float64) for name in self.SCALARS}
        tables = {name: getattr(self, name) for name in self.TABLES}
        for group, named in {**tables, "keeps": self.decision.keeps, "masks": self.decision.masks}.items():
            found |= {f"{group}/{name}": tensor.detach().clone() for name, tensor in named.items()}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
        for name, value in groups.get("scalar", {}).items():
            setattr(self, name, type(getattr(self, name))(float(value)))
        for table in self.TABLES:
            own = getattr(self, table)
            for name in [name for name in own if name not in groups.get(table, {})]:
                del own[name]
            for name, tensor in groups.get(table, {}).items():
                if name in own:
                    own[name].copy_(tensor)  # the optimizer holds it
                else:
                    own[name] = tensor.clone().to(self._device)
        self.decision = Decision(groups.get("keeps", {}), groups.get("masks", {}))

    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        updates = min(self.updates, self.HURRIED) if self.hurried else self.updates
        due = int(progress * updates + 1e-9)
        if due > self._updates:
            self._updates = due if due < updates else self.updates
            share = 1.0 if progress >= 1 else self._schedule(due / updates, 0.0, self._final) / self._final
            self.decision = self.decide(min(share, 1.0))
        self.hold(module, optimizer)

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero what has been decided on."""
        if self._dense is None or self._dense[0] is not self.decision:
            self._dense = self.decision, self.dense_masks()
        Held(self._dense[1]).hold(module, optimizer)

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
        found = {name: mask.to(parameters[name].device) for name, mask in self.decision.masks.items()}
        for name, dims in self.pruner.graph.selected({k: v.cpu() for k, v in self.decision.keeps.items()}).items():
            if name not in parameters:
                continue
            mask = torch.ones(parameters[name].shape, dtype=torch.bool)
            for dim, keep in enumerate(dims):
                mask &= _along(torch.from_numpy(np.asarray(keep)), dim, mask.ndim)
            mask = mask.to(parameters[name].device)
            found[name] = found[name] & mask if name in found else mask
        return found

    def dense(self, name: str, mask: torch.Tensor, keeps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A mask of what a cut leaves of a parameter, in the dense shape. What the cut removes counts as kept here."""
        positions = self.pruner.graph.positions({unit: keep.cpu() for unit, keep in keeps.items()}).get(name)
        if positions is None:
            return mask
        whole = torch.ones(dict(self.pruner.graph.module.named_parameters())[name].shape, dtype=torch.bool)
        whole[torch.meshgrid(*positions, indexing="ij")] = mask.cpu()
        return whole


def _along(values: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(ndim)])


@final
class Gradual(Deciding):
    """Each unit's own criterion, applied to the weights as they are at that moment (Zhu & Gupta 2017; any pattern).

    Criteria that look at data take seconds for each decision, so they decide less often.
    """

    FEWER = 4
    """Times less often, where any of the criteria looks at data."""

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


class Scored(Deciding):
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
                # What reads the axis sees zeros anyway, so only what makes it is scored.
                self._places[name] = [
                    (parameter, dim, torch.from_numpy(np.asarray(pruner.graph.slices(unit.axis, parameter, dim))).to(device))
                    for parameter, dim in unit.axis.members
                    if parameter in parameters and not self._reads(unit, parameter, dim)
                ]

    def to(self, device: torch.device) -> None:
        super().to(device)
        for score in self.scores.values():
            score.data = score.data.to(device)
        self._places = {n: [(p, dim, index.to(device)) for p, dim, index in places] for n, places in self._places.items()}

    @torch.no_grad()
    def _norms(self, module: nn.Module, name: str) -> torch.Tensor:
        """Of every weight, or of every index of an axis over what makes it."""
        parameters = dict(module.named_parameters())
        if self.choices[name][0].axis is None:
            return parameters[name].detach().abs()
        found = torch.zeros_like(self.scores[name])
        for parameter, dim, index in self._places[name]:
            each = parameters[parameter].detach().square().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
            found.index_add_(0, index[index >= 0], each[index >= 0])
        return found.sqrt()

    @staticmethod
    def _reads(unit: Unit, parameter: str, dim: int) -> bool:
        return any(part.parameter == parameter and part.kind == "reads" and part.dim == dim for part in unit.parts)

    def decide(self, share: float) -> Decision:
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        # Axes first: the sparsity of a matrix counts what they leave of it.
        for name, (unit, choice) in sorted(self.choices.items(), key=lambda pair: pair[1][0].axis is None):
            level = self.level(unit, choice, share)
            if level is None:
                continue
            # A few steps make no scores; of a learning rate they tell as much with the smallest weights gone.
            scores = self._norms(self.pruner.graph.module, name) if self.hurried else self.scores[name].detach()
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


@final
class Movement(Scored):
    """Movement pruning: what moves away from zero stays (Sanh et al. 2020, arXiv 2005.07683).

    The forward pass uses W * keep_mask(S); the gradient goes straight through the mask, so dS = dL/dW' * W, summed over what
    goes together. Of axes that is the structured variant (Lagunas et al. 2021, arXiv 2109.04838). Weights that are masked now
    go on learning nothing, but their scores move, so that they may come back.

    Args:
        soft: what stays is what scores above a threshold, and a penalty on sigmoid(S) whose weight follows the distance to the
            wanted sparsity lowers the scores; units then share the sparsity as they need it. At the end one threshold over all
            units makes the recipe's sparsity exact. Not for patterns in which weights compete in groups.
    """

    SCALARS = ("_updates", "weight", "_due")
    travel = 10.0
    """Sanh et al. give scores a rate of 1e-2 beside 3e-5 for weights: over a run they can move by some tens."""
    GAIN = 20.0
    """How fast the penalty of the soft variant follows the distance to the wanted sparsity."""

    PRIOR = 1.0
    """What a weight of the layer's root mean square is worth at the beginning.

    Scores that begin at zero, as the paper's do, are noise for the first thousands of steps, and what they remove is drawn at random:
    over a short training that ruins a model. Beside a way of `travel` this is little; it decides where movement has not.
    """

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan, soft: bool = False) -> None:
        super().__init__(pruner, recipe, plan)
        if not soft:
            with torch.no_grad():
                for name, score in self.scores.items():
                    norms = self._norms(pruner.graph.module, name)
                    score.copy_(self.PRIOR * norms / norms.square().mean().sqrt().clamp(min=1e-12))
        if soft:
            grouped = sorted({c.pattern for u, c in self.choices.values() if u.axis is None and c.pattern != "unstructured"})
            if grouped:
                raise UsageError(f"soft movement takes axes and unstructured weights, got {', '.join(grouped)}")
        self.soft = soft
        self.weight = 0.0
        self._due = 0.0

    def extra(self) -> list[nn.Parameter]:
        return list(self.scores.values())

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        parameters = dict(module.named_parameters())
        found: dict[str, torch.Tensor] = {}
        for name, score in self.scores.items():
            unit, _ = self.choices[name]
            if unit.axis is None:
                mask = self.decision.masks.get(name)
                gate = self._gate(score, mask)
                found[name] = found.get(name, parameters[name]) * gate
                continue
            gate = self._gate(score, self.decision.keeps.get(name))
            for parameter, dim, index in self._places[name]:
                values = torch.where(index >= 0, gate[index.clamp(min=0)], torch.ones((), device=gate.device))
                found[parameter] = found.get(parameter, parameters[parameter]) * _along(values, dim, parameters[parameter].ndim)
        return found

    @staticmethod
    def _gate(score: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """The mask in the forward pass, the score in the backward pass."""
        value = torch.ones_like(score) if keep is None else keep.to(score.device, score.dtype)
        return value + score - score.detach()

    def penalty(self, module: nn.Module) -> torch.Tensor | None:  # noqa: ARG002
        if not self.soft or self.weight <= 0:
            return None
        return self.weight * torch.stack([score.sigmoid().mean() for score in self.scores.values()]).mean()

    def decide(self, share: float) -> Decision:
        if not self.soft or self.hurried:
            return super().decide(share)
        self._due = share
        wanted = share * sum(c.sparsity for _, c in self.choices.values()) / len(self.choices)
        if share >= 1:
            return self._exact()
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        gone = []
        for name, (unit, _) in self.choices.items():
            score = self.scores[name].detach().cpu()
            keep = score >= 0  # sigmoid(S) above one half, where it begins
            if not bool(keep.any()):
                keep = score == score.max()
            gone.append(1 - float(keep.float().mean()))
            (keeps if unit.axis is not None else masks)[name] = keep
        self.weight = max(0.0, self.weight + self.GAIN * (wanted - sum(gone) / len(gone)) / self.plan.updates)
        return Decision(keeps, masks)

    def _exact(self) -> Decision:
        """One threshold for all units, at the recipe's mean sparsity."""
        every = torch.cat([score.detach().reshape(-1).cpu() for score in self.scores.values()])
        total = sum(c.sparsity * self.scores[name].numel() for name, (_, c) in self.choices.items())
        threshold = every.sort().values[min(len(every) - 1, round(total))]
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        for name, (unit, _) in self.choices.items():
            score = self.scores[name].detach().cpu()
            keep = (score >= threshold) | (score == score.max())
            (keeps if unit.axis is not None else masks)[name] = keep
        return Decision(keeps, masks)

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Masks act in the forward pass alone until the end: what is masked may come back."""
        if self._updates >= self.updates:
            super().hold(module, optimizer)


@final
class Platon(Scored):
    """PLATON: sensitivity times its uncertainty (Zhang et al. 2022, arXiv 2206.12562).

    I = |w g|, smoothed to mean M with factor `BETA1`; U = |I - M| smoothed with `BETA2`; the score is M * U, of an axis the sum
    over what makes it. Low scores are zeroed after each step; they go on being trained, and may come back.
    """

    BETA1, BETA2 = 0.85, 0.95
    TABLES: tuple[str, ...] = ("scores", "_mean", "_uncertain")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        self._mean: dict[str, torch.Tensor] = {}
        self._uncertain: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Scores first: after the step what was zeroed is not zero, so that its score lives on."""
        parameters = dict(module.named_parameters())
        for name, (unit, _) in self.choices.items():
            if unit.axis is None:
                weight = parameters[name]
                if weight.grad is None:
                    continue
                now = (weight * weight.grad).abs()
            else:
                now = torch.zeros_like(self.scores[name])
                for parameter, dim, index in self._places[name]:
                    tensor = parameters[parameter]
                    if tensor.grad is not None:
                        each = (tensor * tensor.grad).abs().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
                        now.index_add_(0, index[index >= 0], each[index >= 0])
            mean = self._mean.setdefault(name, torch.zeros_like(now)).lerp_(now, 1 - self.BETA1)
            apart = (now - mean).abs()
            uncertain = self._uncertain.setdefault(name, torch.zeros_like(now)).lerp_(apart, 1 - self.BETA2)
            self.scores[name].copy_(mean * uncertain)
        super().after_step(module, optimizer, progress)


@final
class Growing(Scored):
    """Growing regularisation: an L2 penalty that grows on what is to go, until it is gone by itself (GReg-1; Wang et al. 2021,
    arXiv 2012.09243). What is to go is chosen once, by L1 norm.

    The penalty acts on the weights themselves, as AdamW's decay does, and rises linearly so far that over the whole training
    exp(-`TOTAL`) of a weight would be left of it.
    """

    TOTAL = 6.0
    SCALARS = ("_updates", "_before")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        parameters = dict(pruner.graph.module.named_parameters())
        with torch.no_grad():
            for name, (unit, _) in self.choices.items():
                if unit.axis is None:
                    self.scores[name].copy_(parameters[name].abs())
                    continue
                for parameter, dim, index in self._places[name]:
                    each = parameters[parameter].abs().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
                    self.scores[name].index_add_(0, index[index >= 0], each[index >= 0])
        self.decision = super().decide(1.0)
        self._goes = {name: ~mask for name, mask in self.dense_masks().items()}
        self._before = 0.0

    def decide(self, share: float) -> Decision:  # noqa: ARG002 - it was decided at the beginning
        return self.decision

    @torch.no_grad()
    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is zeroed before the end."""
        if self._updates >= self.updates:
            super().hold(module, optimizer)

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        factor = float(np.exp(-self.TOTAL * (progress**2 - self._before**2)))
        self._before = progress
        parameters = dict(module.named_parameters())
        for name, goes in self._goes.items():
            parameters[name].copy_(torch.where(goes.to(parameters[name].device), parameters[name] * factor, parameters[name]))
        super().after_step(module, optimizer, progress)


@final
class Lasso(Scored):
    """L1 on single weights, group lasso on axes, and removal by norm at the end (Wen et al. 2016, arXiv 1608.03665).

    The penalty acts as its proximal step after each step of the optimizer: a weight, or the norm of a group, shrinks by a
    constant and stops at zero. The constant is such that what the recipe removes would be gone at the end if nothing else moved
    it.
    """

    SCALARS = ("_updates", "_before")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        self._shrink: dict[str, float] = {}
        self._before = 0.0
        for name, (_, choice) in self.choices.items():
            norms = self._norms(pruner.graph.module, name).reshape(-1)
            self._shrink[name] = float(norms.sort().values[min(len(norms) - 1, round(choice.sparsity * len(norms)))])

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        parameters = dict(module.named_parameters())
        for name, (unit, _) in self.choices.items():
            if self.hurried:  # to shrink everything within a few steps is another thing than to do so in a whole training
                break
            norms = self._norms(module, name)
            factor = (1 - self._shrink[name] * (progress - self._before) / norms.clamp(min=1e-12)).clamp(min=0)
            if unit.axis is None:
                parameters[name].mul_(factor)
                continue
            for parameter, dim, index in self._places[name]:
                values = torch.where(index >= 0, factor[index.clamp(min=0)], torch.ones((), device=factor.device))
                parameters[parameter].mul_(_along(values, dim, parameters[parameter].ndim))
        self._before = progress
        super().after_step(module, optimizer, progress)

    def decide(self, share: float) -> Decision:
        if share < 1:
            return self.decision
        for name in self.choices:
            self.scores[name].data.copy_(self._norms(self.pruner.graph.module, name))
        return super().decide(share)
