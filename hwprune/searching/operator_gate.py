"""Before a search: does every target take what the search would propose?

A converter that refuses an operator, or computes something else, would fail one trial after another. Here it fails once, in
seconds, and the search goes on without the kind of cut that is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from hwprune import patterns, runtimes
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.bench import Bench
from hwprune.latency.fleet import FleetBench
from hwprune.onnx_files import to_onnx
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.records.target import Target

KEY = "sample"


def refused_kinds(
    pruner: Pruner, bench: Bench, targets: Iterable[Target], kinds: Iterable[str], step: Callable[[str], None]
) -> dict[str, str]:
    """Kind of cut -> why a target refuses a model whose axes of that kind are all cut in half.

    Kinds that the model has none of, and models that can't be cut, are left out; so are targets whose runtime reads ONNX files as
    they are.

    Args:
        bench: on which the dense model runs already.
        kinds: roles of axes, and ``branch``.
    """
    benches = bench.members if isinstance(bench, FleetBench) else dict.fromkeys((target.name for target in targets), bench)
    asked = {target.name: target for target in targets if runtimes.get(target.runtime).convert_s}
    refused: dict[str, str] = {}
    for kind in kinds if asked else ():
        with tempfile.TemporaryDirectory(prefix="hwprune-gate-") as folder:
            path = _sample(pruner, kind, Path(folder))
            for name, target in asked.items() if path is not None else ():
                assert path is not None
                step(f"trying a {kind} cut on {name}")
                reason = _why_not(benches[name], target, path)
                if reason is not None:
                    refused[kind] = f"{name} does not take it: {reason}"
                    break
    return refused


def _why_not(bench: Bench, target: Target, path: Path) -> str | None:
    try:
        bench.load(KEY, path, threads=target.threads)  # said threads: of a fleet's first bench, only this one loads it
        bench.drop(KEY)
    except CandidateFailure as failure:
        return failure.reason
    return None


def _sample(pruner: Pruner, kind: str, folder: Path) -> Path | None:
    """The model with every axis of a kind cut in half, or a branch dropped; None if it has none."""
    pieces = CutSegments(pruner)
    counts = {unit.name: unit.size // 2 for unit in (*pieces.axes(), *pieces.tokens()) if unit.role == kind}
    drop = [unit.name for unit in pruner.units.values() if unit.role == patterns.BRANCH][:1] if kind == patterns.BRANCH else []
    if not counts and not drop:
        return None
    try:
        return to_onnx.save_onnx(pieces.cut(counts, drop), folder / "model.onnx")
    except (CandidateFailure, UsageError):
        return None
