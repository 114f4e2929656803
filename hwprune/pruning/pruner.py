"""Recipe -> pruned candidate. Composition is fixed: cut first, then mask what is left, then compensate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from hwprune import compensation, patterns
from hwprune.calibration import collect, passes, relevance
from hwprune.calibration.gram import Calibration
from hwprune.compensation import Context
from hwprune.errors import CandidateFailure, RunError, TraceError, UsageError
from hwprune.layers import layer as layer_table
from hwprune.layers import units as unit_table
from hwprune.layers.layer import Layer
from hwprune.layers.units import Unit
from hwprune.methods import layerwise, method
from hwprune.methods.method import Option
from hwprune.onnx_files import OnnxModule
from hwprune.onnx_files.template import Template
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.cut_check import CUT_TOLERANCE, CUT_TOLERANCE_DOUBLE, ORDER_TOLERANCE, relative_difference
from hwprune.pruning.database import Database
from hwprune.pruning.stitching import Stitch
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.structure.model_graph import ModelGraph
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.opaque import OpaqueGraph
from hwprune.workload import batches
from hwprune.workload.workload import Workload, first_tensor

DEFAULT_COMPENSATIONS = ("obs", "batchnorm")


@dataclass(slots=True)
class Pruner:
    """A workload traced once; makes any number of candidates from it.

    Args:
        workload: what to prune.
        database: folder of the option database; None: options are kept in memory.
        progress: told how far a calibration pass is.

    ``untraceable``: why the model can't be traced, or None; then only masks of its layers' weights are left.

    Raises:
        TraceError: the model can't be traced, and it has no linear or convolution layer either.
    """

    workload: Workload
    database: Path | None = None
    progress: passes.Progress | None = None
    graph: ModelGraph = field(init=False)
    untraceable: str | None = field(init=False, default=None)
    units: dict[str, Unit] = field(init=False)
    fingerprint: str = field(init=False)
    layers: dict[str, Layer] = field(init=False)
    _options: dict[tuple[str, str, str, str, float | None], Option] = field(init=False, default_factory=dict)
    _calibration_data: Calibration = field(init=False, default_factory=lambda: Calibration({}))
    _collected: frozenset[str] = field(init=False, default=frozenset())
    _store: Database | None = field(init=False, default=None)
    _cache: dict[str, Any] = field(init=False, default_factory=dict)
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
        self.layers = layer_table.find(self.graph.module, self.graph.matrices)

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
        """What helps any model: kept weights make up for removed ones, and batch norm gets new statistics where there is one."""
        names = [name for name in DEFAULT_COMPENSATIONS if compensation.COMPENSATIONS[name].applies(self.graph.module)]
        return "+".join(names) or compensation.NONE

    def statistics(self, names: Iterable[str]) -> Calibration:
        """Statistics of the dense model on the calibration data; what was collected once is not collected again.

        Args:
            names: fields of `LayerStatistics`, or ``influence``.
        """
        wanted = set(names)
        for kind in (collect.GRAM, collect.GRADIENT, frozenset({collect.INFLUENCE})):
            if wanted & kind and not kind & self._collected:
                self._calibration_data = self._calibration_data.merged(self._collect(kind))
                self._collected |= kind
        return self._calibration_data

    def forget(self) -> None:
        """The weights of ``graph.module`` were changed in place: nothing that was found out about the old ones holds.

        Only for a pruner of a private copy of the model; one with an option database never forgets.
        """
        if self.database is not None:
            raise ValueError("options in a database belong to the weights they were made from")
        self._options.clear()
        self._calibration_data, self._collected = Calibration({}), frozenset()
        self._cache.clear()

    def _collect(self, names: frozenset[str]) -> Calibration:
        def compute() -> Calibration:
            return collect.collect_statistics(self.graph, self.workload, names, progress=self.progress)

        store = self._database()
        return compute() if store is None else store.statistics(names, compute)

    def _database(self) -> Database | None:
        if self.database is None:
            return None
        if self._store is None:
            self._store = Database(self.database, self.workload, self.fingerprint, self.graph.module)
        return self._store

    def options(
        self, unit: str, pattern: str, method_name: str, levels: Sequence[float], local_compensation: str = "none"
    ) -> list[Option]:
        """Options of a unit of the dense model, one a sparsity, from the database where they are there.

        Raises:
            UsageError: they don't fit, or what they need is not there.
        """
        one = unit_table.get(self.units, unit)
        chosen, found = patterns.get(pattern), method.get(method_name)
        if reason := self.unavailable(one, found, chosen):
            raise UsageError(f"unit {unit}: {reason}")
        asked: list[float | None] = [None if chosen.fixed_sparsity is not None else level for level in levels]

        def compute(missing: list[float | None]) -> Sequence[Option]:
            known = self.statistics([*found.needs, *(["gram"] if local_compensation != layerwise.NONE else [])])
            return method.solve(one, known.layers, found, missing, chosen, local_compensation)

        store = self._database()
        if store is not None:
            return store.options(unit, chosen.name, found.name, local_compensation, asked, compute)
        keys = [(unit, chosen.name, found.name, local_compensation, level) for level in asked]
        missing = [key for key in keys if key not in self._options]
        if missing:
            for key, option in zip(missing, compute([key[-1] for key in missing]), strict=True):
                self._options[key] = option
        return [self._options[key] for key in keys]

    def prune(
        self,
        recipe: Recipe,
        keeps: Mapping[str, torch.Tensor] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        orders: Mapping[str, torch.Tensor] | None = None,
    ) -> Candidate:
        """Apply a recipe.

        Args:
            recipe: what to do; units that it does not name stay dense.
            keeps, masks, orders: stored decisions of the same model that replace the methods' own (`hwprune apply`).

        Raises:
            UsageError: the recipe names a unit, pattern or method that isn't there or doesn't fit.
            CandidateFailure: the result is not finite, or an N:M pattern doesn't fit what the cut left.
        """
        steps = compensation.parse(recipe.compensation)
        inside = next((one.name for one in steps if one.local), layerwise.NONE)
        cuts, rest, drop = self._divide(recipe)
        solved: dict[str, Option] = {}
        if keeps is None:
            solved = {c.unit: self.options(c.unit, c.pattern, c.method, [c.sparsity], inside)[0] for c in cuts}
            keeps = {unit: option.keep for unit, option in solved.items()}
        module = self.graph.cut(keeps, drop)

        def option(choice: UnitChoice) -> Option:
            return self.options(choice.unit, choice.pattern, choice.method, [choice.sparsity], inside)[0]

        positions = self.graph.positions(keeps)
        stitch = Stitch(self.graph, self.units, self.layers, module, positions, self.statistics, option)
        if inside != layerwise.NONE and keeps:
            stitch.columns(keeps, solved)
        orders = stitch.orders(rest) if orders is None else orders
        if orders:
            self._reorder(module, keeps, orders)
            stitch.positions = positions = self.graph.positions(keeps, orders)
        made = stitch.mask(rest, masks, inside)
        if recipe.choices:
            context = Context(
                self.graph.module, self._calibration, self.graph.matrices, positions, made, self._cache, self._relevance()
            )
            for one in steps:
                done = one.name == "batchnorm" and any(other.name == "sequential" for other in steps)  # it did so on its way
                if not one.local and not done and one.applies(module):
                    one.apply(module, context)
        for name, tensor in module.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise CandidateFailure("prune", f"{name} is not finite after pruning")
        counts = {name: int(keep.sum()) for name, keep in keeps.items()}
        inputs = self.workload.example_inputs
        macs = self.macs(counts, drop)
        return Candidate(
            module.eval(), recipe, dict(keeps), drop, made, self.fingerprint, inputs, macs, lambda: self.template, dict(orders)
        )

    def macs(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        """Multiply-accumulates of one run on the example inputs with so many indices kept."""
        first = self.workload.example_inputs[0]
        return self.graph.macs(counts, first.shape[0] if first.ndim else 1, drop)

    def _reorder(self, module: fx.GraphModule, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]) -> None:
        """Reorder axes, and check that the model still computes the same. Raises `RunError` if not."""
        inputs = self.workload.example_inputs
        with torch.no_grad():
            before = first_tensor(module(*inputs))
            self.graph.reorder(module, keeps, orders)
            after = first_tensor(module(*inputs))
        difference = float((before - after).abs().max()) / max(float(before.abs().max()), 1e-30)
        if not difference <= ORDER_TOLERANCE:
            raise RunError(
                f"with {', '.join(orders)} in another order the model differs by {difference:.2g} (relative). "
                "This is a bug in a rule of hwprune.structure.torch.rules; please report it"
            )

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
        difference = relative_difference(cut, masked, inputs)
        if not difference <= CUT_TOLERANCE:  # so that NaN counts as different
            double = tuple(x.double() if x.is_floating_point() else x for x in inputs)
            try:
                difference, allowed = relative_difference(cut.double(), masked.double(), double), CUT_TOLERANCE_DOUBLE
            except RuntimeError:  # a model that names float32 inside can't run in float64
                allowed = 10 * CUT_TOLERANCE
            if not difference <= allowed:
                raise RunError(
                    f"the cut model differs from the masked one by {difference:.2g} (relative). This is a bug in a rule of "
                    f"hwprune.structure.torch.rules; please report it. Axes: {', '.join(keeps)}"
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
                fixed = pattern.fixed_sparsity
                if fixed is not None and abs(fixed - choice.sparsity) > 1e-6:
                    faults.append(f"pattern {pattern.name} removes {fixed:g} of {unit.name}, not {choice.sparsity:g}")
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

    def _relevance(self) -> Callable[[tuple[torch.Tensor, ...]], Mapping[str, torch.Tensor]] | None:
        """Which positions matter, of a model in which some may not."""
        if all(x.is_floating_point() for x in self.workload.example_inputs) or self.untraceable:
            return None
        nodes = {node: layer for layer in self.layers.values() for node in layer.nodes}
        sharing: dict[str, list[str]] = {}
        for node, layer in nodes.items():
            same = [n for n, other in nodes.items() if other.inputs == layer.inputs and other.batch_dim == layer.batch_dim]
            sharing[node] = same if layer.matrix.kind != "conv" else [node]
        return lambda inputs: relevance.relevance(self.graph.module, nodes, sharing, inputs)

    def unavailable(self, unit: Unit, found: method.Method, pattern: patterns.Pattern) -> str | None:
        """Why a method can't be used for a unit, as far as that is known without data; or None."""
        if reason := found.unavailable(unit.parts, pattern):
            return reason
        if found.needs and unit.matrix is not None and unit.name not in self.layers:
            return (
                f"method {found.name} needs the inputs of {unit.name}, which is used in more ways than as the weight of a layer"
            )
        return None

    def _calibration(self) -> Iterator[tuple[torch.Tensor, ...]]:
        device = next(iter(self.workload.model.parameters()), torch.empty(0)).device
        free = self.graph.module.meta.get("free_batch", True)
        for inputs, _ in self.workload.batches("calibration"):
            batches.check_batch(self.workload, free, len(inputs[0]) if inputs[0].ndim else 1)
            yield tuple(x.to(device) for x in inputs)


def prune(workload: Workload, recipe: Recipe) -> Candidate:
    """Apply one recipe to a workload's model; for several, make a `Pruner` once."""
    return Pruner(workload).prune(recipe)
