"""Options of units: weights pruned in every way that is asked for, from the database or computed; and the statistics for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from hwprune import patterns
from hwprune.calibration import collect, passes, sensitivity
from hwprune.calibration.gram import Calibration
from hwprune.common.telling import Tell
from hwprune.errors import UsageError
from hwprune.layers import units as unit_table
from hwprune.layers.layer import Layer
from hwprune.layers.units import Unit
from hwprune.methods import layerwise, method
from hwprune.methods.method import Option
from hwprune.pruning.database import Database
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload.workload import Workload

OptionKey = tuple[str, str, str]
"""(unit, pattern, method)"""


class UnitOptions:
    """Options and statistics of one model with its calibration data; each is computed once.

    Args:
        database: folder of the option database; None: options are kept in memory.
        fingerprint: of the model.
        progress: told how far a calibration pass is.
    """

    def __init__(
        self,
        workload: Workload,
        graph: ModelGraph,
        units: Mapping[str, Unit],
        layers: Mapping[str, Layer],
        database: Path | None,
        fingerprint: str,
        progress: passes.Progress | None,
    ) -> None:
        self.workload, self.graph, self.units, self.layers = workload, graph, units, layers
        self.database, self.fingerprint, self.progress = database, fingerprint, progress
        self._options: dict[tuple[str, str, str, str, float | None], Option] = {}
        self._calibration_data = Calibration({})
        self._collected: frozenset[str] = frozenset()
        self._store: Database | None = None

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
        asked_unit = unit_table.get(self.units, unit)
        if asked_unit.tokens is not None:
            return [_fewer_tokens(asked_unit, level) for level in levels]
        resolved_pattern, resolved_method = patterns.get(pattern), method.get(method_name)
        if reason := unavailable(self.layers, asked_unit, resolved_method, resolved_pattern):
            raise UsageError(f"unit {unit}: {reason}")
        asked: list[float | None] = [None if resolved_pattern.fixed_sparsity is not None else level for level in levels]

        def compute(missing: list[float | None]) -> Sequence[Option]:
            calibration = self.statistics([*resolved_method.needs, *(["gram"] if local_compensation != layerwise.NONE else [])])
            return method.solve(asked_unit, calibration.layers, resolved_method, missing, resolved_pattern, local_compensation)

        store = self._database()
        if store is not None:
            return store.options(unit, resolved_pattern.name, resolved_method.name, local_compensation, asked, compute)
        keys = [(unit, resolved_pattern.name, resolved_method.name, local_compensation, level) for level in asked]
        missing = [key for key in keys if key not in self._options]
        if missing:
            for key, option in zip(missing, compute([key[-1] for key in missing]), strict=True):
                self._options[key] = option
        return [self._options[key] for key in keys]

    def held(self, unit: str, pattern: str, method_name: str, levels: Sequence[float], local_compensation: str = "none") -> bool:
        """Are these options known already, so that `options` computes nothing?"""
        if pattern in patterns.TOKENS:
            return True
        asked: list[float | None] = [None if patterns.get(pattern).fixed_sparsity is not None else level for level in levels]
        pattern, method_name = patterns.get(pattern).name, method.get(method_name).name
        store = self._database()
        if store is not None:
            return store.holds(unit, pattern, method_name, local_compensation, asked)
        return all((unit, pattern, method_name, local_compensation, level) in self._options for level in asked)

    def responses(
        self,
        wanted: Mapping[OptionKey, Sequence[float]],
        branches: Sequence[str],
        local_compensation: str,
        step: Tell,
        late: Callable[[], bool] = lambda: False,
    ) -> dict[OptionKey, torch.Tensor]:
        """What each option does to the outputs, see `hwprune.calibration.sensitivity.responses`: (examples, levels).

        Args:
            wanted: (unit, pattern, method) -> levels.
            branches: units that are dropped; theirs are found under (unit, ``branch``, ``drop``).
            step: told what is being done.
            late: is there no time for more examples than must be? What is found out then is not kept.

        Raises:
            UsageError: the model's output has no gradient.
        """
        text = "predicting what each choice does to the outputs"
        keys = {"|".join(key): key for key in wanted}
        new = [name for name, key in keys.items() if not self.held(*key, wanted[key], local_compensation)]

        def options(name: str) -> Sequence[Option]:
            unit, pattern, method_name = keys[name]
            if name in new:
                step(f"pruning {unit} in every way", new.index(name), len(new))
            return self.options(unit, pattern, method_name, wanted[keys[name]], local_compensation)

        told = 0

        def progress(done: int, total: int) -> None:
            nonlocal told
            if 4 * done // total > told:  # in quarters: where there is no terminal each is a line
                told = 4 * done // total
                step(text, done, total)

        shortened = False

        def is_late() -> bool:
            nonlocal shortened
            shortened = shortened or late()
            return shortened

        def compute() -> tuple[dict[str, torch.Tensor], bool]:
            step(text)
            counts = {name: (key[0], len(wanted[key])) for name, key in keys.items() if key[1] not in patterns.TOKENS}
            tokens = {name: (key[0], wanted[key]) for name, key in keys.items() if key[1] in patterns.TOKENS}
            answers = sensitivity.responses(
                self.graph, self.workload, self.units, counts, options, branches, sensitivity.EXAMPLES,
                progress=progress, late=is_late, tokens=tokens,
            )  # fmt: skip
            return answers, not shortened

        levels = {name: list(wanted[key]) for name, key in keys.items()}
        asked = [levels, list(branches), local_compensation, sensitivity.EXAMPLES]
        store = self._database()
        found = compute()[0] if store is None else store.responses(asked, compute)
        keys |= {unit: (unit, patterns.BRANCH, "drop") for unit in branches}
        return {keys[name]: value for name, value in found.items()}


def _fewer_tokens(unit: Unit, sparsity: float) -> Option:
    """How many tokens stay; which ones is decided for each input."""
    keep = torch.arange(unit.size) < unit.size - round(sparsity * unit.size)
    return Option(unit.name, unit.role, sparsity, patterns.TOKENS[unit.role], keep, sparsity)


def unavailable(layers: Mapping[str, Layer], unit: Unit, found: method.Method, pattern: patterns.Pattern) -> str | None:
    """Why a method can't be used for a unit, as far as that is known without data; or None."""
    if reason := found.unavailable(unit.parts, pattern):
        return reason
    if found.needs and unit.matrix is not None and unit.name not in layers:
        return f"method {found.name} needs the inputs of {unit.name}, which is used in more ways than as the weight of a layer"
    return None
