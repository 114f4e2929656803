"""What a search was asked for, as a value and as job.toml."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from hwprune import compensation
from hwprune.common.files import dump_toml, read_toml, write_atomic
from hwprune.common.masking import has_password, mask_password
from hwprune.deploy import quantise
from hwprune.errors import UsageError
from hwprune.recovery import plan
from hwprune.recovery.plan import Plan
from hwprune.searching.constraints import Constraints

SCHEMA = 1
FILE = "job.toml"
DEFAULT = "knapsack"
"""The sampler unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Job:
    """The resolved configuration of a search.

    Attributes:
        workload: its source; empty for a live Python object.
        trials: how many different recipes are evaluated; 0: no limit but the time.
        time_s: seconds of the whole search; three trials are evaluated in any case, training and quantising come on top; 0: no
            limit.
        max_drop, min_speedup, max_latency_s, max_size: constraints, None: none; seconds of one batch, bytes of the file.
        recover: ``none``, compensations joined by ``+``, ``auto`` (what the model has use for), or a training of the finalists:
            ``finetune:EPOCHS``, ``distill:EPOCHS``, ``gradual:EPOCHS``.
        trial_timeout_s, memory_limit: what one candidate may take; 0 bytes: three quarters of the machine's memory.
        storage: Optuna storage URL; empty: study.db in the run directory. A password in it stays in job.toml, which then only the
            user can read; everything else shows ``***``.
        database: folder of the option database; empty: the user's cache folder.
        remote: ``ssh://[user@]host[:port][/path/to/hwprune]`` of the machine that measures; empty: this one.
        table: folder of a latency table measured on the device; the front is then predicted, not measured.
        estimate: latencies from the profile's roofline; the front is then estimated, not measured.
        quantize: precisions joined by commas (see `hwprune.deploy.quantise`); the dense model and the front are tried in them.
    """

    workload: str
    target: str = "cpu"
    space: str = "default"
    trials: int = 60
    time_s: float = 0.0
    sampler: str = DEFAULT
    seed: int = 0
    max_drop: float | None = None
    min_speedup: float | None = None
    max_latency_s: float | None = None
    max_size: int | None = None
    recover: str = "auto"
    all_patterns: bool = False
    trial_timeout_s: float = 120.0
    memory_limit: int = 0
    storage: str = ""
    database: str = ""
    remote: str = ""
    table: str = ""
    estimate: bool = False
    quantize: str = ""
    training: Plan | None = field(init=False, repr=False, compare=False, default=None)
    """How finalists are trained, if they are: ``recover``, parsed."""
    precisions: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())
    """``quantize``, parsed."""

    def __post_init__(self) -> None:
        if faults := self._type_faults():
            raise UsageError("this search can't be started:", faults)
        faults = self._limit_faults()
        if self.trials < 0 or (self.trials == 0 and self.time_s == 0):
            faults.append(f"trials must be at least 1 (or 0 with a time limit), got {self.trials}")
        if self.time_s < 0:
            faults.append(f"time must not be negative, got {self.time_s:g} s")
        if self.seed < 0:
            faults.append(f"seed must not be negative, got {self.seed}")
        if self.trial_timeout_s <= 0:
            faults.append(f"trial_timeout must be > 0 s, got {self.trial_timeout_s:g}")
        if self.memory_limit < 0:
            faults.append(f"memory_limit must not be negative, got {self.memory_limit}")
        if sum(map(bool, (self.remote, self.table, self.estimate))) > 1:
            faults.append("remote, table and estimate exclude each other: a latency comes from one of them")
        try:
            object.__setattr__(self, "precisions", quantise.parse(self.quantize))
        except UsageError as error:
            faults.append(f"quantize: {error}")
        if self.recover != "auto":
            faults += self._parse_recover()
        if faults:
            raise UsageError("this search can't be started:", faults)

    def _parse_recover(self) -> list[str]:
        """Fill in `training`; the faults of ``recover``."""
        try:
            training = plan.parse(self.recover)
        except UsageError as error:
            return [f"recover: {error}"]
        if training is not None:
            object.__setattr__(self, "training", replace(training, seed=self.seed))
            return []
        try:
            compensation.parse(self.recover)
        except UsageError as error:
            return [f"recover: {error}{self._suggest_training()}"]
        return []

    def _suggest_training(self) -> str:
        """What a training's name was perhaps meant to be; compensations have a hint of their own."""
        near = difflib.get_close_matches(self.recover.partition(":")[0], plan.KINDS, 1)
        return (
            f" Did you mean {near[0]}:EPOCHS?"
            if near
            else f" Or a training: {', '.join(f'{kind}:EPOCHS' for kind in plan.KINDS)}."
        )

    def _type_faults(self) -> list[str]:
        """What is no number; anything else about it would be a fault that is none."""
        faults = []
        for name in ("trials", "seed", "memory_limit"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                faults.append(f"{name} must be a whole number, got {value!r}")
        for name in ("time_s", "trial_timeout_s", "max_drop", "min_speedup", "max_latency_s", "max_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or isinstance(value, bool)):
                faults.append(f"{name} must be a number, got {value!r}")
        return faults

    def _limit_faults(self) -> list[str]:
        faults = []
        if self.max_drop is not None and not self.max_drop >= 0:
            faults.append(f"max_drop must be >= 0 (0.01 is one point of an accuracy), got {self.max_drop}")
        for name, limit in (("min_speedup", self.min_speedup), ("max_latency", self.max_latency_s), ("max_size", self.max_size)):
            if limit is not None and not limit > 0:
                faults.append(f"{name} must be > 0, got {limit}")
        return faults

    @property
    def repaired(self) -> bool:
        """Do finalists get a more thorough compensation than other trials? Not where the user has asked for another."""
        return self.recover == "auto" or self.training is not None

    def _values(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}

    def to_json(self) -> dict[str, Any]:
        """For records and reports, which others may see."""
        return {**self._values(), "storage": mask_password(self.storage)}

    def write(self, run: Path) -> None:
        """Write job.toml, from which the search goes on."""
        values = {key: value for key, value in self._values().items() if value is not None}
        text = f"# written by hwprune; `hwprune search --resume --out {run.name}` goes on from it\nschema = {SCHEMA}\n"
        write_atomic(run / FILE, text + dump_toml(values), private=has_password(self.storage))

    @property
    def constraints(self) -> Constraints:
        return Constraints(self.max_drop, self.min_speedup, self.max_latency_s, self.max_size)

    @property
    def latency_source(self) -> str:
        """``measured``, ``table`` or ``estimated``."""
        return "table" if self.table else "estimated" if self.estimate else "measured"

    @classmethod
    def read(cls, run: Path) -> Job:
        """Raises `UsageError` with all faults of the file."""
        return cls.read_file(run / FILE)

    @classmethod
    def read_file(cls, path: Path) -> Job:
        """A job's file under any name. Raises `UsageError` with all faults of the file."""
        table = read_toml(path)
        if table.integer("schema") != SCHEMA:
            table.fault("schema", f"must be {SCHEMA}")
        make = partial(
            cls,
            workload=table.text("workload", ""),
            target=table.text("target", "cpu"),
            space=table.text("space", "default"),
            trials=table.integer("trials", 60),
            time_s=table.number("time_s", 0.0),
            sampler=table.text("sampler", DEFAULT),
            seed=table.integer("seed", 0),
            max_drop=table.optional_number("max_drop"),
            min_speedup=table.optional_number("min_speedup"),
            max_latency_s=table.optional_number("max_latency_s"),
            max_size=_whole(table.optional_number("max_size")),
            recover=table.text("recover", "auto"),
            all_patterns=table.boolean("all_patterns", False),
            trial_timeout_s=table.number("trial_timeout_s", 120.0),
            memory_limit=table.integer("memory_limit", 0),
            storage=table.text("storage", ""),
            database=table.text("database", ""),
            remote=table.text("remote", ""),
            table=table.text("table", ""),
            estimate=table.boolean("estimate", False),
            quantize=table.text("quantize", ""),
        )
        try:
            job = make()
        except UsageError as error:
            table.finish(error.faults)
            raise
        table.finish()
        return job


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
