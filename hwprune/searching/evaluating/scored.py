"""A candidate of which everything but the latency is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hwprune.common.files import Table
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate of which everything but the latency is known."""

    number: int
    recipe: Recipe
    origin: str
    metric: Measurement
    divergence: Measurement
    params: int
    macs: int
    size_bytes: int
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_json(), "origin": self.origin, "metric": self.metric.to_json(),
            "divergence": self.divergence.to_json(), "params": self.params, "macs": self.macs, "size_bytes": self.size_bytes,
            "seconds": dict(self.seconds),
        }  # fmt: skip

    @classmethod
    def from_json(cls, number: int, data: Mapping[str, Any]) -> ScoredCandidate:
        table = Table({key: data[key] for key in data if key in cls.__dataclass_fields__}, f"trial {number}, scored")
        recipe, metric, divergence = table.table("recipe"), table.table("metric"), table.table("divergence")
        made = cls(
            number, Recipe.from_table(recipe), table.text("origin"), Measurement.from_table(metric),
            Measurement.from_table(divergence), table.integer("params"), table.integer("macs"), table.integer("size_bytes"),
            table.free("seconds"),
        )  # fmt: skip
        recipe.close()
        table.finish()
        return made


class Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
