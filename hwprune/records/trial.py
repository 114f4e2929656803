"""A recipe and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwprune.common.files import Table
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe

MEASURED, FAILED, STOPPED = "measured", "failed", "stopped"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a candidate failed or was stopped early; ``stage`` as in `hwprune.errors.CandidateFailure`."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One finished trial.

    Attributes:
        state: ``measured`` (then metric, drop, latency, speedup, params, macs, size_bytes are there), ``failed``, or ``stopped``
            early, because others are better already (then the divergence on a part of the split is there).
        metric: on the validation split, in the metric's own unit.
        drop: dense metric minus this one, in the metric's own unit and signed so that positive is worse.
        latency: seconds for one batch of the example inputs.
        speedup: dense latency / this latency, from paired measurement.
        seconds: wall time by stage.
        divergence: from the dense outputs, see `hwprune.workload.scoring.divergence`; it guides the search, the metric reports.
        paired_drop: the drop with its interval: dense and candidate are compared example by example.
        estimated_drop: what is believed of the drop on other examples, by labels and by the dense model's confidence, see
            `hwprune.workload.confidence.estimated_drop`. The search goes by it.
        predicted: what the search expected: divergence, drop, ratio of latencies.
        recovery: of a candidate whose weights were trained: ``of`` (the trial that was trained), ``plan``, ``before`` and
            ``after`` (metric on validation), ``seconds``, ``examples``, ``history``. Such a trial was not searched.
        quantised: of a candidate whose file was quantised: ``of`` (the trial, or ``dense``), ``precision``, ``source`` (SHA-256
            of the file in 32 bits) and what `hwprune.deploy.onnx_quantisers.Facts` has. Such a trial was not searched either.
    """

    number: int
    recipe: Recipe
    state: str
    metric: Measurement | None = None
    drop: float | None = None
    latency: Measurement | None = None
    speedup: Measurement | None = None
    params: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    failure: Failure | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    origin: str = "sampler"
    divergence: Measurement | None = None
    paired_drop: Measurement | None = None
    estimated_drop: Measurement | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    quantised: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = all(v is not None for v in (self.metric, self.drop, self.latency, self.speedup, self.params, self.size_bytes))
        if self.state == MEASURED and not whole:
            raise ValueError(f"trial {self.number} is called measured but lacks numbers")
        if self.state in (FAILED, STOPPED) and self.failure is None:
            raise ValueError(f"trial {self.number} {self.state} without a reason")
        if self.state not in (MEASURED, FAILED, STOPPED):
            raise ValueError(f"unknown trial state {self.state!r}")

    @property
    def measured(self) -> bool:
        return self.state == MEASURED

    @property
    def evidence(self) -> tuple[float, float | None]:
        """What is believed of the drop by itself, and its standard error, None if nothing tells."""
        best = self.estimated_drop or self.paired_drop
        return (self.drop or 0.0, None) if best is None else (best.value, best.half_width / 1.959964)

    @property
    def searched(self) -> bool:
        """Is it one of the search's own, and not made of another one afterwards?"""
        return not self.recovery and not self.quantised

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "number": self.number,
            "state": self.state,
            "origin": self.origin,
            "digest": self.recipe.digest,
            "recipe": self.recipe.to_json(),
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
        }
        for name in ("metric", "latency", "speedup", "divergence", "paired_drop", "estimated_drop"):
            value = getattr(self, name)
            if value is not None:
                data[name] = value.to_json()
        if self.predicted:
            data["predicted"] = dict(self.predicted)
        if self.recovery:
            data["recovery"] = dict(self.recovery)
        if self.quantised:
            data["quantised"] = dict(self.quantised)
        for name in ("drop", "params", "macs", "size_bytes"):
            if getattr(self, name) is not None:
                data[name] = getattr(self, name)
        if self.failure is not None:
            data["failure"] = {"stage": self.failure.stage, "reason": self.failure.reason}
        return data

    @classmethod
    def from_table(cls, table: Table) -> Trial:
        table.text("digest", "")
        measured = {
            name: Measurement.from_table(table.table(name)) if table.free(name) else None
            for name in ("metric", "latency", "speedup", "divergence", "paired_drop", "estimated_drop")
        }
        failure = None
        if table.free("failure"):
            row = table.table("failure")
            failure = Failure(row.text("stage"), row.text("reason"))
            row.close()
        recipe = table.table("recipe")
        counts = {name: table.optional_number(name) for name in ("params", "macs", "size_bytes")}
        trial = cls(
            number=table.integer("number", low=0),
            recipe=Recipe.from_table(recipe),
            state=table.text("state", choices=(MEASURED, FAILED, STOPPED)),
            drop=table.optional_number("drop"),
            failure=failure,
            seconds=table.free("seconds"),
            origin=table.text("origin", "sampler"),
            metric=measured["metric"],
            latency=measured["latency"],
            speedup=measured["speedup"],
            divergence=measured["divergence"],
            paired_drop=measured["paired_drop"],
            estimated_drop=measured["estimated_drop"],
            predicted=table.free("predicted") or {},
            recovery=table.free("recovery") or {},
            quantised=table.free("quantised") or {},
            params=_whole(counts["params"]),
            macs=_whole(counts["macs"]),
            size_bytes=_whole(counts["size_bytes"]),
        )
        recipe.close()
        table.close()
        return trial


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
