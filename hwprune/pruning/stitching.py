"""Puts options together into a cut model: weights that make up for what was cut, orders of channels, masks on what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from hwprune import criteria, patterns
from hwprune.calibration.gram import Calibration
from hwprune.errors import CandidateFailure
from hwprune.layers import units as unit_table
from hwprune.layers.layer import Layer
from hwprune.layers.part import READS, Part
from hwprune.layers.units import Unit
from hwprune.methods import layerwise, method
from hwprune.methods.layerwise import Solution
from hwprune.methods.method import Option
from hwprune.patterns import permutation
from hwprune.records.recipe import UnitChoice
from hwprune.structure.model_graph import ModelGraph

Positions = Mapping[str, Sequence[torch.Tensor]]


@dataclass(slots=True, eq=False)
class Stitch:
    """One candidate in the making.

    Attributes:
        module: the cut model; changed in place.
        positions: tensor's name -> for each dim the positions of the dense tensor that it still has, in order; of those that
            changed.
        statistics: gives those of the dense model's layers.
        option: gives an option of a unit that nothing else has touched.
    """

    graph: ModelGraph
    units: Mapping[str, Unit]
    layers: Mapping[str, Layer]
    module: fx.GraphModule
    positions: Positions
    statistics: Callable[[Iterable[str]], Calibration]
    option: Callable[[UnitChoice], Option]
    touched: set[str] = field(default_factory=set)
    """Weights that are no longer those of the dense model, besides those in ``positions``."""

    def _state(self) -> dict[str, torch.Tensor]:
        return {
            **dict(self.module.named_parameters(remove_duplicate=False)),
            **dict(self.module.named_buffers(remove_duplicate=False)),
        }

    # -- after a cut -------------------------------------------------------------------------

    def columns(self, keeps: Mapping[str, torch.Tensor], solved: Mapping[str, Option]) -> None:
        """Give every layer that lost inputs the weights that make up for them."""
        state = self._state()
        sources: dict[str, list[str]] = {}
        for unit in keeps:
            for part in self.units[unit].parts:
                if part.kind == READS:
                    sources.setdefault(part.parameter, []).append(unit)
        for name, units in sources.items():
            if name not in state or name not in self.layers or name not in self.positions:
                continue
            option_solution = solved[units[0]].solutions.get(name) if len(units) == 1 and units[0] in solved else None
            solution = option_solution or self._solve(name)
            if solution is not None:
                self._put(name, solution, state)

    def _solve(self, name: str) -> Solution | None:
        """A layer that several axes feed, or whose option is not at hand; None if no data reach it."""
        matrix = self.layers[name].matrix
        (part,) = method.attach(self.units[name].parts, self.statistics(["gram"]).layers)
        if part.statistics is None:
            return None
        keep = torch.zeros(matrix.shape[1], dtype=torch.bool)
        keep[self.positions[name][1 - matrix.out_dim]] = True
        return layerwise.kept_columns(part, [keep])[0]

    def _put(self, name: str, solution: Solution, state: Mapping[str, torch.Tensor]) -> None:
        """Weights and constants of a solution in the dense model's outputs, cut to those that are left."""
        layer = self.layers[name]
        out = self.positions[name][layer.matrix.out_dim]
        state[name].data.copy_(layer.matrix.rows(solution.weight[out]))
        self.touched.add(name)
        self._move(layer, None if solution.shift is None else solution.shift[out], state)

    @staticmethod
    def _move(layer: Layer, shift: torch.Tensor | None, state: Mapping[str, torch.Tensor]) -> None:
        if shift is None:
            return
        if layer.bias is not None:
            state[layer.bias].data.add_(shift.to(state[layer.bias]))
        elif layer.running_mean is not None:
            state[layer.running_mean].data.sub_(shift.to(state[layer.running_mean]))

    # -- masks -------------------------------------------------------------------------------

    def part(self, name: str, needs: Sequence[str]) -> Part:
        """A weight as it is now, with the statistics of what is left of its inputs and outputs."""
        weight = dict(self.module.named_parameters(remove_duplicate=False))[name]
        matrix = self.units[name].matrix
        assert matrix is not None
        layer = self.layers.get(name)
        statistics = self.statistics(needs).layers.get(name) if needs else None
        groups = matrix.groups
        if name in self.positions:
            out, inner = (self.positions[name][dim] for dim in (matrix.out_dim, 1 - matrix.out_dim))
            if groups > 1:
                groups = len(torch.unique(out // (matrix.shape[0] // groups)))
            statistics = None if statistics is None else statistics.restricted(out, inner)
        unit = unit_table.matrix_unit(matrix, weight.detach(), centred=layer is not None and layer.movable, groups=groups)
        return dataclasses.replace(unit.parts[0], statistics=statistics)

    def orders(self, choices: Sequence[UnitChoice]) -> dict[str, torch.Tensor]:
        """Orders of the axes that feed matrices with a permuted N:M pattern; axis name -> order of its kept indices.

        Layers that read the same axis are served together. A layer that no free axis feeds keeps its order.
        """
        rows: dict[str, list[torch.Tensor]] = {}
        groups: dict[str, tuple[int, int]] = {}
        for choice in choices:
            pattern, matrix = patterns.get(choice.pattern), self.units[choice.unit].matrix
            assert matrix is not None
            axis = self.graph.feeding_axis(matrix) if pattern.permutes and matrix.groups == 1 else None
            if axis is None or pattern.group is None:
                continue
            if groups.setdefault(axis.name, pattern.group) != pattern.group:
                raise CandidateFailure(
                    "prune", f"layers that read {axis.name} want different N:M patterns, which need different orders"
                )
            criterion = criteria.get(choice.method)
            part = self.part(choice.unit, criterion.needs)
            if part.tensor.shape[1] % pattern.group[1]:
                continue  # inadmissible; `mask` says so
            scores = criterion.scores(part.tensor, part.statistics)
            rows.setdefault(axis.name, []).append(scores.movedim(1, -1).reshape(-1, scores.shape[1]))
        return {name: permutation.search(torch.cat(axis_rows), *groups[name]) for name, axis_rows in rows.items()}

    def mask(
        self, choices: Sequence[UnitChoice], stored: Mapping[str, torch.Tensor] | None, compensation: str
    ) -> dict[str, torch.Tensor]:
        """Mask weights, and let the others make up for it; parameter -> keep mask in its shape after the cut."""
        keep_masks: dict[str, torch.Tensor] = {}
        state = self._state()
        for choice in choices:
            matrix = self.units[choice.unit].matrix
            assert matrix is not None
            pattern, layer = patterns.get(choice.pattern), self.layers.get(choice.unit)
            if reason := pattern.inadmissible(matrix.rows(state[choice.unit]).shape):
                raise CandidateFailure("prune", f"{choice.unit}: pattern {pattern.name} does not fit: {reason}")
            repairs = compensation if layer is not None else layerwise.NONE
            dense = choice.unit not in self.positions and choice.unit not in self.touched
            if dense and stored is None and (repairs == compensation):
                option = self.option(choice)
                keep, solution = option.keep, option.solutions.get(choice.unit)
            else:
                choice_method = method.get(choice.method)
                part = self.part(
                    choice.unit,
                    [*(choice_method.needs if stored is None else ()), *(["gram"] if repairs != layerwise.NONE else [])],
                )
                if stored is None:
                    level = None if pattern.fixed_sparsity is not None else choice.sparsity
                    (keep,) = choice_method.keeps([part], pattern, [level])
                else:
                    keep = matrix.rows(stored[choice.unit])
                reached = part.statistics is not None and part.statistics.covariance is not None
                solution = layerwise.masked(part, keep, repairs, pattern) if repairs != layerwise.NONE and reached else None
            with torch.no_grad():
                if solution is not None and layer is not None:
                    state[choice.unit].copy_(matrix.rows(solution.weight))
                    self._move(layer, solution.shift, state)
                else:
                    state[choice.unit].mul_(matrix.rows(keep).to(state[choice.unit].device))
            keep_masks[choice.unit] = matrix.rows(keep)
        return keep_masks
