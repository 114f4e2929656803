"""Recipe -> pruned candidate. Composition is fixed: cut first, then mask what is left, then compensate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hwprune import compensation, patterns
from hwprune.calibration import passes, relevance, sufficient
from hwprune.calibration.gram import Calibration
from hwprune.common.telling import Tell, silent
from hwprune.compensation import Context
from hwprune.errors import CandidateFailure, TraceError
from hwprune.layers import layer as layer_table
from hwprune.layers import units as unit_table
from hwprune.layers.layer import Layer
from hwprune.layers.units import Unit
from hwprune.methods import layerwise, method
from hwprune.methods.method import Option
from hwprune.onnx_files import OnnxModule
from hwprune.onnx_files.template import Template
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.cut_check import (
    check_cut,
    check_runs,
    reorder_checked,
)
from hwprune.pruning.recipe_check import divide
from hwprune.pruning.stitching import Stitch
from hwprune.pruning.unit_options import OptionKey, UnitOptions, unavailable
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.structure.model_graph import ModelGraph
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.opaque import OpaqueGraph
from hwprune.structure.torch.rebuilding import with_tensors
from hwprune.workload import batches
from hwprune.workload.workload import Workload

DEFAULT_COMPENSATIONS = ("obs", "batchnorm")


@dataclass(slots=True)
class Pruner:
    """A workload traced once; makes any number of candidates from it.

    Args:
        workload: what to prune.
        database: folder of the option database; None: options are kept in memory.
        progress: told how far a calibration pass is.
        late: is there no time for more than must be? Then `responses` uses fewer examples.

    ``added``: how many inputs of the train split calibration has been given, because the layers want more than it has.

    ``untraceable``: why the model can't be traced, or None; then only masks of its layers' weights are left.

    Raises:
        TraceError: the model can't be traced, and it has no linear or convolution layer either.
    """

    workload: Workload
    database: Path | None = None
    progress: passes.Progress | None = None
    late: Callable[[], bool] = lambda: False
    graph: ModelGraph = field(init=False)
    untraceable: str | None = field(init=False, default=None)
    units: dict[str, Unit] = field(init=False)
    fingerprint: str = field(init=False)
    layers: dict[str, Layer] = field(init=False)
    added: int = field(init=False, default=0)
    _options: UnitOptions = field(init=False)
    _cache: dict[str, Any] = field(init=False, default_factory=dict)
    _template: Template | None = field(init=False, default=None)
    _ran: set[str] = field(init=False, default_factory=set)
    """Units of which a cut was run once."""

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
        solving = self.workload
        if self.graph.module.meta.get("free_batch", True):
            wanted = sufficient.wanted_examples(self.layers, self.graph.module)
            solving, _ = sufficient.with_train_inputs(self.workload, min(wanted, sufficient.ENOUGH_FOR_OPTIONS))
            self.workload, self.added = sufficient.with_train_inputs(self.workload, wanted)
        self._options = UnitOptions(solving, self.graph, self.units, self.layers, self.database, self.fingerprint, self.progress)

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
        return self.graph.dead_tokens(drop) | {
            unit.name
            for unit in self.units.values()
            if unit.branch is None
            and unit.tokens is None
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
        return self._options.statistics(names)

    def options(
        self, unit: str, pattern: str, method_name: str, levels: Sequence[float], local_compensation: str = "none"
    ) -> list[Option]:
        """Options of a unit of the dense model, one a sparsity, from the database where they are there.

        Raises:
            UsageError: they don't fit, or what they need is not there.
        """
        return self._options.options(unit, pattern, method_name, levels, local_compensation)

    def held(self, unit: str, pattern: str, method_name: str, levels: Sequence[float], local_compensation: str = "none") -> bool:
        """Are these options known already, so that `options` computes nothing?"""
        return self._options.held(unit, pattern, method_name, levels, local_compensation)

    def responses(
        self,
        wanted: Mapping[OptionKey, Sequence[float]],
        branches: Sequence[str],
        local_compensation: str,
        step: Tell = silent,
    ) -> dict[OptionKey, torch.Tensor]:
        """What each option, and each branch that goes, does to the outputs; see `UnitOptions.responses`."""
        return self._options.responses(wanted, branches, local_compensation, step, self.late)

    def unavailable(self, unit: Unit, found: method.Method, pattern: patterns.Pattern) -> str | None:
        """Why a method can't be used for a unit, as far as that is known without data; or None."""
        return unavailable(self.layers, unit, found, pattern)

    def forget(self) -> None:
        """The weights of ``graph.module`` were changed in place: nothing that was found out about the old ones holds.

        Only for a pruner of a private copy of the model; one with an option database never forgets.
        """
        self._options.forget()
        self._cache.clear()

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
            CandidateFailure: a cut does not run, the result is not finite, or an N:M pattern doesn't fit what the cut left.
        """
        steps = compensation.parse(recipe.compensation)
        inside = compensation.local_part(recipe.compensation)
        cuts, rest, drop = divide(recipe, self.graph, self.units)
        solved: dict[str, Option] = {}
        if keeps is None:
            solved = {c.unit: self.options(c.unit, c.pattern, c.method, [c.sparsity], inside)[0] for c in cuts}
            keeps = {unit: option.keep for unit, option in solved.items()}
        tokens = {name: keep for name, keep in keeps.items() if (unit := self.units.get(name)) and unit.tokens is not None}
        every, keeps = keeps, {name: keep for name, keep in keeps.items() if name not in tokens}
        module = self.graph.cut(keeps, drop)
        if fresh := {*keeps, *drop} - self._ran:
            check_runs(module, self.workload.example_inputs, sorted(fresh))
            self._ran |= fresh

        def option(choice: UnitChoice) -> Option:
            return self.options(choice.unit, choice.pattern, choice.method, [choice.sparsity], inside)[0]

        positions = self.graph.positions(keeps)
        stitch = Stitch(self.graph, self.units, self.layers, module, positions, self.statistics, option)
        if inside != layerwise.NONE and keeps:
            stitch.columns(keeps, solved)
        orders = stitch.orders(rest) if orders is None else orders
        if orders:
            reorder_checked(self.graph, module, keeps, orders, self.workload.example_inputs)
            stitch.positions = positions = self.graph.positions(keeps, orders)
        final_masks = stitch.mask(rest, masks, inside)
        if recipe.choices:
            context = Context(
                self.graph.module, self._calibration, self.graph.matrices, positions, final_masks, self._cache, self._relevance()
            )
            for step in steps:
                done = step.name == "batchnorm" and compensation.is_sequential(recipe.compensation)  # it did so on its way
                if not step.local and not done and step.applies(module):
                    step.apply(module, context)
        if tokens:  # last: what is refitted has all tokens, as the dense model has
            module = with_tensors(self.graph.cut(every, drop), module)
            check_runs(module, self.workload.example_inputs, sorted(tokens))
        for name, tensor in module.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise CandidateFailure("prune", f"{name} is not finite after pruning")
        counts = {name: int(keep.sum()) for name, keep in every.items()}
        inputs = self.workload.example_inputs
        macs = self.macs(counts, drop)
        return Candidate(
            module.eval(),
            recipe,
            dict(every),
            drop,
            final_masks,
            self.fingerprint,
            inputs,
            macs,
            lambda: self.template,
            dict(orders),
        )

    def check_cut(self, candidate: Candidate) -> float:
        """Compare the cut with the masked model on the example inputs; returns the relative difference.

        Raises:
            RunError: they differ: a wrong rule. hwprune never goes on with a wrong cut.
        """
        return check_cut(self.graph, candidate)

    def macs(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        """Multiply-accumulates of one run on the example inputs with so many indices kept."""
        first = self.workload.example_inputs[0]
        return self.graph.macs(counts, first.shape[0] if first.ndim else 1, drop)

    def _calibration(self) -> Iterator[tuple[torch.Tensor, ...]]:
        device = next(iter(self.workload.model.parameters()), torch.empty(0)).device
        free = self.graph.module.meta.get("free_batch", True)
        for inputs, _ in self.workload.batches("calibration"):
            batches.check_batch(self.workload, free=free, count=len(inputs[0]) if inputs[0].ndim else 1)
            yield tuple(x.to(device) for x in inputs)

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


def prune(workload: Workload, recipe: Recipe) -> Candidate:
    """Apply one recipe to a workload's model; for several, make a `Pruner` once."""
    return Pruner(workload).prune(recipe)
