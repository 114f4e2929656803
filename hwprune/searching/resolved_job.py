"""A job with everything that its words name: target, space, latency table, training, limits; read once and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwprune import runtimes
from hwprune.errors import UnavailableError, UsageError
from hwprune.latency import fleet
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.host import host
from hwprune.latency.latency_table import LatencyTable
from hwprune.latency.roofline import Roofline
from hwprune.latency.source import MEASURED, check_table
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.recovery.plan import Plan
from hwprune.searching.constraints import Constraints
from hwprune.searching.job import Job
from hwprune.searching.space import space_file
from hwprune.searching.space.space_file import SpaceFile


@dataclass(frozen=True, slots=True)
class ResolvedJob:
    """What a search works with.

    Attributes:
        job: the words.
        target: what the front is for; the first one, where there are several.
        others: the other targets.
        weights: target's name -> its share in the speedup that counts; None: the worst target's counts.
        runs_on: where accuracy comes from: the target, or this machine's CPU where latencies are not measured.
        space_file: the search space before it is fitted to a model.
        table: the latency table that predicts latencies; None where they are measured or estimated.
        constraints: what a point of the front must meet.
    """

    job: Job
    target: Target
    others: tuple[Target, ...]
    weights: Mapping[str, float | None]
    runs_on: Target
    space_file: SpaceFile
    table: LatencyTable | None
    constraints: Constraints

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that candidates are measured on."""
        return (self.target, *self.others)

    @property
    def prior(self) -> Target:
        """What is expected of candidates before anything is measured: what all targets execute, in sizes that suit all."""
        if not self.others:
            return self.target
        isas = {isa for target in self.targets for isa in target.channel_multiple}
        multiples = {isa: math.lcm(*(target.multiple(isa) for target in self.targets)) for isa in isas}
        executes = tuple(name for name in self.target.executes if all(target.why_not(name) is None for target in self.others))
        reasons = {key: f"{target.name}: {text}" for target in self.targets for key, text in target.reasons.items()}
        return replace(self.target, channel_multiple=multiples, executes=executes, reasons=reasons)

    @property
    def training(self) -> Plan | None:
        """How finalists are trained, if they are."""
        return self.job.training

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which the dense model and the front are tried."""
        return self.job.precisions

    @property
    def measured(self) -> bool:
        """Are latencies measured, not predicted or estimated?"""
        return self.job.latency_source == MEASURED


def resolve(job: Job, *, available: bool = True) -> ResolvedJob:
    """Everything that can be wrong before a model is loaded.

    Args:
        available: False: the target need not be measurable here (a worker on another machine).

    Raises:
        UsageError: names, files or profiles are wrong.
        UnavailableError: the target can't be measured here.
    """
    weights = fleet.parse(job.target)
    target, *others = [targets.load(name) for name in weights]
    for one in (target, *others):
        check_runtime(one)
    if others:
        check_fleet(job, target, others)
    weights = dict(zip((one.name for one in (target, *others)), weights.values(), strict=True))
    table = None
    if job.estimate:
        Roofline(target)
    elif job.table:
        table = LatencyTable.read(Path(job.table))
        check_table(table, target)
    elif available:
        for one in (target, *others):
            require_target(one, job.remote)
    runs_on = target if job.latency_source == MEASURED else targets.load("cpu")
    return ResolvedJob(job, target, tuple(others), weights, runs_on, space_file.load(job.space), table, job.constraints)


def check_fleet(job: Job, target: Target, others: Sequence[Target]) -> None:
    """Raises `UsageError` if one file can't serve all targets, or what is asked for has no meaning for several."""
    names = [one.name for one in (target, *others)]
    if len(set(names)) < len(names):
        raise UsageError(f"targets need different names: two are called {max(names, key=names.count)}")
    for one in others:
        first, other = runtimes.get(target.runtime), runtimes.get(one.runtime)
        ours, theirs = first.precision_of_file(target.precision), other.precision_of_file(one.precision)
        if (first.file, ours) != (other.file, theirs):
            raise UsageError(
                f"targets {target.name} and {one.name} run different files ({first.file} in {ours}, {other.file} in {theirs}): "
                "search for each of them"
            )
    if job.table or job.estimate:
        raise UsageError("several targets are measured: --table and --estimate are for one")
    if job.max_latency_s is not None:
        raise UsageError("a limit in seconds is of one target; --min-speedup is for several")


def check_runtime(target: Target) -> None:
    """Raises `UsageError` if the profile names no known runtime, or a precision that this one does not run."""
    known = runtimes.get(target.runtime)
    if known.file.endswith(".gguf"):
        raise UsageError(
            f"target {target.name}: {known.name} runs language models in GGUF files; candidates are ONNX files. "
            "`hwprune apply ... --format gguf --measure` measures with it"
        )
    if target.precision not in known.precisions:
        raise UsageError(
            f"target {target.name}: {known.name} does not run {target.precision}; it runs {', '.join(known.precisions)}"
        )
    if known.options is not None and (unknown := sorted(set(target.options) - known.options)):
        raise UsageError(
            f"target {target.name}: {known.name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known.options))}"
        )
    if target.device == "cuda" and "device_id" in target.options:
        raise UsageError(
            f"target {target.name}: choose the GPU with CUDA_VISIBLE_DEVICES, not with device_id: the first one is used"
        )
    if target.device != known.device:
        raise UsageError(f"target {target.name} is a {target.device} device, but {known.name} runs on {known.device}")


def require_target(target: Target, remote: str = "") -> None:
    """Raises `UnavailableError` if the target can't be measured on this machine (or the remote one); never silently another."""
    where = "this machine"
    if remote:
        machine = host(remote)
        try:
            with Bench(target, host=machine) as bench:
                reasons = list(bench.check()["missing"])
        finally:
            machine.close()
        where = remote
    else:
        reasons = missing(target)
    if not reasons:
        return
    raise UnavailableError(
        f"target {target.name} ({target.description}) can't be measured on {where}: {'; '.join(reasons)}.\n"
        "Three ways on:\n"
        "  1. measure on a machine that has the device and hwprune: --remote ssh://user@host\n"
        "  2. bring a latency table: run `hwprune probe WORKLOAD --target NAME --table DIR` there, then --table DIR here\n"
        "  3. a roofline estimate from the data sheet: --estimate\n"
        "Or measure on this machine's CPU: --target cpu"
    )
