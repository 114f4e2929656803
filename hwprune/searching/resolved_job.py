"""A job with everything that its words name: target, space, latency table, training, limits; read once and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwprune import runtimes
from hwprune.errors import UnavailableError, UsageError
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
        target: what the front is for.
        runs_on: where accuracy comes from: the target, or this machine's CPU where latencies are not measured.
        space_file: the search space before it is fitted to a model.
        table: the latency table that predicts latencies; None where they are measured or estimated.
        constraints: what a point of the front must meet.
    """

    job: Job
    target: Target
    runs_on: Target
    space_file: SpaceFile
    table: LatencyTable | None
    constraints: Constraints

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
    target = targets.load(job.target)
    check_runtime(target)
    table = None
    if job.estimate:
        Roofline(target)
    elif job.table:
        table = LatencyTable.read(Path(job.table))
        check_table(table, target)
    elif available:
        require_target(target, job.remote)
    runs_on = target if job.latency_source == MEASURED else targets.load("cpu")
    return ResolvedJob(job, target, runs_on, space_file.load(job.space), table, job.constraints)


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
