"""Recipe -> pruned candidate. Composition is fixed: cut first, then mask what is left, then compensate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

from hwprune import compensation, export, method, patterns
from hwprune.errors import CandidateFailure, RunError, TraceError, UsageError
from hwprune.onnx_import import OnnxModule
from hwprune.recipe import Recipe, UnitChoice, uniform
from hwprune.structure import units as unit_table
from hwprune.structure.graph import ModelGraph
from hwprune.structure.opaque import OpaqueGraph
from hwprune.structure.tracing import trace
from hwprune.structure.units import Unit
from hwprune.template import Template
from hwprune.workload import Workload, first_tensor

CUT_TOLERANCE = 1e-5
"""Largest difference between cut and masked outputs, relative to the largest output, in float32."""
CUT_TOLERANCE_DOUBLE = 1e-9
"""The same in float64, asked only when float32 rounding leaves a doubt."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A recipe applied.

    Attributes:
        module: the pruned model, trainable, with the original parameter names.
        keeps: axis name -> kept indices as a bool tensor.
        drop: branches that are gone.
        masks: parameter name -> keep mask in the shape that the parameter has after the cut.
        fingerprint: of the dense model.
        macs: multiply-accumulates of one run on the example inputs.
        template: gives what writes its ONNX file.
    """

    module: fx.GraphModule
    recipe: Recipe
    keeps: Mapping[str, torch.Tensor]
    drop: tuple[str, ...]
    masks: Mapping[str, torch.Tensor]
    fingerprint: str
    example_inputs: tuple[torch.Tensor, ...]
    macs: int
    template: Callable[[], Template]

    def export(self, folder: str | Path) -> Path:
        """Write model.onnx, model.safetensors, recipe.json and keep.safetensors; returns the folder."""
        folder = Path(folder)
        self.template().write(self.module, self.keeps, folder / "model.onnx", self.drop)
        export.to_safetensors(self.module, folder / "model.safetensors")
        self.write_recipe(folder)
        return folder

    def write_recipe(self, folder: Path) -> Path:
        """Write recipe.json, and keep.safetensors if there are masks."""
        return export.write_recipe(self.recipe, self.fingerprint, self.keeps, self.masks, folder)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


@dataclass(slots=True)
class Pruner:
    """A workload traced once; makes any number of candidates from it.

    ``untraceable``: why the model can't be traced, or None; then only masks of its layers' weights are left.

    Raises:
        TraceError: the model can't be traced, and it has no linear or convolution layer either.
    """

    workload: Workload
    graph: ModelGraph = field(init=False)
    untraceable: str | None = field(init=False, default=None)
    units: dict[str, Unit] = field(init=False)
    fingerprint: str = field(init=False)
    _options: dict[UnitChoice, method.Option] = field(init=False, default_factory=dict)
    _template: Template | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.fingerprint = self.workload.fingerprint
        try:
            self.graph = trace(self.workload.model, self.workload.example_inputs)
        except TraceError as error:
            self.untraceable = str(error)
            self.graph = OpaqueGraph(self.workload.model, self.workload.example_inputs, self.untraceable)
            if not self.graph.matrices:
                raise
        self.units = unit_table.units(self.graph)

    @property
    def template(self) -> Template:
        """Makes ONNX files of candidates from the dense model's; made when it is first asked for.

        Raises:
            CandidateFailure: the dense model can't be exported.
        """
        if self._template is None:
            model, inputs = self.workload.model, self.workload.example_inputs
            if isinstance(model, OnnxModule):
                self._template = Template(self.graph, inputs, model.onnx_graph, model.onnx_initializers)
            else:
                self._template = Template(self.graph, inputs)
        return self._template

    def dead_units(self, drop: Sequence[str]) -> Set[str]:
        """Axes and matrices of which nothing is left once these branches are dropped."""
        gone = self.graph.dead(drop)
        return {
            unit.name
            for unit in self.units.values()
            if unit.branch is None
            and unit.name not in drop
            and all(name in gone for name in ([m[0] for m in unit.axis.members] if unit.axis else unit.weights))
        }

    def default_compensation(self) -> str:
        """The first of the table that would change anything in this model, or ``none``."""
        for name, one in compensation.COMPENSATIONS.items():
            if one.applies(self.graph.module):
                return name
        return compensation.NONE

    def prune(
        self,
        recipe: Recipe,
        keeps: Mapping[str, torch.Tensor] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
    ) -> Candidate:
        """Apply a recipe.

        Args:
            recipe: what to do; units that it does not name stay dense.
            keeps, masks: stored decisions of the same model that replace the methods' own (`hwprune apply`).

        Raises:
            UsageError: the recipe names a unit, pattern or method that isn't there or doesn't fit.
            CandidateFailure: the result is not finite, or an N:M pattern doesn't fit what the cut left.
        """
        cuts, rest, drop = self._divide(recipe)
        if keeps is None:
            keeps = {choice.unit: self._option(choice).keep for choice in cuts}
        module = self.graph.cut(keeps, drop)
        made = self._mask(module, rest, masks)
        if recipe.compensation != compensation.NONE:
            one = compensation.get(recipe.compensation)
            if recipe.choices and one.applies(module):
                one.apply(module, self._calibration)
        counts = {name: int(keep.sum()) for name, keep in keeps.items()}
        inputs = self.workload.example_inputs
        macs = self.macs(counts, drop)
        return Candidate(module.eval(), recipe, dict(keeps), drop, made, self.fingerprint, inputs, macs, lambda: self.template)

    def macs(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        """Multiply-accumulates of one run on the example inputs with so many indices kept."""
        first = self.workload.example_inputs[0]
        return self.graph.macs(counts, first.shape[0] if first.ndim else 1, drop)

    def check_cut(self, candidate: Candidate) -> float:
        """Compare the cut with the masked model on the example inputs; returns the relative difference.

        Both are taken before masks and compensation. Axes that are not exact are left out.

        Raises:
            RunError: they differ: a wrong rule. hwprune never goes on with a wrong cut.
        """
        keeps = {name: keep for name, keep in candidate.keeps.items() if self.graph.axis(name).exact}
        if not keeps and not candidate.drop:
            return 0.0
        cut, masked = self.graph.cut(keeps, candidate.drop), self.graph.mask(keeps, candidate.drop)
        inputs = self.workload.example_inputs
        difference = _difference(cut, masked, inputs)
        if not difference <= CUT_TOLERANCE:  # so that NaN counts as different
            double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
            try:
                difference, allowed = _difference(cut.double(), masked.double(), double), CUT_TOLERANCE_DOUBLE
            except RuntimeError:  # a model that names float32 inside can't run in float64
                allowed = 10 * CUT_TOLERANCE
            if not difference <= allowed:
                raise RunError(
                    f"the cut model differs from the masked one by {difference:.2g} (relative). This is a bug in a rule of "
                    f"hwprune.structure.rules; please report it. Axes: {', '.join(keeps)}"
                )
        return difference

    def _divide(self, recipe: Recipe) -> tuple[list[UnitChoice], list[UnitChoice], tuple[str, ...]]:
        """The choices that cut axes, those that mask what is left, and the branches to drop."""
        drop = tuple(choice.unit for choice in recipe.choices if choice.pattern == patterns.BRANCH)
        cuts: list[UnitChoice] = []
        rest: list[UnitChoice] = []
        faults: list[str] = []
        for choice in recipe.choices:
            try:
                unit = unit_table.get(self.units, choice.unit)
                if (unit.branch is not None) != (choice.pattern == patterns.BRANCH):
                    faults.append(f"unit {unit.name} has role {unit.role}, the recipe chooses pattern {choice.pattern}")
                    continue
                if unit.branch is not None:
                    continue
                pattern = patterns.get(choice.pattern)
                method.get(choice.method)
            except UsageError as error:
                faults.append(str(error))
                continue
            wanted = unit.role if unit.axis is not None else "a mask pattern"
            if (unit.axis is not None and pattern.name != unit.role) or (unit.axis is None and patterns.is_axis(pattern.name)):
                faults.append(f"unit {unit.name} takes pattern {wanted}, got {pattern.name}")
            (cuts if unit.axis is not None else rest).append(choice)
        if faults:
            raise UsageError("the recipe does not fit this model:", faults)
        dead = self.graph.dead(drop)
        return cuts, [choice for choice in rest if choice.unit not in dead], drop

    def _option(self, choice: UnitChoice) -> method.Option:
        if choice not in self._options:
            unit = self.units[choice.unit]
            (self._options[choice],) = method.solve(unit, None, choice.method, [choice.sparsity], choice.pattern)
        return self._options[choice]

    def _mask(
        self, module: fx.GraphModule, choices: list[UnitChoice], stored: Mapping[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        masks: dict[str, torch.Tensor] = {}
        for choice in choices:
            weight = parameters[choice.unit]
            matrix = self.units[choice.unit].matrix
            assert matrix is not None  # `_divide` sorts them so
            unit = unit_table.matrix_unit(matrix, weight)
            pattern = patterns.get(choice.pattern)
            if reason := pattern.inadmissible(unit.weights[choice.unit].shape):
                raise CandidateFailure("prune", f"{choice.unit}: pattern {pattern.name} does not fit: {reason}")
            if stored is not None:
                keep = stored[choice.unit]
            else:
                level = None if pattern.fixed_sparsity is not None else choice.sparsity
                (option,) = method.get(choice.method).solve(unit, None, pattern, [level])
                keep = matrix.rows(option.keep)
            with torch.no_grad():
                weight.mul_(keep.to(weight.device))
            masks[choice.unit] = keep
        return masks

    def _calibration(self) -> Iterator[tuple[torch.Tensor, ...]]:
        device = next(iter(self.workload.model.parameters()), torch.empty(0)).device
        for inputs, _ in self.workload.batches("calibration"):
            yield tuple(x.to(device) for x in inputs)


@torch.no_grad()
def _difference(a: torch.nn.Module, b: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    first, second = first_tensor(a(*inputs)), first_tensor(b(*inputs))
    scale = float(second.abs().max())
    return float((first - second).abs().max()) / max(scale, 1e-30)


def prune(workload: Workload, recipe: Recipe) -> Candidate:
    """Apply one recipe to a workload's model; for several, make a `Pruner` once."""
    return Pruner(workload).prune(recipe)


def uniform_recipe(
    workload: Workload, pattern: str, sparsity: float, criterion: str = "l2", compensation: str | None = None
) -> Recipe:
    """The same choice for every unit that ``pattern`` fits.

    Args:
        pattern: a role (``channel``, ``head``, ``neuron``) or a mask pattern (``2:4``, ``unstructured``).
        compensation: default: what the model has use for.

    Raises:
        UsageError: no unit of the model takes the pattern.
    """
    pruner = Pruner(workload)
    if pattern == patterns.BRANCH:
        names = [unit.name for unit in pruner.units.values() if unit.branch is not None]
        if not names:
            raise UsageError(f"{workload.name} has no branch that could be dropped")
        return uniform(names, pattern, 1.0, "drop", pruner.default_compensation() if compensation is None else compensation)
    chosen = patterns.get(pattern)
    method.get(criterion)
    if patterns.is_axis(chosen.name):
        names = [u.name for u in pruner.units.values() if u.axis is not None and u.role == chosen.name]
    else:
        names = [u.name for u in pruner.units.values() if u.matrix is not None and not chosen.inadmissible(u.matrix.shape)]
    if not names:
        raise UsageError(f"no unit of {workload.name} takes pattern {pattern}")
    level = chosen.fixed_sparsity if chosen.fixed_sparsity is not None else sparsity
    return uniform(names, pattern, level, criterion, pruner.default_compensation() if compensation is None else compensation)
