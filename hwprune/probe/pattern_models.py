"""Whole models with the most of one pattern, measured against dense: the upper bound of what any search can gain by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from hwprune import patterns
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.source import Measured
from hwprune.layers.units import Unit
from hwprune.onnx_files import to_onnx
from hwprune.probe.cut_segments import CutSegments
from hwprune.probe.findings import PatternProbe
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.target import Target

Progress = Callable[[str, int, int], None]
MASKS = (("unstructured", 0.9), ("2:4", 0.5), ("block:4x4", 0.9))
"""Mask patterns and the sparsity at which they are tried: what does not pay here does not pay at less."""


class PatternModels:
    """Makes and measures the models.

    Args:
        identity: of the device, for its channel multiple.
        folder: for the models' files.
    """

    def __init__(
        self,
        pruner: Pruner,
        target: Target,
        bench: Bench,
        pieces: CutSegments,
        identity: Mapping[str, Any],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.pruner, self.target, self.bench, self.pieces = pruner, target, bench, pieces
        self.identity, self.folder, self.progress = identity, folder, progress

    def measure_all(self, source: Measured) -> list[PatternProbe]:
        """Whole models, each with as much of one pattern as there can be, against dense."""
        plans: list[tuple[str, str, Callable[[], onnx.ModelProto]]] = []
        roles = Counter(unit.role for unit in self.pieces.axes())
        for role in sorted(roles):
            counts = {u.name: self._least(u) for u in self.pieces.axes() if u.role == role}
            plans.append((role, f"every {role} axis at its smallest ({roles[role]} of them)", partial(self.pieces.cut, counts)))
        branches = [unit.name for unit in self.pruner.units.values() if unit.branch is not None]
        if branches:
            plans.append((patterns.BRANCH, f"all {len(branches)} branches dropped", partial(self._without, branches)))
        for form in sorted({unit.role for unit in self.pieces.tokens()}):
            counts = {unit.name: unit.size // 2 for unit in self.pieces.tokens() if unit.role == form}
            plans.append((form, f"half of the tokens go at each of {len(counts)} places", partial(self.pieces.cut, counts)))
        for pattern, sparsity in MASKS:
            what = f"{100 * sparsity:.0f} % zeros in every weight that fits"
            plans.append((pattern, what, partial(self._masked, pattern, sparsity)))
        probes = []
        for number, (name, what, make) in enumerate(plans):
            self.progress("measuring the most of each pattern", number, len(plans))
            probes.append(self._pattern(name, what, make, source))
        return probes

    def _least(self, unit: Unit) -> int:
        if unit.role in ("head", "group", "expert"):
            return 1
        multiple = self.target.multiple(str(self.identity.get("isa", "default")))
        return min(unit.size, max(1, min(multiple, unit.size // 8)))

    def _without(self, branches: Sequence[str]) -> onnx.ModelProto:
        """The model without as many branches as can go together: one inside another leaves with it."""
        kept = list(branches)
        while kept:
            try:
                return self.pieces.model({}, kept)
            except (CandidateFailure, UsageError, RuntimeError, KeyError):
                kept.pop()
        raise CandidateFailure("prune", "no branch can be dropped")

    def _masked(self, pattern: str, sparsity: float) -> onnx.ModelProto:
        recipe = uniform_recipe(self.pruner, pattern, sparsity, "l2", "none")
        candidate = self.pruner.prune(recipe)
        path = self.folder / "masked.onnx"
        self.pruner.template.write(candidate.module, candidate.keeps, path)
        model = onnx.load(str(path))
        return model if self.pieces.precision == "fp32" else to_onnx.converted(model, self.pieces.precision)

    def _pattern(self, name: str, what: str, make: Callable[[], onnx.ModelProto], source: Measured) -> PatternProbe:
        expected = self.target.why_not(name)
        try:
            self.bench.load("candidate", to_onnx.save_onnx(make(), self.folder / "pattern.onnx"))
            details = self.bench.facts("candidate").get("sparsity", ()) if name == "2:4" else ()
            speedup = source.candidate(self.folder / "pattern.onnx").speedup
        except (CandidateFailure, UsageError) as error:
            return PatternProbe(name, what, None, "not measured", str(error))
        note = expected or ""
        if expected and speedup.ci_low > 1.02:
            note = f"faster although the profile says: {expected}"
        numbers = {"value": speedup.value, "ci_low": speedup.ci_low, "ci_high": speedup.ci_high}
        return PatternProbe(name, what, numbers, speedup.verdict, note, tuple(details))
